"""The steps from 8-bit RGB pixels to one array of the vision graph: resize, centre crop, rescale, normalise.

They are those of transformers' Pillow processors, with the same order and rounding, so that the numbers are equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.runtime.images.settings import channels, flag, height_and_width, number, resample_filter, resize_target

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["CropSteps", "Geometry", "padded_square", "resized"]


@dataclass(frozen=True)
class Geometry:
    """The place of the model's input in the image: pixel (x, y) of the input is (left + x·scale_x, top + y·scale_y).

    All in pixels of the upright image; the input is ``width`` × ``height`` pixels.
    """

    left: float
    top: float
    scale_x: float
    scale_y: float
    width: int
    height: int


@dataclass(frozen=True)
class CropSteps:
    """The settings of the four steps; None: the step is omitted.

    Attributes:
        resize: ("shortest", edge, 0) or ("exact", height, width).
        resample: Pillow's number of the filter.
        crop: (height, width) of the part cut from the middle; a smaller image is surrounded by zeros.
        rescale: Factor of the pixels.
        mean, std: Subtracted from red, green and blue, and their divisors.
    """

    resize: tuple[str, int, int] | None
    resample: int
    crop: tuple[int, int] | None
    rescale: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> CropSteps:
        """Reads transformers' settings; raises KeyError, TypeError, ValueError or OverflowError for an invalid one.

        Args:
            values: ``do_resize``, ``size``, ``resample``, ``do_center_crop``, ``crop_size``, ``do_rescale``,
                ``rescale_factor``, ``do_normalize``, ``image_mean`` and ``image_std``.
        """
        normalize = flag(values, "do_normalize")
        mean = channels("image_mean", values["image_mean"]) if normalize else None
        std = channels("image_std", values["image_std"]) if normalize else None
        if std is not None and not all(abs(np.float32(value)) > 0 for value in std):
            raise ValueError(f"image_std {std} has a zero: every picture would be infinite")
        steps = cls(
            resize=resize_target(values) if flag(values, "do_resize") else None,
            resample=resample_filter(values["resample"]),
            crop=height_and_width("crop_size", values["crop_size"]) if flag(values, "do_center_crop") else None,
            rescale=number("rescale_factor", values["rescale_factor"]) if flag(values, "do_rescale") else None,
            mean=mean,
            std=std,
        )
        with np.errstate(over="ignore"):
            if not np.isfinite(steps.table).all():
                raise ValueError("rescale_factor, image_mean and image_std lead beyond every float32")
        return steps

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON data, the values that :meth:`from_values` reads."""
        values: dict[str, Any] = {
            "do_resize": self.resize is not None,
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            "do_rescale": self.rescale is not None,
            "do_normalize": self.mean is not None,
        }
        if self.resize is not None:
            kind, first, second = self.resize
            values["size"] = {"shortest_edge": first} if kind == "shortest" else {"height": first, "width": second}
        if self.crop is not None:
            values["crop_size"] = {"height": self.crop[0], "width": self.crop[1]}
        if self.rescale is not None:
            values["rescale_factor"] = self.rescale
        if self.mean is not None and self.std is not None:
            values |= {"image_mean": list(self.mean), "image_std": list(self.std)}
        return values

    @cached_property
    def table(self) -> np.ndarray:
        """The result of the last two steps for each 8-bit value: float32 [3, 256]."""
        levels = np.arange(256)
        # float64 and back: transformers rescales so, and the last bit of a float32 product would differ.
        values = (levels * self.rescale if self.rescale is not None else levels).astype(np.float32)
        table = np.stack([values] * 3)
        if self.mean is not None and self.std is not None:
            table = (table - np.array(self.mean, np.float32)[:, None]) / np.array(self.std, np.float32)[:, None]
        return table

    def size_after_resize(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the first step."""
        if self.resize is None:
            return height, width
        kind, first, second = self.resize
        if kind == "exact":
            return first, second
        short, long = min(height, width), max(height, width)
        # Truncated, not rounded, as in torchvision and transformers.
        other = int(first * long / short)
        return (first, other) if height <= width else (other, first)

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after all steps."""
        return self.crop or self.size_after_resize(height, width)

    def pixels(self, picture: Image.Image | np.ndarray) -> np.ndarray:
        """The first two steps: an RGB image, or uint8 [H, W, 3], to uint8 of the size :meth:`size_after` gives."""
        size = picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)
        pixels = resized(picture, self.size_after_resize(*size), self.resample)
        return pixels if self.crop is None else _center_crop(pixels, *self.crop)

    def values(self, pixels: np.ndarray) -> np.ndarray:
        """The last two steps: uint8 [crops, H, W, 3] to float32 [crops, 3, H, W]."""
        values = np.empty((pixels.shape[0], 3, *pixels.shape[1:3]), np.float32)
        for crop, into in zip(pixels, values, strict=True):
            for channel in range(3):
                # No index is out of range: "clip" only spares a copy.
                np.take(self.table[channel], crop[..., channel], out=into[channel], mode="clip")
        return values

    def geometry(self, height: int, width: int) -> Geometry:
        """The place of the result in pixels of (height, width); parts of it may be outside, where zeros are."""
        new_height, new_width = self.size_after_resize(height, width)
        scale_x, scale_y = width / new_width, height / new_height
        left, top = 0.0, 0.0
        if self.crop is not None:
            top = _crop_start(new_height, self.crop[0]) * scale_y
            left = _crop_start(new_width, self.crop[1]) * scale_x
            new_height, new_width = self.crop
        return Geometry(left, top, scale_x, scale_y, new_width, new_height)


def resized(picture: Image.Image | np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """An RGB image, or uint8 [H, W, 3], at another (height, width) as Pillow resizes; perhaps the same array."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        if picture.shape[:2] == size:
            return picture
        picture = Image.fromarray(np.ascontiguousarray(picture))
    if (picture.height, picture.width) != size:  # else Pillow would copy
        picture = picture.resize((size[1], size[0]), resample=Image.Resampling(resample))
    return np.asarray(picture, np.uint8)


def padded_square(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels uint8 [H, W, 3] in the middle of a square of a colour."""
    height, width = pixels.shape[:2]
    if height == width:
        return pixels
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[...] = colour
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _crop_start(size: int, crop: int) -> int:
    """First row of the crop; negative if the image is smaller and surrounded by zeros."""
    if crop <= size:
        return (size - crop) // 2
    return -math.ceil((crop - size) / 2)


def _center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    result = np.zeros((height, width, pixels.shape[2]), pixels.dtype)
    spans = []
    for size, crop in ((pixels.shape[0], height), (pixels.shape[1], width)):
        start = _crop_start(size, crop)
        source = slice(max(0, start), min(size, start + crop))
        spans.append((source, slice(source.start - start, source.stop - start)))
    (rows, to_rows), (columns, to_columns) = spans
    result[to_rows, to_columns] = pixels[rows, columns]
    return result
