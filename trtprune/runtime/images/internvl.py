"""The image processor of InternVL: tiles of a grid near the image's own shape, and a thumbnail behind them.

The image is stretched to the grid and cut; the decoder reads crop after crop.  Formulas and rounding are transformers'
(``models/got_ocr2/image_processing_pil_got_ocr2.py`` and ``models/internvl/processing_internvl.py``, 5.23).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from trtprune.errors import InputError, shown
from trtprune.runtime.images.base import Cropped, CropShape, Prepared, TokenPlan, check_size
from trtprune.runtime.images.planes import Axis, Plane, Size, plan_tokens
from trtprune.runtime.images.settings import SIZE_LIMIT, flag, height_and_width, marker, named, whole_number
from trtprune.runtime.images.steps import CropSteps, resized

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["InternVL", "best_grid"]

MAX_TILES = 256
MAX_TOKENS = 1 << 17
PLANS = 16
"""Plans that are kept; each has about 80 bytes a token."""
LAYOUT = "model"


def best_grid(height: int, width: int, tile: Size, least: int, most: int) -> tuple[int, int]:
    """Tiles down and across for an image.

    The grid of ``least`` to ``most`` tiles whose width to height is nearest to the image's; of equal ones the largest
    that has no more than twice the image's pixels, or the smallest.

    Args:
        height, width: Pixels of the image.
        tile: (height, width) of a tile.
        least, most: Bounds of the number of tiles.
    """
    best, distance = (1, 1), math.inf
    for down, across in _grids(least, most):
        off = abs(width / height - across / down)
        large_enough = width * height > 0.5 * tile[0] * tile[1] * across * down
        if off < distance or (off == distance and large_enough):
            best, distance = (down, across), off
    return best


@lru_cache(maxsize=PLANS)
def _grids(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """Grids (down, across) of ``least`` to ``most`` tiles: fewest tiles first, of equal numbers the narrowest."""
    found = [(n // across, across) for n in range(least, most + 1) for across in range(1, n + 1) if n % across == 0]
    return tuple(found)


@dataclass(frozen=True)
class InternVL(Cropped):
    """Tiles, row by row, and a thumbnail behind them if there is more than one; a
    :class:`~trtprune.runtime.images.base.Processor`.

    Attributes:
        shape: A crop, which is square.
        steps: What is done to the thumbnail, and without its resizing to each tile.
        tiles: Bounds of the number of tiles.
        markers: The text in front of an image's visual tokens, and that behind them.
    """

    shape: CropShape
    steps: CropSteps
    tiles: tuple[int, int]
    markers: tuple[str, str]

    name: ClassVar[str] = "internvl"
    kinds: ClassVar[tuple[str, ...]] = ("GotOcr2ImageProcessor",)
    layouts: ClassVar[tuple[str, ...]] = (LAYOUT,)
    taps: ClassVar[int] = 1
    defaults: ClassVar[Mapping[str, Any]] = {
        "do_resize": True,
        "size": {"height": 384, "width": 384},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
        "min_patches": 1,
        "max_patches": 12,
        "layout": LAYOUT,
    }
    """transformers' defaults of the processor's class."""

    # -- settings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str) -> Self:
        """See :class:`~trtprune.runtime.images.base.Processor`; ``markers`` are two texts.

        ``crop_to_patches`` has no effect: InternVL's processor cuts every image, whatever the file says.
        """
        values = {**cls.defaults, **{key: value for key, value in settings.items() if value is not None}}
        with named(where):
            shape = CropShape.from_settings(values)
            if shape.height != shape.width or shape.rows != shape.columns:
                raise ValueError(f"crops of {shape.height} × {shape.width} pixels are not square")
            if shape.first_patch != 0:
                raise ValueError("crops of this processor have a feature for each visual token, and none beside")
            if values["layout"] not in cls.layouts:
                raise ValueError(f"layout {shown(values['layout'])} is none of {', '.join(cls.layouts)}")
            if not flag(values, "do_resize"):
                raise ValueError("do_resize is false, and images of any size have to become crops of one size")
            size = height_and_width("size", values["size"])
            if size != (shape.height, shape.width):
                raise ValueError(
                    f"tiles are {size[0]} × {size[1]} pixels, the vision graph takes {shape.height} × {shape.width}"
                )
            least = whole_number("min_patches", values["min_patches"], 1, MAX_TILES)
            most = whole_number("max_patches", values["max_patches"], 1, MAX_TILES)
            if least > most:
                raise ValueError(f"min_patches {least} is above max_patches {most}")
            if (most + 1) * shape.patches > MAX_TOKENS:
                raise ValueError(
                    f"max_patches leads to {most + 1} crops of {shape.patches} visual tokens, above the limit of "
                    f"{MAX_TOKENS} in all"
                )
            texts = values["markers"]
            if not isinstance(texts, list | tuple) or len(texts) != 2:
                raise ValueError(f"markers {shown(texts)} are no two texts")
            steps = CropSteps.from_values({**values, "do_center_crop": False})
            return cls(shape, steps, (least, most), (marker("markers", texts[0]), marker("markers", texts[1])))

    @classmethod
    def model_settings(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: the model's own configuration has no say in this."""
        return {}

    def settings(self) -> dict[str, Any]:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        least, most = self.tiles
        own = {"min_patches": least, "max_patches": most, "markers": list(self.markers), "layout": LAYOUT}
        return {**self.shape.settings(), **self.steps.settings(), **own}

    # -- sizes

    @property
    def _edge(self) -> Size:
        """(height, width) of a crop."""
        return self.shape.height, self.shape.width

    @property
    def crops_range(self) -> tuple[int, int]:
        """Bounds of an image's crops."""
        least, most = (_crops(tiles) for tiles in self.tiles)
        return least, most

    @property
    def has_newlines(self) -> bool:
        """No image has them."""
        return False

    @property
    def most_newlines(self) -> int:
        """No image has them."""
        return 0

    @property
    def fixed_tokens(self) -> bool:
        """Whether all images have the same number of crops."""
        least, most = self.crops_range
        return least == most

    @property
    def tokens_range(self) -> tuple[int, int]:
        """Bounds of N over all images."""
        least, most = self.crops_range
        return least * self.shape.patches, most * self.shape.patches

    def geometry(self, height: int, width: int) -> None:
        """None: an image is several crops."""
        return None

    def pixels_taken(self, width: int, height: int, images: int = 1) -> int:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        check_size(height, width)
        down, across = best_grid(height, width, self._edge, *self.tiles)
        return max(width * height, _crops(down * across) * math.prod(self._edge))

    # -- plan

    def plan(self, height: int, width: int, images: int = 1) -> TokenPlan:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        check_size(height, width)
        return _plan(self, height, width)

    def _plan(self, height: int, width: int) -> TokenPlan:
        """As :meth:`plan`, of a size that is one."""
        down, across = best_grid(height, width, self._edge, *self.tiles)
        tiles = down * across
        planes = [self._tile(height, width, down, across, tile) for tile in range(tiles)]
        if tiles > 1:
            planes.append(self._tile(height, width, 1, 1, 0, first=tiles))
        plan = plan_tokens(planes, len(planes), self.shape.patches, len(planes) - 1)
        return replace(plan, markers=self.markers)

    def _tile(self, height: int, width: int, down: int, across: int, tile: int, *, first: int = 0) -> Plane:
        """The tokens of one tile of a plane of ``down`` × ``across``, which begins with crop ``first``."""
        plane = (down * self.shape.height, across * self.shape.width)
        geometry = self.steps.geometry(*self._edge)
        axes = Axis.pair(self.shape, geometry, (height, width), plane, plane, self._edge)
        row, column = divmod(tile, across)
        rows = range(row * self.shape.rows, (row + 1) * self.shape.rows)
        columns = range(column * self.shape.columns, (column + 1) * self.shape.columns)
        return Plane.of_crops(self.shape, axes, rows, columns, first=first, across=across)

    # -- pixels

    def prepare(self, image: Image.Image, images: int = 1) -> Prepared:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        if self.pixels_taken(image.width, image.height, images) > SIZE_LIMIT**2:
            raise InputError(f"a picture of {image.width} × {image.height} is too large or too narrow", hint="crop it")
        plan = self.plan(image.height, image.width, images)
        down, across = best_grid(image.height, image.width, self._edge, *self.tiles)
        height, width = self._edge
        whole = resized(image, (down * height, across * width), self.steps.resample)
        arrays = np.empty((plan.crops, height, width, 3), np.uint8)
        # Tile after tile, row by row.
        tiles = whole.reshape(down, height, across, width, 3).transpose(0, 2, 1, 3, 4)
        arrays[: down * across] = tiles.reshape(-1, height, width, 3)
        if plan.crops > down * across:
            arrays[-1] = resized(image, self._edge, self.steps.resample)
        return Prepared(self.steps.values(arrays), plan)


def _crops(tiles: int) -> int:
    """Crops of an image of so many tiles: a thumbnail stands behind several."""
    return tiles + (tiles > 1)


@lru_cache(maxsize=PLANS)
def _plan(processor: InternVL, height: int, width: int) -> TokenPlan:
    return processor._plan(height, width)
