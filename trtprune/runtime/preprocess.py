"""From an RGB picture to ``pixel_values``, as the checkpoint's image processor does it in transformers.

Driven by ``preprocessor_config.json``.  The steps are those of transformers' Pillow processors, in their order and
rounding, so that the numbers are equal, not merely close.  Reading files is in ``pictures``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.errors import EngineDirError, InputError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Geometry", "Preprocessor"]

FLOAT32_MAX = 3.4e38
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
SIZE_LIMIT = 16384
HINT = "correct the checkpoint's preprocessor_config.json, or fetch it again, and build again"
CLIP_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": OPENAI_MEAN,
    "image_std": OPENAI_STD,
    "do_pad": False,
}
SIGLIP_DEFAULTS = CLIP_DEFAULTS | {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": HALF,
    "image_std": HALF,
}
PROCESSORS = {
    "CLIPImageProcessor": CLIP_DEFAULTS,
    "CLIPFeatureExtractor": CLIP_DEFAULTS,
    "BitImageProcessor": CLIP_DEFAULTS,
    "LlavaImageProcessor": CLIP_DEFAULTS,
    "SiglipImageProcessor": SIGLIP_DEFAULTS,
}
"""Processor class (without the suffixes Fast and Pil) → what its config leaves out."""


@dataclass(frozen=True)
class Geometry:
    """Where the model's input lies in the picture: pixel (x, y) of the input is (left + x·scale_x, top + y·scale_y).

    All in pixels of the picture as it is shown upright; the input is ``width`` × ``height`` pixels.
    """

    left: float
    top: float
    scale_x: float
    scale_y: float
    width: int
    height: int


@dataclass(frozen=True)
class Preprocessor:
    """One model's image processor; make it with :meth:`from_config`."""

    processor: str
    resize: tuple[str, int, int] | None
    """("shortest", edge, 0) or ("exact", height, width)."""
    resample: int
    crop: tuple[int, int] | None
    pad_square: bool
    rescale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    output: tuple[int, int]
    """(height, width) the vision graph takes."""

    @classmethod
    def from_files(cls, files: Mapping[str, str], image_size: tuple[int, int]) -> Preprocessor:
        """Reads the image processor's settings out of a checkpoint's text files, content by name.

        Raises:
            EngineDirError: as :meth:`from_config`, or if there are none.
        """
        settings, where = _processor_config(files)
        return cls.from_config(settings, image_size, where)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], image_size: tuple[int, int], where: str = "") -> Preprocessor:
        """Reads the content of ``preprocessor_config.json``.

        Args:
            config: The parsed file.
            image_size: (height, width) of the vision graph's input.
            where: File name for errors.

        Raises:
            EngineDirError: for a processor that is not supported, or settings that do not lead to ``image_size``.
        """
        kind = config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIPImageProcessor"
        name = kind.removesuffix("Fast").removesuffix("Pil") if isinstance(kind, str) else ""
        if name not in PROCESSORS:
            raise EngineDirError(
                f"{where}: image processor {kind!r:.100} is not supported"
                if isinstance(kind, str)
                else f"{where}: image_processor_type is no text",
                hint=f"supported: {', '.join(sorted(PROCESSORS))}",
            )
        values = PROCESSORS[name] | {key: value for key, value in config.items() if value is not None}
        try:
            made = cls._from_values(name, values, image_size)
        except KeyError as error:
            raise EngineDirError(f"{where}: not a valid image processor: no {error}", hint=HINT) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise EngineDirError(f"{where}: not a valid image processor: {error}", hint=HINT) from None
        if name != "LlavaImageProcessor" and values["do_pad"]:
            raise EngineDirError(f"{where}: do_pad of {kind} is not supported", hint="set do_pad to false")
        fixed = made.crop or (made.resize[1:] if made.resize and made.resize[0] == "exact" else None)
        if made.pad_square and made.resize and made.resize[0] == "shortest" and made.crop is None:
            fixed = (made.resize[1], made.resize[1])
        if fixed is not None and fixed != image_size:
            hint = "size, crop_size and the vision_config's image_size must agree"
            raise EngineDirError(f"{where}: makes pictures of {fixed}, the vision graph takes {image_size}", hint=hint)
        return made

    @classmethod
    def _from_values(cls, name: str, values: Mapping[str, Any], image_size: tuple[int, int]) -> Preprocessor:
        """Raises KeyError, TypeError, ValueError or OverflowError for a setting that is none."""
        resample = values["resample"]
        if isinstance(resample, bool) or not isinstance(resample, int) or resample not in range(6):
            raise ValueError(f"resample {resample!r:.100} is not a Pillow filter (0 to 5)")
        pad_square = name == "LlavaImageProcessor" and _flag(values, "do_pad")
        normalize = _flag(values, "do_normalize")
        mean = _channels("image_mean", values["image_mean"]) if normalize else None
        std = _channels("image_std", values["image_std"]) if normalize else None
        if std is not None and not all(abs(np.float32(value)) > 0 for value in std):
            raise ValueError(f"image_std {std} has a zero: every picture would be infinite")
        if pad_square and mean is not None and not all(0 <= value <= 1 for value in mean):
            raise ValueError(f"image_mean {mean} is no colour to pad with: values are 0 to 1")
        rescale = _number("rescale_factor", values["rescale_factor"]) if _flag(values, "do_rescale") else None
        made = cls(
            processor=name,
            resize=_resize(values["size"]) if _flag(values, "do_resize") else None,
            resample=resample,
            crop=_pair(values["crop_size"]) if _flag(values, "do_center_crop") else None,
            pad_square=pad_square,
            rescale=rescale,
            mean=mean,
            std=std,
            output=image_size,
        )
        with np.errstate(over="ignore"):
            finite = np.isfinite(made._values(np.array([[[0] * 3, [255] * 3]], np.uint8))).all()
        if not finite:
            raise ValueError("rescale_factor, image_mean and image_std lead beyond every float32")
        return made

    def pixels_taken(self, width: int, height: int) -> int:
        """Pixels of the largest picture on the way from (width, height) to the model's input."""
        most = width * height
        if self.pad_square:
            width = height = max(width, height)
            most = width * height
        if self.resize is not None:
            new_height, new_width = self._target(height, width)
            most = max(most, new_height * new_width)
        return most

    def __call__(self, image: Image.Image) -> np.ndarray:
        """``pixel_values`` of one RGB image: float32 [3, H, W].

        Raises:
            InputError: if the processor does not bring this picture to the size the vision graph takes.
        """
        pixels = np.asarray(self._pad(image), np.uint8)
        if self.resize is not None:
            size = self._target(pixels.shape[0], pixels.shape[1])
            if size[0] * size[1] > SIZE_LIMIT * SIZE_LIMIT:
                raise InputError(f"a picture of {image.width} × {image.height} is too narrow", hint="crop it")
            from PIL import Image as Pil

            resample = Pil.Resampling(self.resample)
            pixels = np.asarray(Pil.fromarray(pixels).resize((size[1], size[0]), resample=resample))
        if self.crop is not None:
            pixels = _center_crop(pixels, *self.crop)
        if pixels.shape[:2] != self.output:
            raise InputError(
                f"the picture becomes {pixels.shape[:2]} pixels; this model takes exactly {self.output}",
                hint="its image processor neither crops nor resizes to a fixed size: scale the picture yourself",
            )
        return np.ascontiguousarray(np.moveaxis(self._values(pixels), -1, 0))

    def _values(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 [H, W, 3] as the model wants them, float32 of the same shape."""
        # float64 and back: transformers rescales so, and the last bit of a float32 product would differ.
        values: np.ndarray
        if self.rescale is not None:
            values = (pixels.astype(np.float64) * self.rescale).astype(np.float32)
        else:
            values = pixels.astype(np.float32)
        if self.mean is not None and self.std is not None:
            values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return values.astype(np.float32)

    def geometry(self, image: Image.Image) -> Geometry:
        """Where the model's input lies in ``image``; parts of it may lie outside (padding)."""
        width, height = image.size
        left, top = 0.0, 0.0
        if self.pad_square and width != height:
            side = max(width, height)
            left, top = -float((side - width) // 2), -float((side - height) // 2)
            width = height = side
        new_height, new_width = self._target(height, width) if self.resize is not None else (height, width)
        scale_x, scale_y = width / new_width, height / new_height
        if self.crop is not None:
            top += _crop_start(new_height, self.crop[0]) * scale_y
            left += _crop_start(new_width, self.crop[1]) * scale_x
        return Geometry(left, top, scale_x, scale_y, self.output[1], self.output[0])

    def _target(self, height: int, width: int) -> tuple[int, int]:
        assert self.resize is not None
        kind, first, second = self.resize
        if kind == "exact":
            return first, second
        short, long = min(height, width), max(height, width)
        # Truncated, not rounded, as torchvision and transformers have it.
        other = int(first * long / short)
        return (first, other) if height <= width else (other, first)

    def _pad(self, image: Image.Image) -> Image.Image:
        if not self.pad_square or image.width == image.height:
            return image
        from PIL import Image as Pil

        side = max(image.size)
        colour = tuple(int(value * 255) for value in self.mean) if self.mean else (0, 0, 0)
        square = Pil.new("RGB", (side, side), colour)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square


def _processor_config(files: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """The image processor's settings and the file they are in."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if name not in files:
            continue
        try:
            data = json.loads(files[name])
        except (json.JSONDecodeError, RecursionError) as error:
            raise EngineDirError(f"{name}: not JSON: {error}") from None
        # transformers 5 writes all parts of a processor into one file.
        if isinstance(data, dict) and name == "processor_config.json":
            data = data.get("image_processor")
        if isinstance(data, dict):
            return data, name
    raise EngineDirError(
        "preprocessor_config.json is missing: how pictures are prepared is not known",
        hint="add the checkpoint's preprocessor_config.json and build again",
    )


def _crop_start(size: int, crop: int) -> int:
    """First row of the crop; negative where the picture is smaller and zeros are put around it."""
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


def _edge(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= SIZE_LIMIT:
        raise ValueError(f"size {value!r:.100} is not between 1 and {SIZE_LIMIT}")
    return value


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return _edge(value), _edge(value)
    if not isinstance(value, dict):
        raise ValueError(f"size {value!r:.100} is no size")
    return _edge(value.get("height")), _edge(value.get("width"))


def _resize(size: Any) -> tuple[str, int, int]:
    if isinstance(size, int):
        return "shortest", _edge(size), 0
    if not isinstance(size, dict):
        raise ValueError(f"size {size!r:.100} is no size")
    if size.get("longest_edge") or size.get("max_height"):
        raise ValueError(f"size {size!r:.100} is not supported")
    if size.get("shortest_edge"):
        return "shortest", _edge(size["shortest_edge"]), 0
    return ("exact", *_pair(size))


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values[name]
    if not isinstance(value, int) or value not in (0, 1):  # a string "false" would be taken for yes
        raise ValueError(f"{name} {value!r:.100} is neither true nor false")
    return bool(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} {value!r:.100} is not a number")
    if not abs(value) < FLOAT32_MAX:
        raise ValueError(f"{name} is beyond every float32")
    return float(value)


def _channels(name: str, value: Any) -> tuple[float, ...]:
    found = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(found) != 3:
        raise ValueError(f"{name} has not a value for each of 3 channels")
    return tuple(_number(name, item) for item in found)
