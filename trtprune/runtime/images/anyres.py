"""Images of any resolution, as LLaVA-NeXT and its descendants cut them: an overview and a plane of tiles.

The image is laid into the best of a list of resolutions (pinpoints), keeping its shape, and cut into tiles; the first
crop is an overview, the whole image squashed to one crop.  Patches of the tiles that show padding alone are left out
and a newline token ends each line.  Formulas and rounding are transformers' (``image_processing_utils``,
``models/llava_next`` and ``models/llava_onevision``, 5.23).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from trtprune.errors import InputError, shown
from trtprune.runtime.images.base import Cropped, CropShape, Prepared, TokenPlan, check_size
from trtprune.runtime.images.planes import Axis, Plane, Size, plan_tokens
from trtprune.runtime.images.settings import SIZE_LIMIT, flag, height_and_width, named, pinpoint_list, resize_target
from trtprune.runtime.images.steps import CropSteps, resized

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["AnyRes", "best_resolution", "size_within", "unpadded"]

MAX_TILES = 256
MAX_TOKENS = 1 << 17
PLANS = 16
"""Plans that are kept; each has about 80 bytes a token."""
OVERVIEW = 0
MODEL, PAPER = "model", "paper"


def best_resolution(height: int, width: int, resolutions: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The resolution that keeps most pixels of an image; of equal ones that with the fewest pixels to spare, the first
    of those."""
    best, most, least = resolutions[0], -1, math.inf
    for resolution in resolutions:
        scale = min(resolution[1] / width, resolution[0] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        wasted = resolution[0] * resolution[1] - effective
        if effective > most or (effective == most and wasted < least):
            best, most, least = resolution, effective, wasted
    return best


def size_within(height: int, width: int, resolution: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image that is scaled to touch two sides of a resolution, rounded up."""
    scale_x, scale_y = resolution[1] / width, resolution[0] / height
    if scale_x < scale_y:
        return min(math.ceil(height * scale_x), resolution[0]), resolution[1]
    return resolution[0], min(math.ceil(width * scale_y), resolution[1])


def unpadded(height: int, width: int, rows: int, columns: int) -> tuple[range, range]:
    """Rows and columns of a plane of patches that show more than padding.

    Args:
        height, width: Pixels of the image.
        rows, columns: Patches of the plane.
    """
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return range(padding, rows - padding), range(columns)
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return range(rows), range(padding, columns - padding)


@dataclass(frozen=True)
class AnyRes(Cropped):
    """The common part of processors of this kind; a :class:`~trtprune.runtime.images.base.Processor`.

    Attributes:
        shape: A crop, which is square.
        steps: What is done to each crop.
        overview: (height, width) the whole image is squashed to for the first crop.
        pinpoints: (height, width) of the planes of tiles.
        layout: One of :attr:`layouts`.
    """

    shape: CropShape
    steps: CropSteps
    overview: tuple[int, int]
    pinpoints: tuple[tuple[int, int], ...]
    layout: str

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    layouts: ClassVar[tuple[str, ...]] = (MODEL,)
    taps: ClassVar[int] = 1
    defaults: ClassVar[Mapping[str, Any]]
    """transformers' defaults of the processor's class."""
    model_pinpoints: ClassVar[Sequence[Sequence[int]]]
    """transformers' default of ``image_grid_pinpoints`` in the model's configuration."""

    # -- settings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str) -> Self:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        values = {**cls.defaults, "layout": cls.layouts[0], **{k: v for k, v in settings.items() if v is not None}}
        with named(where):
            return cls(**cls._fields(values))

    @classmethod
    def _fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The dataclass's fields by name; raises KeyError, TypeError or ValueError."""
        shape = CropShape.from_settings(values)
        if shape.height != shape.width or shape.rows != shape.columns:
            raise ValueError(f"crops of {shape.height} × {shape.width} pixels are not square")
        if shape.first_patch != 0:
            raise ValueError("crops of this processor have a feature for each patch, and none beside")
        flag(values, "do_pad")  # puts further crops behind those of smaller images in a batch, which nobody reads
        if values["layout"] not in cls.layouts:
            raise ValueError(f"layout {shown(values['layout'])} is none of {', '.join(cls.layouts)}")
        kind, first, second = resize_target(values)
        overview = (first, first) if kind == "shortest" else (first, second)
        tile = height_and_width("crop_size", values["crop_size"])[0] if values.get("crop_size") else first
        edge = shape.height
        if tile != edge:
            raise ValueError(f"tiles are {tile} × {tile} pixels, the vision graph takes {edge} × {edge}")
        steps = CropSteps.from_values(values)
        for name, size in (("overview", overview), ("tile", (tile, tile))):
            if steps.size_after(*size) != (edge, edge):
                raise ValueError(
                    f"the {name} of {size[0]} × {size[1]} becomes {' × '.join(map(str, steps.size_after(*size)))} "
                    f"pixels, the vision graph takes {edge} × {edge}"
                )
        pinpoints = pinpoint_list("image_grid_pinpoints", values["image_grid_pinpoints"], tile, MAX_TILES)
        model = values.get("model_pinpoints")
        if (
            model is not None
            and pinpoint_list("image_grid_pinpoints of config.json", model, tile, MAX_TILES) != pinpoints
        ):
            raise ValueError("image_grid_pinpoints are not those of config.json")
        most = max(height * width // edge**2 for height, width in pinpoints) + 1
        if most * shape.patches > MAX_TOKENS:
            raise ValueError(
                f"image_grid_pinpoints lead to {most} crops of {shape.patches} patches, above the limit of {MAX_TOKENS}"
                " in all"
            )
        return {
            "shape": shape,
            "steps": steps,
            "overview": overview,
            "pinpoints": pinpoints,
            "layout": values["layout"],
        }

    @classmethod
    def model_settings(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The model's own pinpoints, which must be the processor's."""
        pinpoints = config.get("image_grid_pinpoints")
        return {"model_pinpoints": cls.model_pinpoints if pinpoints is None else pinpoints}

    def settings(self) -> dict[str, Any]:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        edge = self.shape.height
        return {
            **self.shape.settings(),
            # Where no step needs them they still say how large the overview and the tiles are.
            "size": {"height": self.overview[0], "width": self.overview[1]},
            "crop_size": {"height": edge, "width": edge},
            **self.steps.settings(),
            "do_pad": True,
            "image_grid_pinpoints": [list(pinpoint) for pinpoint in self.pinpoints],
            "layout": self.layout,
        }

    # -- sizes

    def _tiles(self, resolution: tuple[int, int]) -> tuple[int, int]:
        """Tiles of a plane, down and across."""
        return resolution[0] // self.shape.height, resolution[1] // self.shape.width

    def _patches(self, resolution: tuple[int, int]) -> tuple[int, int]:
        """Patches of a plane, rows and columns."""
        down, across = self._tiles(resolution)
        return down * self.shape.rows, across * self.shape.columns

    @property
    def crops_range(self) -> tuple[int, int]:
        """Bounds of an image's crops."""
        counts = [1 + math.prod(self._tiles(pinpoint)) for pinpoint in self.pinpoints]
        return min(counts), max(counts)

    @property
    def has_newlines(self) -> bool:
        """Whether the layout has newline tokens."""
        return self.layout == MODEL

    @property
    def most_newlines(self) -> int:
        """A newline token for each row of patches of the highest plane."""
        return max(self._patches(pinpoint)[0] for pinpoint in self.pinpoints) if self.has_newlines else 0

    @property
    def fixed_tokens(self) -> bool:
        """Images differ."""
        return False

    @property
    def tokens_range(self) -> tuple[int, int]:
        """Bounds of N over all images."""
        if self.layout == PAPER:
            least, most = self.crops_range
            return least * self.shape.patches, most * self.shape.patches
        counts = [self.shape.patches + self._plane_tokens(*shape) for shape in self._plane_shapes()]
        return min(int(count.min()) for count in counts), max(int(count.max()) for count in counts)

    def _plane_shapes(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and columns of the planes that unpadding can leave, int64 [n] both."""
        pinpoints = np.array(sorted(set(self.pinpoints)))
        areas = pinpoints.prod(axis=1)
        for pinpoint, area in zip(pinpoints, areas, strict=True):
            smaller = pinpoints[areas < area]
            plane = self._patches(pinpoint)
            # A smaller resolution is preferred where the image fits it as well: ``most`` rows or columns do.
            for axis in range(2):
                spare = smaller[smaller[:, 1 - axis] >= pinpoint[1 - axis], axis]
                most = spare.max(initial=0) * plane[axis] / pinpoint[axis]
                # Padding is taken from both sides alike, and n are left of a part of n − 1 to n + 1.
                left = np.arange(plane[axis] % 2, plane[axis] + 1, 2)
                left = left[(left + 1 > most) | (left == plane[axis])]
                yield (left, np.array(plane[1])) if axis == 0 else (np.array(plane[0]), left)

    def _plane_tokens(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Visual tokens of planes of tiles, newline tokens included."""
        return rows * columns + rows

    def geometry(self, height: int, width: int) -> None:
        """None: an image is several crops."""
        return None

    def pixels_taken(self, width: int, height: int, images: int = 1) -> int:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        check_size(height, width)
        best = best_resolution(height, width, self.pinpoints)
        edge = self.shape.height
        steps = (self.steps.size_after_resize(*self.overview), self.steps.size_after_resize(edge, edge))
        arrays = (1 + math.prod(self._tiles(best))) * edge**2
        return max(width * height, arrays, *(math.prod(size) for size in (best, self.overview, *steps)))

    # -- plan

    def plan(self, height: int, width: int, images: int = 1) -> TokenPlan:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        check_size(height, width)
        return _plan(self, height, width, images)

    def _plan(self, height: int, width: int, images: int) -> TokenPlan:
        """As :meth:`plan`, of a size that is one."""
        best = best_resolution(height, width, self.pinpoints)
        down, across = self._tiles(best)
        whole = self._crop_plane((height, width), self.overview, self.overview)
        edge = self.shape.height
        axes = Axis.pair(
            self.shape,
            self.steps.geometry(edge, edge),
            (height, width),
            size_within(height, width, best),
            best,
            (edge, edge),
        )
        tiles = self._tile_plane(height, width, axes, down, across)
        return plan_tokens((whole, tiles), 1 + down * across, self.shape.patches, OVERVIEW)

    def _crop_plane(self, image: Size, resized: Size, plane: Size, newline: str | None = None) -> Plane:
        """The plane of a single crop.

        Args:
            image, resized, plane: (height, width) of the image, of the image in the crop, and of the crop before its
                steps.
            newline: As :attr:`Plane.newline`.
        """
        axes = Axis.pair(self.shape, self.steps.geometry(*plane), image, resized, plane, plane)
        rows, columns = range(self.shape.rows), range(self.shape.columns)
        return Plane.of_crops(self.shape, axes, rows, columns, taps=self.taps, newline=newline)

    def _tile_plane(self, height: int, width: int, axes: tuple[Axis, Axis], down: int, across: int) -> Plane:
        rows, columns = down * self.shape.rows, across * self.shape.columns
        if self.layout == PAPER:
            parts, newline = (range(rows), range(columns)), None
        else:
            parts, newline = unpadded(height, width, rows, columns), "line"
        return Plane.of_crops(
            self.shape, axes, *parts, first=OVERVIEW + 1, across=across, taps=self.taps, newline=newline
        )

    # -- pixels

    def prepare(self, image: Image.Image, images: int = 1) -> Prepared:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        if self.pixels_taken(image.width, image.height, images) > SIZE_LIMIT**2:
            raise InputError(f"a picture of {image.width} × {image.height} is too large or too narrow", hint="crop it")
        plan = self.plan(image.height, image.width, images)
        crops = self._crops(image, images)
        edge = (self.shape.height, self.shape.width)
        arrays = np.empty((plan.crops, *edge, 3), np.uint8)
        for place, crop in enumerate(crops):
            arrays[place] = self.steps.pixels(crop)
        return Prepared(self.steps.values(arrays), plan)

    def _crops(self, image: Image.Image, images: int) -> Iterator[np.ndarray]:
        """The crops of an image before the steps, uint8 [h, w, 3] each."""
        height, width = image.height, image.width
        resample = self.steps.resample
        yield resized(image, self.overview, resample)
        best = best_resolution(height, width, self.pinpoints)
        inner = resized(image, size_within(height, width, best), resample)
        top, left = (best[0] - inner.shape[0]) // 2, (best[1] - inner.shape[1]) // 2
        plane = np.zeros((*best, 3), np.uint8)
        plane[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        edge = self.shape.height
        for row in range(0, best[0], edge):
            for column in range(0, best[1], edge):
                yield plane[row : row + edge, column : column + edge]


@lru_cache(maxsize=PLANS)
def _plan(processor: AnyRes, height: int, width: int, images: int) -> TokenPlan:
    return processor._plan(height, width, images)
