"""Several overlays on one sheet: the picture itself first, then a panel per method and budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trtprune.show.overlay import PANEL, fit
from trtprune.show.text import PAPER, paragraph, title_strip

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["caption_for", "panels"]

GAP = 18
MAX_COLUMNS = 4


def caption_for(method: str, kept: int, total: int) -> str:
    """``adafv · 64 of 576 tokens (11.1 %)``."""
    return f"{method} · {kept} of {total} tokens ({100 * kept / total:.1f} %)"


def panels(
    image: Image.Image,
    pictures: Sequence[Image.Image],
    *,
    caption: str | None = None,
    columns: int | None = None,
    size: int = PANEL,
) -> Image.Image:
    """Lays out the original and the overlays.

    Args:
        image: The picture itself; it becomes the first panel.
        pictures: Titled pictures of :func:`~trtprune.show.overlay`.
        caption: A paragraph above the panels: the question the selection was made for.
        columns: Panels a row; chosen by their number otherwise.
        size: The ``size`` the overlays were made with.

    Returns:
        A new RGB picture.
    """
    from PIL import Image as Pil

    tiles = [title_strip(fit(image, size), f"picture · {image.width} x {image.height} pixels"), *pictures]
    columns = max(1, min(columns or _columns(len(tiles)), len(tiles)))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    cell = max(tile.width for tile in tiles)
    heights = [max(tile.height for tile in row) for row in rows]
    width = columns * cell + (columns + 1) * GAP
    head = paragraph(caption, width - 2 * GAP) if caption and caption.strip() else None
    top = GAP + (head.height + GAP if head else 0)
    sheet = Pil.new("RGB", (width, top + sum(heights) + len(rows) * GAP), PAPER)
    if head:
        sheet.paste(head, (GAP, GAP))
    for row, height in zip(rows, heights, strict=True):
        for number, tile in enumerate(row):
            sheet.paste(tile, (GAP + number * (cell + GAP) + (cell - tile.width) // 2, top + height - tile.height))
        top += height + GAP
    return sheet


def _columns(count: int) -> int:
    # Full rows where possible: 6 tiles are 3 + 3, not 4 + 2.
    if count <= MAX_COLUMNS:
        return count
    return min((MAX_COLUMNS, 3), key=lambda n: (-count % n, -n))
