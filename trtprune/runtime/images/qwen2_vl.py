"""The image processor of Qwen2-VL and Qwen2.5-VL: any size, in whole visual tokens, for a packed tower.

Formulas and rounding are those of ``smart_resize`` in transformers 5.23 (``models/qwen2_vl``), which goes to the even
number at halves, as Python's ``round``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from trtprune.errors import InputError, shown
from trtprune.runtime.images.base import CropShape, Prepared, TokenPlan, check_size
from trtprune.runtime.images.packed import PackedShape, packed_rows
from trtprune.runtime.images.planes import Axis, Plane, plan_tokens
from trtprune.runtime.images.settings import flag, named, whole_number
from trtprune.runtime.images.steps import CropSteps, Geometry, resized

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MOST_ASPECT", "Qwen2Vl", "smart_size"]

MOST_ASPECT = 200
"""The largest ratio of an image's sides."""
MOST_TOKENS = 1 << 17
"""The largest number of visual tokens of an image that settings may allow."""
PLANS = 16


def smart_size(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """(height, width) that an image is scaled to: multiples of ``factor``, its pixels between two bounds.

    Args:
        height, width: Pixels of the image.
        factor: Side of a visual token in pixels.
        least, most: Bounds of the pixels.  A side is one token at least, so that a thin image can have more.
    """
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > most:
        scale = math.sqrt((height * width) / most)
        rows = max(1, math.floor(height / scale / factor))
        columns = max(1, math.floor(width / scale / factor))
    elif rows * columns * factor**2 < least:
        scale = math.sqrt(least / (height * width))
        rows, columns = math.ceil(height * scale / factor), math.ceil(width * scale / factor)
    return rows * factor, columns * factor


@dataclass(frozen=True)
class Qwen2Vl:
    """An image becomes a rectangle of visual tokens that follows its shape; there are no crops.

    Attributes:
        shape: The patches of the tower.
        steps: Rescaling and normalisation, and the filter of the resize.
        least, most: Bounds of the pixels that an image is scaled to.
    """

    shape: PackedShape
    steps: CropSteps
    least: int
    most: int

    name: ClassVar[str] = "qwen2_vl"
    kinds: ClassVar[tuple[str, ...]] = ("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")
    layouts: ClassVar[tuple[str, ...]] = ("model",)
    taps: ClassVar[int] = 1
    defaults: ClassVar[Mapping[str, Any]] = {
        "do_resize": True,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
    }
    """transformers' defaults of the class."""
    default_patch: ClassVar[tuple[int, int, int]] = (14, 2, 2)
    """transformers' defaults of ``patch_size``, ``merge_size`` and ``temporal_patch_size``."""

    # -- settings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str) -> Self:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        values = {**cls.defaults, **{key: value for key, value in settings.items() if value is not None}}
        with named(where):
            if values.get("layout", cls.layouts[0]) not in cls.layouts:
                raise ValueError(f"layout {shown(values['layout'])} is none of {', '.join(cls.layouts)}")
            shape = PackedShape.from_settings(values)
            cls._check_patches(settings, shape)
            if not flag(values, "do_resize"):
                raise ValueError("do_resize is false: pictures would not be whole visual tokens")
            least, most = _bounds(values, shape.factor)
            steps = CropSteps.from_values({**values, "do_resize": False, "do_center_crop": False})
        return cls(shape, steps, least, most)

    @classmethod
    def _check_patches(cls, settings: Mapping[str, Any], shape: PackedShape) -> None:
        """Raises ValueError where the file's patches are not the tower's."""
        own = {"patch_size": shape.patch, "merge_size": shape.merge, "temporal_patch_size": shape.frames}
        for (name, value), default in zip(own.items(), cls.default_patch, strict=True):
            stated = settings.get(name)
            # In an engine directory the shape alone is stored.
            if stated is None and "patch_size" in settings:
                stated = default
            if stated is not None and stated != value:
                raise ValueError(f"{name} is {shown(stated)}, and the vision tower's {value}")

    @classmethod
    def model_settings(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: the sizes of patches come with the shape."""
        return {}

    def settings(self) -> dict[str, Any]:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        values = {**self.shape.settings(), "image_processor_type": self.kinds[0], **self.steps.settings()}
        del values["do_center_crop"]
        return values | {"do_resize": True, "size": {"shortest_edge": self.least, "longest_edge": self.most}}

    # -- sizes

    @property
    def crops_range(self) -> tuple[int, int]:
        """An image counts as one crop."""
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
        """The number of visual tokens follows the image's size."""
        return False

    @property
    def tokens_range(self) -> tuple[int, int]:
        """Bounds of N.  The upper one is reached, unless the bounds of the pixels lie within a factor of two."""
        return _tokens_range(self.least, self.most, self.shape.factor)

    @property
    def vision_dims(self) -> dict[str, tuple[int, int]]:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        fewest, most = self.tokens_range
        found = {"patches": (fewest * self.shape.unit, most * self.shape.unit)}
        if self.shape.window:
            found["windows"] = (1, _most_windows(most, self.shape.window))
        return found

    def _size(self, height: int, width: int) -> tuple[int, int]:
        check_size(height, width)
        if max(height, width) / min(height, width) > MOST_ASPECT:
            raise InputError(
                f"a picture of {width} × {height} is too narrow: this model takes sides of up to {MOST_ASPECT} to 1",
                hint="crop it",
            )
        return smart_size(height, width, self.shape.factor, self.least, self.most)

    def pixels_taken(self, width: int, height: int, images: int = 1) -> int:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        return max(width * height, math.prod(self._size(height, width)))

    def geometry(self, height: int, width: int) -> Geometry | None:
        """None: the grid of visual tokens differs from image to image, and is in the plan."""
        return None

    # -- plan and pixels

    def plan(self, height: int, width: int, images: int = 1) -> TokenPlan:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        return _plan((height, width), self._size(height, width), self.shape.factor)

    def arrays(self, plan: TokenPlan) -> dict[str, np.ndarray]:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        return self.shape.arrays(plan.grid)

    def prepare(self, image: Image.Image, images: int = 1) -> Prepared:
        """See :class:`~trtprune.runtime.images.base.Processor`."""
        plan = self.plan(image.height, image.width)
        pixels = resized(image, self._size(image.height, image.width), self.steps.resample)
        return Prepared(packed_rows(self.steps.values(pixels[None])[0], self.shape), plan, self.arrays(plan))


@lru_cache(maxsize=PLANS)
def _plan(image: tuple[int, int], size: tuple[int, int], factor: int) -> TokenPlan:
    """The visual tokens of an image of (height, width) that is stretched to ``size``."""
    shape = CropShape(*size, (factor, factor))
    geometry = Geometry(0.0, 0.0, image[1] / size[1], image[0] / size[0], size[1], size[0])
    axes = Axis.pair(shape, geometry, image, image, image, image)
    plane = Plane.of_crops(shape, axes, range(shape.rows), range(shape.columns))
    return plan_tokens((plane,), 1, shape.patches, 0)


def _bounds(values: Mapping[str, Any], factor: int) -> tuple[int, int]:
    """The bounds of an image's pixels; ``min_pixels`` and ``max_pixels`` go before those of ``size``.

    Raises:
        ValueError: for a bound that is missing or out of range, or two that contradict each other.
    """
    size = values["size"]
    if not isinstance(size, Mapping):
        raise ValueError(f"size {shown(size)} is no object with shortest_edge and longest_edge")
    found = []
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        value = values.get(name)
        if value is None:
            name, value = f"size.{edge}", size.get(edge)
        if value is None:
            raise ValueError(f"size {shown(dict(size))} has no {edge}")
        found.append((name, whole_number(name, value, 1, MOST_TOKENS * factor**2)))
    (low_name, low), (high_name, high) = found
    if low > high:
        raise ValueError(f"{low_name} {low} is above {high_name} {high}")
    return low, high


@lru_cache(maxsize=PLANS)
def _tokens_range(least: int, most: int, factor: int) -> tuple[int, int]:
    area = most // factor**2
    # An image with exactly these rows and columns is not scaled; one of another size is cut to no more than that.
    largest = next((n for n in range(area, 0, -1) if _has_shape(n)), 1)
    # Where one side would be less than a token, it is one, and the other one is as long as the shape says.
    largest = max(largest, int(math.sqrt(MOST_ASPECT * most) / factor)) if area < MOST_ASPECT else largest
    # An image that is scaled up gains up to a line of tokens on both sides; one that is scaled down loses as much.
    small = -(-least // factor**2)
    sides = np.arange(1, math.isqrt(small) + 2)
    grown = max(int(((sides + 1) * -(-small // sides)).max()), math.ceil(math.sqrt(MOST_ASPECT * small)))
    sides = np.arange(1, math.isqrt(area) + 2)
    cut = int((np.maximum(sides - 1, 1) * np.maximum(area // sides, 1)).min())
    return min(small, cut), max(largest, grown)


def _has_shape(tokens: int) -> bool:
    """Whether a number of tokens is that of a rectangle which is not too narrow."""
    first = max(1, math.isqrt(tokens // MOST_ASPECT))
    return any(
        tokens % side == 0 and tokens // side <= MOST_ASPECT * side for side in range(first, math.isqrt(tokens) + 1)
    )


def _most_windows(tokens: int, window: int) -> int:
    """An upper bound of the windows of an image with up to so many visual tokens."""
    lines = np.arange(1, math.isqrt(tokens) + 1)
    # Rounded to whole tokens, an image's sides can differ a little more than the image's own.
    across = np.minimum(tokens // lines, MOST_ASPECT * (lines + 1))
    return int((-(-lines // window) * -(-across // window)).max())
