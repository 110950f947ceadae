"""The image processor of Idefics3 and SmolVLM: tiles of the enlarged image, each a span, and the whole image last.

The image is scaled to a longest edge, stretched to whole tiles and cut row by row; the last crop is the whole stretched
image as one tile.  The prompt says row and column of each tile in front of its visual tokens.  Formulas, rounding and
text are transformers' (``models/smolvlm/image_processing_pil_smolvlm.py`` and ``models/smolvlm/processing_smolvlm.py``,
``models/idefics3`` alike, 5.23).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from trtprune.errors import shown
from trtprune.runtime.images.base import TokenPlan, check_size
from trtprune.runtime.images.planes import Plane, Size, plan_tokens
from trtprune.runtime.images.settings import edge, flag, named
from trtprune.runtime.images.steps import CropSteps, resized
from trtprune.runtime.images.tiled import LAYOUT, MAX_TILES, MAX_TOKENS, Tiled, crops_of, square_crop

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["AROUND", "WHOLE", "SmolVLM", "markers", "plane_size", "scaled_size"]

MAX_SIDE = 4096
"""No side is scaled to more pixels."""
AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"
"""The tokens in front of each span, and of the whole image."""


def scaled_size(height: int, width: int, longest: int) -> Size:
    """(height, width) of an image whose longer side becomes ``longest`` pixels, the other one an even number.

    More than :data:`MAX_SIDE` pixels are scaled down again.
    """
    aspect = width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        height, width = longest, int(longest * aspect)
        width += width % 2
    return _within(max(height, 1), max(width, 1))


def plane_size(height: int, width: int, tile: int) -> Size:
    """(height, width) of the plane of whole tiles that an image of such a size is stretched to."""
    aspect = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        return math.ceil(int(width / aspect) / tile) * tile, width
    height = math.ceil(height / tile) * tile
    return height, math.ceil(int(height * aspect) / tile) * tile


def markers(rows: int, columns: int) -> tuple[str, ...]:
    """The text in front of, between and behind the spans of an image of ``rows`` × ``columns`` tiles and itself.

    One tile is no tile: the image is a single span then.
    """
    if rows * columns == 1:
        return (f"{AROUND}{WHOLE}", AROUND)
    places = [f"{AROUND}<row_{row + 1}_col_{column + 1}>" for row in range(rows) for column in range(columns)]
    # A line ends with a newline, the tiles with another one.
    for row in range(1, rows):
        places[row * columns] = "\n" + places[row * columns]
    return (*places, f"\n\n{AROUND}{WHOLE}", AROUND)


@dataclass(frozen=True)
class SmolVLM(Tiled):
    """See the module; a :class:`~trtprune.runtime.images.base.Processor`.

    Attributes:
        longest: Pixels of the longer side of an image before it is stretched to tiles.
        splitting: Whether an image is cut into tiles; else it is a single crop.
    """

    longest: int
    splitting: bool

    name: ClassVar[str] = "smolvlm"
    kinds: ClassVar[tuple[str, ...]] = ("SmolVLMImageProcessor", "Idefics3ImageProcessor")
    defaults: ClassVar[Mapping[str, Any]] = {
        "do_resize": True,
        "size": {"longest_edge": 4 * 364},
        "max_image_size": {"longest_edge": 364},
        "do_image_splitting": True,
        "resample": 1,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
        "do_pad": True,
        "layout": LAYOUT,
    }
    """transformers' defaults of the processor's class."""

    # -- settings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str) -> Self:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        values = {**cls.defaults, **{key: value for key, value in settings.items() if value is not None}}
        with named(where):
            shape = square_crop(values)
            flag(values, "do_pad")  # puts further crops behind those of smaller images in a batch, which nobody reads
            if not flag(values, "do_resize"):
                raise ValueError("do_resize is false, and images of any size have to become a bounded number of crops")
            tile = _longest_edge(values, "max_image_size")
            if tile != shape.height:
                raise ValueError(
                    f"max_image_size: tiles are {tile} × {tile} pixels, the vision graph takes {shape.height} × "
                    f"{shape.width}"
                )
            steps = CropSteps.from_values({**values, "do_resize": False, "do_center_crop": False})
            made = cls(shape, steps, _longest_edge(values, "size"), flag(values, "do_image_splitting"))
            side = math.ceil(min(made.longest + 1, MAX_SIDE) / tile)
            if made.splitting and side * side > MAX_TILES:
                raise ValueError(
                    f"size leads to {side * side} tiles of {tile} × {tile} pixels, above the limit of {MAX_TILES}"
                )
            if made.crops_range[1] * shape.patches > MAX_TOKENS:
                raise ValueError(
                    f"size leads to {made.crops_range[1]} crops of {shape.patches} visual tokens, above the limit of "
                    f"{MAX_TOKENS} in all"
                )
            return made

    def settings(self) -> dict[str, Any]:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        return {
            **self.shape.settings(),
            **self.steps.settings(),
            "do_resize": True,
            "size": {"longest_edge": self.longest},
            "max_image_size": {"longest_edge": self.shape.height},
            "do_image_splitting": self.splitting,
            "do_pad": True,
            "layout": LAYOUT,
        }

    # -- sizes

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tiles of an image, down and across; 1 × 1 is the image as a single crop."""
        if not self.splitting:
            return 1, 1
        return self._tiles_of_scaled(*scaled_size(height, width, self.longest))

    @cached_property
    def crops_range(self) -> tuple[int, int]:
        """Bounds of an image's crops."""
        if not self.splitting:
            return 1, 1
        counts = [crops_of(math.prod(self._tiles_of_scaled(*size))) for size in self._scaled_sizes()]
        return min(counts), max(counts)

    def _scaled_sizes(self) -> Iterator[Size]:
        """All sizes that :func:`scaled_size` gives: one side is the longest, the other any even number or 1."""
        longest = self.longest
        for other in (1, *range(2, longest + longest % 2 + 1, 2)):
            yield _within(other, longest)
            yield _within(longest, other)

    def _tiles_of_scaled(self, height: int, width: int) -> tuple[int, int]:
        plane = plane_size(height, width, self.shape.height)
        return plane[0] // self.shape.height, plane[1] // self.shape.width

    def pixels_taken(self, width: int, height: int, images: int = 1) -> int:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        check_size(height, width)
        scaled = scaled_size(height, width, self.longest)
        arrays = crops_of(math.prod(self.grid(height, width))) * math.prod(self._edge)
        return max(width * height, math.prod(scaled), arrays)

    def _plan_of(self, planes: list[Plane], down: int, across: int) -> TokenPlan:
        spans = (self.shape.patches,) * len(planes)
        return plan_tokens(planes, len(planes), self.shape.patches, len(planes) - 1, spans, markers(down, across))

    def _pixels(self, image: Image.Image, plane: Size) -> tuple[np.ndarray, Any]:
        scaled = resized(image, scaled_size(image.height, image.width, self.longest), self.steps.resample)
        whole = resized(scaled, plane, self.steps.resample)
        return whole, whole


def _within(height: int, width: int) -> Size:
    """A size, or a smaller one of the same shape with no more than :data:`MAX_SIDE` pixels on a side."""
    aspect = width / height
    if width >= height and width > MAX_SIDE:
        width, height = MAX_SIDE, int(MAX_SIDE / aspect)
    elif height > width and height > MAX_SIDE:
        height, width = MAX_SIDE, int(MAX_SIDE * aspect)
    return max(height, 1), max(width, 1)


def _longest_edge(values: Mapping[str, Any], name: str) -> int:
    """A setting of the form {"longest_edge": pixels}."""
    value = values[name]
    if not isinstance(value, Mapping) or value.get("longest_edge") is None:
        raise ValueError(f'{name} {shown(value)} is not of the form {{"longest_edge": PIXELS}}')
    return edge(name, value["longest_edge"])
