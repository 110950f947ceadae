"""The image processor of LLaVA-OneVision."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trtprune.errors import InputError, shown
from trtprune.runtime.images.anyres import OVERVIEW, AnyRes, unpadded
from trtprune.runtime.images.base import TokenPlan, check_size
from trtprune.runtime.images.planes import Axis, Plane, plan_tokens
from trtprune.runtime.images.settings import channels
from trtprune.runtime.images.steps import padded_square

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["LlavaOnevision"]

SIDES = tuple(384 * n for n in range(1, 7))
PINPOINTS = tuple((height, width) for height in SIDES for width in SIDES)
TOLERANCE = 1.1


@dataclass(frozen=True)
class LlavaOnevision(AnyRes):
    """An overview and a plane of tiles, which is shrunk if it has many more patches than ``most`` crops.

    If a prompt has several images, each is a single crop, padded to a square, with one newline token at its end.

    Attributes:
        most: Largest size of the plane of tiles, in crops: 9 for ``anyres_max_9``.
        background: Red, green and blue of the padding to a square, 0 to 1.
    """

    most: int
    background: tuple[float, float, float]

    name: ClassVar[str] = "llava_onevision"
    kinds: ClassVar[tuple[str, ...]] = ("LlavaOnevisionImageProcessor",)
    taps: ClassVar[int] = 4
    model_pinpoints: ClassVar[Sequence[Sequence[int]]] = PINPOINTS
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
        "do_pad": True,
        "image_grid_pinpoints": PINPOINTS,
        "vision_aspect_ratio": "anyres_max_9",
    }

    # -- settings

    @classmethod
    def _fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        ratio = values["vision_aspect_ratio"]
        match = re.fullmatch(r"anyres_max_([1-9][0-9]{0,3})", ratio) if isinstance(ratio, str) else None
        if match is None:
            raise ValueError(f"vision_aspect_ratio {shown(ratio)} is not supported, anyres_max_9 and the like are")
        mean = channels("image_mean", values["image_mean"])
        if not all(0 <= value <= 1 for value in mean):
            raise ValueError(f"image_mean {mean} is no colour to pad with: values are 0 to 1")
        return super()._fields(values) | {"most": int(match[1]), "background": mean}

    @classmethod
    def model_settings(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The model's pinpoints, which must be the processor's, and the limit of the plane's size."""
        settings = super().model_settings(config)
        if config.get("vision_aspect_ratio") is not None:
            settings["vision_aspect_ratio"] = config["vision_aspect_ratio"]
        return settings

    def settings(self) -> dict[str, Any]:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        return super().settings() | {
            "image_mean": list(self.background),
            "vision_aspect_ratio": f"anyres_max_{self.most}",
        }

    # -- sizes

    @property
    def crops_range(self) -> tuple[int, int]:
        """Bounds of an image's crops: a single crop if a prompt has several images."""
        return 1, super().crops_range[1]

    @property
    def tokens_range(self) -> tuple[int, int]:
        """Bounds of N over all images."""
        least, most = super().tokens_range
        alone = self.shape.patches + 1
        return min(least, alone), max(most, alone)

    def _plane_tokens(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        lines, places = self._shrunk(rows, columns)
        return lines * places + lines

    def _shrunk(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lines, and tokens per line, of planes with these rows and columns of patches, int64."""
        ratio = np.sqrt(rows * columns / (self.most * self.shape.rows**2))
        ratio = np.where(ratio > TOLERANCE, ratio, 1.0)
        return (rows // ratio).astype(np.int64), (columns // ratio).astype(np.int64)

    def pixels_taken(self, width: int, height: int, images: int = 1) -> int:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        if images == 1:
            return super().pixels_taken(width, height)
        check_size(height, width)
        side = max(width, height)
        return max(side**2, math.prod(self.steps.size_after_resize(side, side)), self.shape.height**2)

    # -- plan

    def _plan(self, height: int, width: int, images: int) -> TokenPlan:
        if images == 1:
            return super()._plan(height, width, images)
        side = max(height, width)
        if self.steps.size_after(side, side) != (self.shape.height, self.shape.width):
            raise InputError(
                f"one of several images is not brought to {self.shape.height} × {self.shape.width} pixels",
                hint="the image processor neither resizes nor crops: ask about one image at a time",
            )
        plane = self._crop_plane((height, width), (height, width), (side, side), newline="plane")
        return plan_tokens((plane,), 1, self.shape.patches, OVERVIEW)

    def _tile_plane(self, height: int, width: int, axes: tuple[Axis, Axis], down: int, across: int) -> Plane:
        rows, columns = unpadded(height, width, down * self.shape.rows, across * self.shape.columns)
        lines, places = (int(n) for n in self._shrunk(np.array(len(rows)), np.array(len(columns))))
        if (lines, places) == (len(rows), len(columns)):
            return super()._tile_plane(height, width, axes, down, across)
        if not lines or not places:
            raise InputError(
                f"an image of {width} × {height} is too narrow: nothing is left of its tiles", hint="crop it"
            )
        return Plane.shrunk(
            self.shape, axes, rows, columns, (lines, places), first=OVERVIEW + 1, across=across, newline="line"
        )

    # -- pixels

    def _crops(self, image: Image.Image, images: int) -> Iterator[np.ndarray]:
        if images == 1:
            yield from super()._crops(image, images)
            return
        red, green, blue = (int(value * 255) for value in self.background)
        yield padded_square(np.asarray(image, np.uint8), (red, green, blue))
