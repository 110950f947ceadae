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

from trtprune.errors import shown
from trtprune.runtime.images.base import TokenPlan, check_size
from trtprune.runtime.images.planes import Plane, Size, plan_tokens
from trtprune.runtime.images.settings import flag, height_and_width, marker, named, whole_number
from trtprune.runtime.images.steps import CropSteps, resized
from trtprune.runtime.images.tiled import LAYOUT, MAX_TILES, MAX_TOKENS, Tiled, crops_of, square_crop

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["InternVL", "best_grid"]

GRIDS = 16
"""Bounds of tiles whose grids are kept."""


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


@lru_cache(maxsize=GRIDS)
def _grids(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """Grids (down, across) of ``least`` to ``most`` tiles: fewest tiles first, of equal numbers the narrowest."""
    found = [(n // across, across) for n in range(least, most + 1) for across in range(1, n + 1) if n % across == 0]
    return tuple(found)


@dataclass(frozen=True)
class InternVL(Tiled):
    """Tiles, row by row, and a thumbnail behind them if there is more than one; a
    :class:`~trtprune.runtime.images.base.Processor`.

    Attributes:
        tiles: Bounds of the number of tiles.
        markers: The text in front of an image's visual tokens, and that behind them.
    """

    tiles: tuple[int, int]
    markers: tuple[str, str]

    name: ClassVar[str] = "internvl"
    kinds: ClassVar[tuple[str, ...]] = ("GotOcr2ImageProcessor",)
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
            shape = square_crop(values)
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

    def settings(self) -> dict[str, Any]:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        least, most = self.tiles
        own = {"min_patches": least, "max_patches": most, "markers": list(self.markers), "layout": LAYOUT}
        return {**self.shape.settings(), **self.steps.settings(), **own}

    # -- tiles

    @property
    def crops_range(self) -> tuple[int, int]:
        """Bounds of an image's crops."""
        least, most = map(crops_of, self.tiles)
        return least, most

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tiles of an image, down and across."""
        return best_grid(height, width, self._edge, *self.tiles)

    def pixels_taken(self, width: int, height: int, images: int = 1) -> int:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        check_size(height, width)
        return max(width * height, crops_of(math.prod(self.grid(height, width))) * math.prod(self._edge))

    def _plan_of(self, planes: list[Plane], down: int, across: int) -> TokenPlan:
        plan = plan_tokens(planes, len(planes), self.shape.patches, len(planes) - 1)
        return replace(plan, markers=self.markers)

    def _pixels(self, image: Image.Image, plane: Size) -> tuple[np.ndarray, Any]:
        return resized(image, plane, self.steps.resample), image
