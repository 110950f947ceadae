"""The image with the kept tokens' patches bright and everything else dimmed.

Drawn on the user's image, not on the model's square input: the parts that the processor cut off are visible as such.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from trtprune.errors import InputError
from trtprune.runtime.images.steps import Geometry
from trtprune.show.text import title_strip

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = ["Geometry", "Lattice", "Patch", "fit", "overlay", "paint"]

Patch: TypeAlias = tuple[int, int]
"""Row and column."""
Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels."""

PANEL = 480  # the longer side of a picture in a panel, in pixels
OUTLINE = (255, 196, 0)
FRAME = (250, 250, 250)
MERGED = (120, 200, 255)
TINTS = ((86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (122, 123, 254))
"""Tints of merged tokens: patches of one token share a tint, neighbours differ."""


def overlay(
    image: Image.Image,
    kept_indices: Iterable[int],
    *,
    patch_grid: tuple[int, int],
    geometry: Geometry | None = None,
    first_patch: int = 0,
    merged_into: Sequence[int] | np.ndarray | None = None,
    title: str | None = None,
    size: int = PANEL,
) -> Image.Image:
    """Draws the kept patches of an image.

    Args:
        image: The image, upright.
        kept_indices: Kept visual tokens of this image; -1, a kept CLS token, has no place.
        patch_grid: (rows, columns) of the vision tower.
        geometry: The place of the model's input in ``image``; the whole image by default.
        first_patch: The patch of token 0; -1 if token 0 is the CLS token, which has no place.
        merged_into: For each visual token the kept one whose row it is a part of, -1 for none; see
            :meth:`trtprune.pruning.Method.merged_into`. Patches of a merged token have the same tint and a blue
            outline.
        title: A line under the image.
        size: The longer side of the result in pixels.

    Returns:
        A new RGB picture: kept patches bright and outlined, dropped ones dark and grey, the rest of the
        image, which the model did not see, pale.

    Raises:
        InputError: if an index lies outside the grid.
    """
    rows, columns = patch_grid
    kept = _patches(kept_indices, rows, columns, first_patch)
    shown = fit(image, size)
    zoom_x, zoom_y = shown.width / image.width, shown.height / image.height
    if geometry is None:
        xs = [shown.width * c / columns for c in range(columns + 1)]
        ys = [shown.height * r / rows for r in range(rows + 1)]
    else:
        # A convolution drops pixels behind the last whole patch: SigLIP at 384 has 27 patches of 14, not 27.4.
        patch_x, patch_y = geometry.width // columns or 1, geometry.height // rows or 1
        xs = [(geometry.left + c * patch_x * geometry.scale_x) * zoom_x for c in range(columns + 1)]
        ys = [(geometry.top + r * patch_y * geometry.scale_y) * zoom_y for r in range(rows + 1)]
    left, top = [round(x) for x in xs], [round(y) for y in ys]
    lattice = Lattice(dict(enumerate(itertools.pairwise(top))), dict(enumerate(itertools.pairwise(left))))
    picture = paint(shown, lattice, kept, list(enumerate(_groups(merged_into, rows, columns, first_patch))))
    return picture if title is None else title_strip(picture, title)


@dataclass(frozen=True)
class Lattice:
    """Rows and columns of patches on a picture.

    Attributes:
        rows, columns: Number of a row (column) → its first pixel and the one behind its last.
    """

    rows: Mapping[int, tuple[int, int]]
    columns: Mapping[int, tuple[int, int]]

    @property
    def bounds(self) -> Box:
        """The rectangle around all patches."""
        (lefts, rights), (tops, bottoms) = (zip(*ends.values(), strict=True) for ends in (self.columns, self.rows))
        return min(lefts), min(tops), max(rights), max(bottoms)

    def box(self, patch: Patch) -> Box:
        """Left, top, right and bottom of a patch; right and bottom are behind its last pixel."""
        (top, bottom), (left, right) = self.rows[patch[0]], self.columns[patch[1]]
        return left, top, right, bottom


def paint(
    shown: Image.Image, lattice: Lattice, kept: Set[Patch], groups: Sequence[tuple[int, Set[Patch]]]
) -> Image.Image:
    """The picture with kept patches bright, dropped ones dark and grey, and all around the lattice pale.

    Args:
        shown: The image, RGB, at its final size.
        lattice: The places of the patches.
        kept: Kept patches.
        groups: Number of a tint and patches, for each token that stands for several patches.
    """
    from PIL import Image as Pil
    from PIL import ImageDraw, ImageOps

    left, top, right, bottom = lattice.bounds
    grey = ImageOps.grayscale(shown).convert("RGB")
    unseen = Pil.blend(grey, Pil.new("RGB", shown.size, (206, 208, 212)), 0.72)
    # Towards a dark grey, not towards black: in a dark image black patches would look the same either way.
    dropped = Pil.blend(Pil.blend(shown, grey, 0.85), Pil.new("RGB", shown.size, (52, 54, 62)), 0.68)
    seen = Pil.new("L", shown.size, 0)
    if right > left and bottom > top:
        ImageDraw.Draw(seen).rectangle((left, top, right - 1, bottom - 1), fill=255)
    bright = Pil.new("L", shown.size, 0)
    draw = ImageDraw.Draw(bright)
    for box in map(lattice.box, kept):
        if box[2] > box[0] and box[3] > box[1]:
            draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    picture = Pil.composite(shown, Pil.composite(dropped, unseen, seen), bright)
    for tint, group in groups:
        tinted = Pil.blend(shown, Pil.new("RGB", shown.size, TINTS[tint % len(TINTS)]), 0.3)
        for box in map(lattice.box, group):
            if box[2] > box[0] and box[3] > box[1]:
                picture.paste(tinted.crop(box), box[:2])

    draw = ImageDraw.Draw(picture)
    inside = left <= 0 and top <= 0 and right >= shown.width and bottom >= shown.height
    if not inside:
        draw.rectangle((left - 1, top - 1, right, bottom), outline=FRAME)
    for _, group in groups:
        for line in _outline(group, lattice):
            draw.line(line, fill=MERGED)
    for line in _outline(kept - {patch for _, group in groups for patch in group}, lattice):
        draw.line(line, fill=OUTLINE)
    return picture


def fit(image: Image.Image, size: int) -> Image.Image:
    """The image as RGB with a longer side of ``size`` pixels."""
    from PIL import Image as Pil

    zoom = size / max(image.size)
    shape = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
    return image.convert("RGB").resize(shape, Pil.Resampling.LANCZOS)


def _patches(indices: Iterable[int], rows: int, columns: int, first: int) -> set[Patch]:
    kept = set()
    for index in indices:
        patch = int(index) + first
        if int(index) == -1 or (patch == -1 and first == -1):
            continue
        if not 0 <= patch < rows * columns:
            raise InputError(
                f"kept index {int(index)} is not one of {rows} × {columns} patches",
                hint="the indices belong to another model or to another picture of the prompt",
            )
        kept.add(divmod(patch, columns))
    return kept


def _groups(merged_into: Sequence[int] | np.ndarray | None, rows: int, columns: int, first: int) -> list[set[Patch]]:
    """The patches of each token with several patches, in the tokens' order."""
    found: dict[int, set[Patch]] = {}
    for token, target in enumerate([] if merged_into is None else merged_into):
        patch = token + first
        if int(target) >= 0 and 0 <= patch < rows * columns:
            found.setdefault(int(target), set()).add(divmod(patch, columns))
    return [found[target] for target in sorted(found) if len(found[target]) > 1]


def _outline(kept: Set[Patch], lattice: Lattice) -> Iterable[Box]:
    """The lines between kept and other patches, on the kept side: outlines of regions are clearer than a grid."""
    for r, c in kept:
        x0, y0, x1, y1 = lattice.box((r, c))
        x1, y1 = x1 - 1, y1 - 1
        if (r - 1, c) not in kept:
            yield x0, y0, x1, y0
        if (r + 1, c) not in kept:
            yield x0, y1, x1, y1
        if (r, c - 1) not in kept:
            yield x0, y0, x0, y1
        if (r, c + 1) not in kept:
            yield x1, y0, x1, y1
