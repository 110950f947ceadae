"""Several overlays on one sheet: the image itself at the left, then methods in rows and budgets in columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.show.overlay import PANEL, fit
from trtprune.show.text import INK, PAPER, paragraph, stack, title_strip

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["answer_under", "caption_for", "panel_size", "panels"]

GAP = 18
MAX_COLUMNS = 4
WIDEST = 2600
"""The largest width of a sheet in pixels: with many budgets, panels become smaller."""
SMALLEST = 200
FAINT = (110, 114, 122)
CHANGED = (190, 30, 45)


def caption_for(method: str, kept: int, total: int, merged: int = 0) -> str:
    """``adafv · 64 of 576 tokens (11.1 %)``; with ``, 10 merged`` for tokens of several patches."""
    more = f", {merged} merged" if merged else ""
    return f"{method} · {kept} of {total} tokens ({100 * kept / total:.1f} %){more}"


def panel_size(columns: int) -> int:
    """The longer side of a panel, in pixels, if ``columns`` panels are beside the image."""
    return max(SMALLEST, min(PANEL, WIDEST // (columns + 1) - GAP))


def answer_under(
    picture: Image.Image, answer: str | None, *, same: bool = True, font: Path | None = None
) -> Image.Image:
    """The panel with the answer under it, on up to three lines; None leaves it unchanged.

    An answer that is not the ``same`` as with all tokens is red.
    """
    if answer is None:
        return picture
    ink = INK if same else CHANGED
    words = paragraph(answer or "(no words)", picture.width, size=19, font=font, ink=ink, centred=True)
    return stack([picture, words])


def panels(
    image: Image.Image,
    pictures: Sequence[Image.Image] | Sequence[Sequence[Image.Image | None]],
    *,
    caption: str | None = None,
    aside: Sequence[str] = (),
    columns: int | None = None,
    size: int = PANEL,
    font: Path | None = None,
) -> Image.Image:
    """Lays out the original and the overlays.

    Args:
        image: The image itself.
        pictures: Titled pictures of :func:`~trtprune.show.overlay`. Rows of them are placed as given, with
            the image at the left (None is an empty place); for a plain sequence the image is the first, and the number
            of rows follows from their number.
        caption: The question; a paragraph above the panels, or with rows, under the image.
        aside: With rows, smaller lines under the caption.
        columns: Panels per row of a plain sequence; None: from their number.
        size: The ``size`` of the overlays.
        font: A font file with priority over the system's fonts.

    Returns:
        A new RGB picture.
    """
    own = title_strip(fit(image, size), f"picture · {image.width} x {image.height} pixels", font)
    if pictures and not hasattr(pictures[0], "mode"):
        rows: list[list[Any]] = [list(row) for row in pictures]  # type: ignore[arg-type]
        words = [paragraph(caption, own.width, size=21, lines=8, font=font)] if caption and caption.strip() else []
        words += [paragraph(line, own.width, size=17, lines=6, font=font, ink=FAINT) for line in aside]
        sheet = _grid(rows)
        left = stack([own, *words], gap=8)
        return _beside(left, sheet)
    tiles = [own, *pictures]
    columns = max(1, min(columns or _columns(len(tiles)), len(tiles)))
    sheet = _grid([tiles[start : start + columns] for start in range(0, len(tiles), columns)])
    if not caption or not caption.strip():
        return _framed(sheet)
    return _framed(stack([paragraph(caption, sheet.width, font=font), sheet], gap=GAP))


def _grid(rows: Sequence[Sequence[Image.Image | None]]) -> Image.Image:
    """A grid with columns of equal width and rows as high as their highest panel."""
    from PIL import Image as Pil

    tiles = [tile for row in rows for tile in row if tile is not None]
    cell = max(tile.width for tile in tiles)
    heights = [max((tile.height for tile in row if tile is not None), default=0) for row in rows]
    columns = max(map(len, rows))
    width = columns * cell + (columns - 1) * GAP
    sheet = Pil.new("RGB", (width, sum(heights) + (len(rows) - 1) * GAP), PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for number, tile in enumerate(row):
            if tile is not None:
                sheet.paste(tile, (number * (cell + GAP) + (cell - tile.width) // 2, top))
        top += height + GAP
    return sheet


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    from PIL import Image as Pil

    sheet = Pil.new("RGB", (left.width + GAP + right.width, max(left.height, right.height)), PAPER)
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + GAP, 0))
    return _framed(sheet)


def _framed(sheet: Image.Image) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.expand(sheet, GAP, PAPER)


def _columns(count: int) -> int:
    # Full rows if possible: 6 panels are 3 + 3, not 4 + 2.
    if count <= MAX_COLUMNS:
        return count
    return min((MAX_COLUMNS, 3), key=lambda n: (-count % n, -n))
