"""The kept tokens of an image of several crops: the overview beside the tiles put together.

Both are drawn on the user's image, at the places that the plan of its visual tokens says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trtprune.errors import InputError
from trtprune.show.overlay import PANEL, Lattice, Patch, fit, paint
from trtprune.show.text import PAPER, title_strip

if TYPE_CHECKING:
    from PIL import Image

    from trtprune.runtime.images import TokenPlan

__all__ = ["OVERVIEW", "crops_width", "overlay_crops"]

OVERVIEW = 0.5
"""The size of the overview beside the tiles: it has fewer patches of the same image."""
GAP = 8


def crops_width(plan: TokenPlan) -> float:
    """The width of a panel, for one of an image drawn once."""
    return 1 + OVERVIEW if len(_planes(plan)) > 1 else 1.0


def overlay_crops(
    image: Image.Image,
    kept_indices: Iterable[int],
    plan: TokenPlan,
    *,
    merged_into: Sequence[int] | np.ndarray | None = None,
    title: str | None = None,
    size: int = PANEL,
) -> Image.Image:
    """Draws the kept patches of an image of several crops.

    Args:
        image: The image, upright.
        kept_indices: Kept visual tokens of this image; a newline token and -1, a kept CLS token, have no place.
        plan: The image's visual tokens.
        merged_into, title: As in :func:`trtprune.show.overlay`.
        size: The longer side of the tiles in pixels; the overview is half as large, in the corner beside them.

    Returns:
        A new RGB picture, drawn as by :func:`trtprune.show.overlay`.

    Raises:
        InputError: if an index is not one of the image's visual tokens.
    """
    kept = np.fromiter((int(index) for index in kept_indices), np.int64)
    if len(kept) and not (kept.min() >= -1 and kept.max() < plan.tokens):
        worst = kept[(kept < -1) | (kept >= plan.tokens)][0]
        raise InputError(
            f"kept index {worst} is not one of the image's {plan.tokens} visual tokens",
            hint="the indices belong to another model or to another picture of the prompt",
        )
    groups = _groups(merged_into)
    drawn = []
    planes = _planes(plan)
    for number, tokens in enumerate(planes):
        places = {int(token): _patch(plan, token) for token in tokens}
        shown = fit(image, round(size * (OVERVIEW if number < len(planes) - 1 else 1)))
        drawn.append(
            paint(
                shown,
                _lattice(plan, tokens, (shown.width / image.width, shown.height / image.height)),
                {places[index] for index in kept.tolist() if index in places},
                [(tint, {places[token] for token in group if token in places}) for tint, group in groups],
            )
        )
    picture = _side_by_side(drawn)
    return picture if title is None else title_strip(picture, title)


def _planes(plan: TokenPlan) -> list[np.ndarray]:
    """The tokens with a place, those of the overview first, those of all tiles last; not the empty ones."""
    placed = (plan.grid[:, 1] >= 0) & ~plan.padding
    overview = plan.grid[:, 0] == plan.overview
    planes = [np.flatnonzero(placed & mask) for mask in (overview, ~overview)]
    return [tokens for tokens in planes if len(tokens)]


def _patch(plan: TokenPlan, token: int) -> Patch:
    _, row, column = plan.grid[token].tolist()
    return row, column


def _lattice(plan: TokenPlan, tokens: np.ndarray, zoom: tuple[float, float]) -> Lattice:
    """The places of a plane's tokens on a picture that is ``zoom`` times the image."""
    left, top, right, bottom = (plan.boxes[tokens] * np.array(zoom * 2)).round().astype(int).T.tolist()
    _, rows, columns = plan.grid[tokens].T.tolist()
    return Lattice(
        dict(zip(rows, zip(top, bottom, strict=True), strict=True)),
        dict(zip(columns, zip(left, right, strict=True), strict=True)),
    )


def _groups(merged_into: Sequence[int] | np.ndarray | None) -> list[tuple[int, list[int]]]:
    """The number of a tint and the tokens of each row that stands for several."""
    found: dict[int, list[int]] = {}
    for token, target in enumerate([] if merged_into is None else merged_into):
        if int(target) >= 0:
            found.setdefault(int(target), []).append(token)
    several = [group for _, group in sorted(found.items()) if len(group) > 1]
    return list(enumerate(several))


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    from PIL import Image as Pil

    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    sheet = Pil.new("RGB", (width, max(picture.height for picture in pictures)), PAPER)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet
