"""The image processors that make one crop of an image: those of CLIP, SigLIP, DINOv2 (BiT) and LLaVA 1.5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from trtprune.errors import EngineDirError, InputError, shown
from trtprune.runtime.images.base import NO_CROP, Cropped, CropShape, Prepared, TokenPlan, check_size
from trtprune.runtime.images.planes import Axis, Plane, plan_tokens
from trtprune.runtime.images.settings import SIZE_LIMIT, channels, flag, named
from trtprune.runtime.images.steps import CropSteps, Geometry, padded_square

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Single"]

PADS = "LlavaImageProcessor"
CLIP: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "do_pad": False,
}
SIGLIP = CLIP | {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
DEFAULTS = {
    "CLIPImageProcessor": CLIP,
    "CLIPFeatureExtractor": CLIP,
    "BitImageProcessor": CLIP,
    PADS: CLIP,
    "SiglipImageProcessor": SIGLIP,
}
"""transformers' defaults by class, without the suffixes Fast and Pil."""
PLANS = 16


@dataclass(frozen=True)
class Single(Cropped):
    """One crop an image; its features are the visual tokens, and nothing has to be packed.

    Attributes:
        shape: The crop.
        steps: What is done to the image.
        background: Red, green and blue, 0 to 255, around an image that is padded to a square before the steps; None:
            it is not padded.
    """

    shape: CropShape
    steps: CropSteps
    background: tuple[int, int, int] | None

    name: ClassVar[str] = "single"
    kinds: ClassVar[tuple[str, ...]] = tuple(DEFAULTS)
    layouts: ClassVar[tuple[str, ...]] = ("model",)
    taps: ClassVar[int] = 1

    # -- settings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str) -> Self:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or "CLIPImageProcessor"
        name = kind.removesuffix("Fast").removesuffix("Pil") if isinstance(kind, str) else ""
        if name not in DEFAULTS:
            what = f"image processor {shown(kind)}" if isinstance(kind, str) else f"image_processor_type {shown(kind)}"
            raise EngineDirError(f"{where}: {what} is not supported", hint=f"supported: {', '.join(DEFAULTS)}")
        values = {**DEFAULTS[name], **{key: value for key, value in settings.items() if value is not None}}
        with named(where):
            if values.get("layout", cls.layouts[0]) not in cls.layouts:
                raise ValueError(f"layout {shown(values['layout'])} is none of {', '.join(cls.layouts)}")
            processor = cls(
                CropShape.from_settings(values),
                CropSteps.from_values(values),
                _background(values) if name == PADS and flag(values, "do_pad") else None,
            )
        if name != PADS and values["do_pad"]:
            raise EngineDirError(f"{where}: do_pad of {kind} is not supported", hint="set do_pad to false")
        size, expected = processor._fixed_size, (processor.shape.height, processor.shape.width)
        if size is not None and size != expected:
            raise EngineDirError(
                f"{where}: makes pictures of {size}, the vision graph takes {expected}",
                hint="size, crop_size and the vision_config's image_size must agree",
            )
        return processor

    @classmethod
    def model_settings(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: the model's own configuration has no say in this."""
        return {}

    def settings(self) -> dict[str, Any]:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        values = {**self.shape.settings(), "image_processor_type": PADS, **self.steps.settings()}
        if self.background is None:
            return values | {"do_pad": False}
        return values | {"do_pad": True, "background": list(self.background)}

    @property
    def _fixed_size(self) -> tuple[int, int] | None:
        """(height, width) of every image behind the steps; None where it depends on the image."""
        if self.steps.crop or (self.steps.resize and self.steps.resize[0] == "exact"):
            return self.steps.size_after(1, 1)
        # A square stays one.
        return self.steps.size_after(1, 1) if self.steps.resize and self.background else None

    # -- sizes

    @property
    def crops_range(self) -> tuple[int, int]:
        """One crop an image."""
        return 1, 1

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
        """Whether no image is padded: padding is not chosen from."""
        return self.background is None

    @property
    def tokens_range(self) -> tuple[int, int]:
        """The features of a crop."""
        return self.shape.features, self.shape.features

    def _outer(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the image with its padding."""
        return (height, width) if self.background is None else (max(height, width),) * 2

    def pixels_taken(self, width: int, height: int, images: int = 1) -> int:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        outer = self._outer(height, width)
        return max(math.prod(outer), math.prod(self.steps.size_after_resize(*outer)))

    def geometry(self, height: int, width: int) -> Geometry:
        """The crop's place in an image; parts of it may lie outside (padding)."""
        outer = self._outer(height, width)
        inner = self.steps.geometry(*outer)
        left, top = (outer[1] - width) // 2, (outer[0] - height) // 2
        return replace(inner, left=inner.left - left, top=inner.top - top)

    # -- plan and pixels

    def plan(self, height: int, width: int, images: int = 1) -> TokenPlan:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        check_size(height, width)
        return _plan(self, height, width)

    def _plan(self, height: int, width: int) -> TokenPlan:
        outer = self._outer(height, width)
        size, expected = self.steps.size_after(*outer), (self.shape.height, self.shape.width)
        if size != expected:
            raise InputError(
                f"the picture becomes {size} pixels; this model takes exactly {expected}",
                hint="its image processor neither crops nor resizes to a fixed size: scale the picture yourself",
            )
        geometry = self.steps.geometry(*outer)
        axes = Axis.pair(self.shape, geometry, (height, width), (height, width), outer, outer)
        plane = Plane.of_crops(self.shape, axes, range(self.shape.rows), range(self.shape.columns))
        plan = plan_tokens((plane,), 1, self.shape.patches, 0)
        return plan if self.shape.first_patch == 0 else _shifted(plan, self.shape.first_patch)

    def prepare(self, image: Image.Image, images: int = 1) -> Prepared:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        if self.pixels_taken(image.width, image.height) > SIZE_LIMIT * SIZE_LIMIT:
            raise InputError(f"a picture of {image.width} × {image.height} is too narrow", hint="crop it")
        plan = self.plan(image.height, image.width)
        picture = image if self.background is None else padded_square(np.asarray(image, np.uint8), self.background)
        return Prepared(self.steps.values(self.steps.pixels(picture)[None]), plan)


@lru_cache(maxsize=PLANS)
def _plan(processor: Single, height: int, width: int) -> TokenPlan:
    return processor._plan(height, width)


def _shifted(plan: TokenPlan, first_patch: int) -> TokenPlan:
    """The plan of features that begin with the CLS token (−1), or without the first patch (1)."""
    grid, boxes, padding = plan.grid, plan.boxes, plan.padding
    if first_patch > 0:
        grid, boxes, padding = grid[1:], boxes[1:], padding[1:]
    else:
        whole = np.concatenate((boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)))
        grid = np.concatenate(([[0, NO_CROP, NO_CROP]], grid)).astype(np.int32)
        boxes, padding = np.concatenate((whole[None], boxes)), np.concatenate(([False], padding))
    count = len(grid)
    return TokenPlan(
        crops=1,
        grid=grid,
        newline=np.full(count, NO_CROP, np.int32),
        pack_index=np.arange(count, dtype=np.int32)[:, None],
        pack_weight=np.ones((count, 1), np.float32),
        boxes=boxes,
        padding=padding,
        overview=0,
    )


def _background(values: Mapping[str, Any]) -> tuple[int, int, int]:
    """The colour of padding, the mean's whether or not it is taken from the pixels."""
    if values.get("background") is not None:
        colour = channels("background", values["background"])
    else:
        mean = channels("image_mean", values["image_mean"])
        if not all(0 <= value <= 1 for value in mean):
            raise ValueError(f"image_mean {mean} is no colour to pad with: values are 0 to 1")
        colour = (mean[0] * 255, mean[1] * 255, mean[2] * 255)
    if not all(0 <= value <= 255 for value in colour):
        raise ValueError(f"background {colour} is no colour: values are 0 to 255")
    red, green, blue = (int(value) for value in colour)
    return red, green, blue
