"""Planes of patches, and their visual tokens line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from trtprune.runtime.images.base import NO_CROP, CropShape, TokenPlan
from trtprune.runtime.images.steps import Geometry

Size: TypeAlias = tuple[int, int]
"""(height, width)"""

__all__ = ["Axis", "Plane", "Size", "bilinear_taps", "plan_tokens"]


@dataclass(frozen=True)
class Axis:
    """One direction of an image on a plane of crops.

    Attributes:
        size: Pixels of the image.
        resized: Pixels of the image on the plane.
        before: Pixels of padding in front of it; negative if the image is cut.
        crop: Pixels of a crop on the plane.
        start, scale: Pixel p of the vision graph's array is pixel ``start + p·scale`` of the crop.
        patch: Pixels of a patch in that array.
        patches: Patches of a crop.
    """

    size: int
    resized: int
    before: int
    crop: int
    start: float
    scale: float
    patch: int
    patches: int

    @classmethod
    def pair(
        cls, shape: CropShape, geometry: Geometry, image: Size, resized: Size, plane: Size, crop: Size
    ) -> tuple[Axis, Axis]:
        """The vertical and the horizontal axis of an image in the middle of a plane.

        Args:
            shape: The vision graph's crop.
            geometry: Its place in the crop that is cut from the plane.
            image, resized, plane, crop: (height, width) of the image, of the image on the plane, of the plane, and of
                a crop on it.
        """
        before = [(plane[i] - resized[i]) // 2 for i in range(2)]
        starts, scales = (geometry.top, geometry.left), (geometry.scale_y, geometry.scale_x)
        patches = (shape.rows, shape.columns)
        vertical, horizontal = (
            cls(image[i], resized[i], before[i], crop[i], starts[i], scales[i], shape.patch[i], patches[i])
            for i in range(2)
        )
        return vertical, horizontal

    def place(self, patches: np.ndarray, *, end: bool) -> np.ndarray:
        """Borders of patches in the image: pixels float64 [n], within the image.

        Args:
            patches: Places on the plane in patches, float64 [n]; whole numbers are borders of patches.
            end: Whether a border between two crops is the end of the first one, or the beginning of the second.
        """
        crop = np.ceil(patches / self.patches) - 1 if end else np.floor(patches / self.patches)
        pixels = (patches - crop * self.patches) * self.patch
        # A crop that is smaller than the array is surrounded by zeros there, not by its neighbours.
        on_plane = crop * self.crop + np.clip(self.start + pixels * self.scale, 0, self.crop)
        return np.clip((on_plane - self.before) * (self.size / self.resized), 0, self.size)


@dataclass(frozen=True)
class Plane:
    """Visual tokens of a rectangle, h lines of w.

    Attributes:
        index: int32 [h, w, taps]: patches of the image, crop after crop.
        weight: float32 [h, w, taps].
        crop: int32 [h, w].
        rows, columns: int32 [h], [w]: places of the tokens on the plane.
        vertical, horizontal: float64 [h, 2], [w, 2]: beginning and end of the tokens in the image, in pixels.
        newline: A newline token ends each ``"line"`` or the whole ``"plane"``; None: no newline token.
    """

    index: np.ndarray
    weight: np.ndarray
    crop: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    vertical: np.ndarray
    horizontal: np.ndarray
    newline: str | None = None

    @classmethod
    def of_crops(
        cls,
        shape: CropShape,
        axes: tuple[Axis, Axis],
        rows: range,
        columns: range,
        *,
        first: int = 0,
        across: int = 1,
        taps: int = 1,
        newline: str | None = None,
    ) -> Plane:
        """A token for each patch of crops side by side.

        Args:
            shape: A crop.
            axes: The plane's vertical and horizontal axis.
            rows, columns: Patches of the plane that are read.
            first: The crop at the top left; the others follow line by line.
            across: Crops beside each other.
            taps: Taps of a token; all but the first have no weight.
            newline: As the attribute.
        """
        r, c = np.arange(rows.start, rows.stop, dtype=np.int32), np.arange(columns.start, columns.stop, dtype=np.int32)
        index, crop = _patches(shape, r, c, first, across)
        weight = np.zeros((len(r), len(c), taps), np.float32)
        weight[..., 0] = 1
        return cls(
            # Taps without weight repeat the first one, so that an infinity in another patch has no effect.
            index=np.repeat(index[..., None], taps, axis=2),
            weight=weight,
            crop=crop,
            rows=r,
            columns=c,
            vertical=_extent(axes[0], r, r + 1),
            horizontal=_extent(axes[1], c, c + 1),
            newline=newline,
        )

    @classmethod
    def shrunk(
        cls,
        shape: CropShape,
        axes: tuple[Axis, Axis],
        rows: range,
        columns: range,
        size: tuple[int, int],
        *,
        first: int,
        across: int,
        newline: str | None = None,
    ) -> Plane:
        """Patches shrunk bilinearly to ``size`` (lines, tokens per line), with four taps; see :meth:`of_crops`."""
        top, bottom, down = bilinear_taps(len(rows), size[0])
        left, right, along = bilinear_taps(len(columns), size[1])
        lines, places = np.stack((top, top, bottom, bottom)), np.stack((left, right, left, right))
        vertical, horizontal = (
            np.stack((1 - down, 1 - down, down, down)),
            np.stack((1 - along, along, 1 - along, along)),
        )
        weight = vertical[:, :, None] * horizontal[:, None, :]
        index, crop = np.empty(weight.shape, np.int32), np.empty(weight.shape, np.int32)
        for tap in range(4):
            r, c = rows.start + lines[tap], columns.start + places[tap]
            index[tap], crop[tap] = _patches(shape, r.astype(np.int32), c.astype(np.int32), first, across)
        heaviest = weight.argmax(axis=0)
        return cls(
            index=np.moveaxis(index, 0, -1),
            weight=np.moveaxis(weight, 0, -1),
            crop=np.take_along_axis(crop, heaviest[None], axis=0)[0],
            rows=np.arange(size[0], dtype=np.int32),
            columns=np.arange(size[1], dtype=np.int32),
            vertical=_shrunk_extent(axes[0], rows, size[0]),
            horizontal=_shrunk_extent(axes[1], columns, size[1]),
            newline=newline,
        )

    @property
    def line(self) -> int:
        """Tokens of a line, its newline token included."""
        return len(self.columns) + (self.newline == "line")

    @property
    def tokens(self) -> int:
        """Tokens of the plane, newline tokens included."""
        return len(self.rows) * self.line + (self.newline == "plane")


def bilinear_taps(size: int, shrunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The taps of a linear interpolation from ``size`` places to ``shrunk`` places.

    For each the first place, the one behind it, and the second one's weight (float32), as in
    ``torch.nn.functional.interpolate`` (mode bilinear, ``align_corners=False``).
    """
    ratio = np.float32(size) / np.float32(shrunk)
    # torch computes ratio · (place + ½) − ½ in float32, rounded once (a fused multiply-add); float64 holds the product
    # exactly.  With two roundings weights would differ by 1e-5.
    source = (np.float64(ratio) * (np.arange(shrunk) + 0.5) - 0.5).astype(np.float32)
    source = np.maximum(source, np.float32(0))
    first = source.astype(np.int32)
    return first, np.minimum(first + 1, size - 1), source - first.astype(np.float32)


def plan_tokens(
    planes: Sequence[Plane],
    crops: int,
    patches: int,
    overview: int,
    spans: tuple[int, ...] = (),
    markers: tuple[str, ...] = (),
) -> TokenPlan:
    """The visual tokens of an image, plane after plane.

    Args:
        planes: The image's planes, in the order in which the decoder reads them.
        crops: Crops of the image.
        patches: Patches of a crop.
        overview: The crop that shows the whole image, −1 if there is none.
        spans, markers: As in :class:`TokenPlan`.
    """
    count, taps = sum(plane.tokens for plane in planes), planes[0].index.shape[-1]
    learned = crops * patches
    grid = np.full((count, 3), NO_CROP, np.int32)
    newline = np.full(count, NO_CROP, np.int32)
    index = np.full((count, taps), learned, np.int32)
    weight = np.zeros((count, taps), np.float32)
    weight[:, 0] = 1
    boxes = np.full((count, 4), np.nan, np.float32)
    place = 0
    for plane in planes:
        height, width = len(plane.rows), len(plane.columns)
        part = slice(place, place + height * plane.line)

        def lines(array: np.ndarray, part: slice = part, plane: Plane = plane) -> np.ndarray:
            """The plane's tokens but for newline tokens, as a view [h, w, …]."""
            shaped = array[part].reshape(len(plane.rows), plane.line, *array.shape[1:])
            return shaped[:, : len(plane.columns)]

        tokens = lines(grid)
        tokens[..., 0], tokens[..., 1], tokens[..., 2] = plane.crop, plane.rows[:, None], plane.columns
        lines(index)[...], lines(weight)[...] = plane.index, plane.weight
        box = lines(boxes)
        box[..., 0], box[..., 2] = plane.horizontal.T[:, None]
        box[..., 1], box[..., 3] = plane.vertical.T[:, :, None]
        if plane.newline == "line":
            ends = np.arange(part.start + width, part.stop, plane.line, dtype=np.int32)
            newline[part] = np.repeat(ends, plane.line)
        elif plane.newline == "plane":
            newline[place : part.stop + 1] = part.stop
        place += plane.tokens
    with np.errstate(invalid="ignore"):
        padding = (boxes[:, 0] >= boxes[:, 2]) | (boxes[:, 1] >= boxes[:, 3])
    return TokenPlan(crops, grid, newline, index, weight, boxes, padding, overview, spans, markers)


def _patches(
    shape: CropShape, rows: np.ndarray, columns: np.ndarray, first: int, across: int
) -> tuple[np.ndarray, np.ndarray]:
    """Patch of the image and crop for each row and column of a plane of crops: int32 [h, w] both."""
    down, row = np.divmod(rows, np.int32(shape.rows))
    right, column = np.divmod(columns, np.int32(shape.columns))
    crop = (first + down * across)[:, None] + right
    return crop * shape.patches + (row * shape.columns)[:, None] + column, crop


def _extent(axis: Axis, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    return np.stack((axis.place(start.astype(float), end=False), axis.place(stop.astype(float), end=True)), axis=1)


def _shrunk_extent(axis: Axis, patches: range, size: int) -> np.ndarray:
    borders = patches.start + np.arange(size + 1) * (len(patches) / size)
    return _extent(axis, borders[:-1], borders[1:])
