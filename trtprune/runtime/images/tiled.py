"""The common part of processors that cut an image into tiles, each with tokens of its own, and put the whole image
behind several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trtprune.errors import InputError, shown
from trtprune.runtime.images.base import Cropped, CropShape, Prepared, TokenPlan, check_size
from trtprune.runtime.images.planes import Axis, Plane, Size
from trtprune.runtime.images.settings import SIZE_LIMIT
from trtprune.runtime.images.steps import CropSteps, resized

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["LAYOUT", "MAX_TILES", "MAX_TOKENS", "Tiled", "crops_of", "square_crop"]

MAX_TILES = 256
MAX_TOKENS = 1 << 17
PLANS = 32
"""Plans that are kept; each has about 80 bytes a token."""
LAYOUT = "model"


def crops_of(tiles: int) -> int:
    """Crops of an image of so many tiles: the whole image stands behind several."""
    return tiles + (tiles > 1)


def square_crop(values: Mapping[str, Any]) -> CropShape:
    """The crop of a processor's settings.

    Raises:
        ValueError: for one that is not square or has a feature beside those of its visual tokens, or another layout.
    """
    shape = CropShape.from_settings(values)
    if shape.height != shape.width or shape.rows != shape.columns:
        raise ValueError(f"crops of {shape.height} × {shape.width} pixels are not square")
    if shape.first_patch != 0:
        raise ValueError("crops of this processor have a feature for each visual token, and none beside")
    if values["layout"] != LAYOUT:
        raise ValueError(f"layout {shown(values['layout'])} is none of {LAYOUT}")
    return shape


@dataclass(frozen=True)
class Tiled(Cropped, ABC):
    """A :class:`~trtprune.runtime.images.base.Processor` but for its settings and the choice of tiles.

    Attributes:
        shape: A crop, which is square.
        steps: The filter of all resizing, and what is done to each crop's pixels.
    """

    shape: CropShape
    steps: CropSteps

    layouts: ClassVar[tuple[str, ...]] = (LAYOUT,)
    taps: ClassVar[int] = 1

    @classmethod
    def model_settings(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: the model's own configuration has no say in this."""
        return {}

    # -- what a processor of this kind decides

    @property
    @abstractmethod
    def crops_range(self) -> tuple[int, int]:
        """Bounds of an image's crops."""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tiles of an image, down and across; 1 × 1 is the image as a single crop."""

    @abstractmethod
    def pixels_taken(self, width: int, height: int, images: int = 1) -> int:
        """See :class:`~trtprune.runtime.images.base.Processor`."""

    @abstractmethod
    def _plan_of(self, planes: list[Plane], down: int, across: int) -> TokenPlan:
        """The plan of an image of these planes, one a crop."""

    @abstractmethod
    def _pixels(self, image: Image.Image, plane: Size) -> tuple[np.ndarray, Any]:
        """The image as large as all tiles together, uint8 [H, W, 3], and what its last crop is resized from."""

    # -- the rest follows

    @property
    def _edge(self) -> Size:
        """(height, width) of a crop."""
        return self.shape.height, self.shape.width

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

    def plan(self, height: int, width: int, images: int = 1) -> TokenPlan:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        check_size(height, width)
        return _plan(self, height, width)

    def _plan(self, height: int, width: int) -> TokenPlan:
        """As :meth:`plan`, of a size that is one."""
        down, across = self.grid(height, width)
        tiles = down * across
        planes = [self._tile(height, width, down, across, tile) for tile in range(tiles)]
        if tiles > 1:
            planes.append(self._tile(height, width, 1, 1, 0, first=tiles))
        return self._plan_of(planes, down, across)

    def _tile(self, height: int, width: int, down: int, across: int, tile: int, *, first: int = 0) -> Plane:
        """The tokens of one tile of a plane of ``down`` × ``across``, which begins with crop ``first``."""
        plane = (down * self.shape.height, across * self.shape.width)
        axes = Axis.pair(self.shape, self.steps.geometry(*self._edge), (height, width), plane, plane, self._edge)
        row, column = divmod(tile, across)
        rows = range(row * self.shape.rows, (row + 1) * self.shape.rows)
        columns = range(column * self.shape.columns, (column + 1) * self.shape.columns)
        return Plane.of_crops(self.shape, axes, rows, columns, first=first, across=across)

    def prepare(self, image: Image.Image, images: int = 1) -> Prepared:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        if self.pixels_taken(image.width, image.height, images) > SIZE_LIMIT**2:
            raise InputError(f"a picture of {image.width} × {image.height} is too large or too narrow", hint="crop it")
        plan = self.plan(image.height, image.width, images)
        down, across = self.grid(image.height, image.width)
        height, width = self._edge
        whole, last = self._pixels(image, (down * height, across * width))
        arrays = np.empty((plan.crops, height, width, 3), np.uint8)
        # Tile after tile, row by row.
        tiles = whole.reshape(down, height, across, width, 3).transpose(0, 2, 1, 3, 4)
        arrays[: down * across] = tiles.reshape(-1, height, width, 3)
        if plan.crops > down * across:
            arrays[-1] = resized(last, self._edge, self.steps.resample)
        return Prepared(self.steps.values(arrays), plan)


@lru_cache(maxsize=PLANS)
def _plan(processor: Tiled, height: int, width: int) -> TokenPlan:
    return processor._plan(height, width)
