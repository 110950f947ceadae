"""From whatever the caller calls a picture to upright 8-bit RGB.

Pictures are untrusted input: the size is checked in the header before anything is decoded.  This module knows no
model; what a model wants of the pixels is in ``preprocess``.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from trtprune.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DEFAULT_MAX_PIXELS", "ImageInput", "load_picture", "max_pixels_from"]

DEFAULT_MAX_PIXELS = 64 << 20
MAX_PIXELS_VARIABLE = "TRTPRUNE_MAX_PIXELS"

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | np.ndarray | Image.Image"


def max_pixels_from(value: int | None) -> int:
    """The pixel limit: ``value``, else ``$TRTPRUNE_MAX_PIXELS``, else 64 Mi pixels."""
    if value is None:
        text = os.environ.get(MAX_PIXELS_VARIABLE, "")
        try:
            value = int(text) if text else DEFAULT_MAX_PIXELS
        except ValueError:
            raise InputError(f"{MAX_PIXELS_VARIABLE}={text}: not a number") from None
    if value < 1:
        raise InputError(f"--max-pixels {value}: must be at least 1")
    return value


def load_picture(source: ImageInput, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Reads a picture.

    Args:
        source: A path, the bytes of an image file, a PIL image, or an array uint8 [H, W], [H, W, 1|3|4].
        max_pixels: Width × height above which the picture is refused undecoded.

    Returns:
        An RGB image, rotated as its EXIF orientation says; transparency is laid on white, as transformers does;
        16-bit grey is scaled to 8 bits; CMYK goes through Pillow's plain conversion, without colour profiles.

    Raises:
        InputError: naming the picture and what is wrong with it.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return _finish(source, "the picture", max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), "the picture", max_pixels)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = f"--image {path}"
        try:
            if path.is_dir():
                raise InputError(f"{name}: is a directory", hint="give one picture file; repeat --image for several")
            with path.open("rb") as stream:
                return _decode(stream, name, max_pixels)
        except FileNotFoundError:
            raise InputError(f"{name}: no such file") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{name}: cannot be read: {reason}") from None
    raise InputError(
        f"a picture cannot be a {type(source).__name__}", hint="a path, bytes, a PIL image or a uint8 array [H, W, 3]"
    )


def _decode(stream: Any, name: str, max_pixels: int) -> Image.Image:
    from PIL import Image

    with _own_limits():
        try:
            image = Image.open(stream)
        except Image.DecompressionBombError:
            # Pillow has a limit of its own, some 179 million pixels, that it checks first.
            raise InputError(f"{name}: is above the limit of pixels", hint="scale it down") from None
        except (OSError, SyntaxError, ValueError, OverflowError, struct.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            hint = "PNG, JPEG, WebP, BMP, TIFF … as Pillow reads them"
            raise InputError(f"{name}: not a picture that can be read", hint=hint) from None
        with image:
            return _finish(image, name, max_pixels)


@contextlib.contextmanager
def _own_limits() -> Iterator[None]:
    # Pillow warns of large pictures on stderr; the limit here is stricter and decides alone.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _finish(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    from PIL import Image, ImageOps

    _check_size(image.width, image.height, name, max_pixels)
    try:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and getattr(image, "is_animated", frames > 1):
            raise InputError(f"{name}: has {frames} frames", hint="save the frame you mean as a single picture")
        with _own_limits():
            image.load()
            image = ImageOps.exif_transpose(image)
            return _to_rgb(image)
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{name}: does not fit in memory", hint="scale it down") from None
    # A broken file makes Pillow's readers raise nearly anything; all of it means the same here.
    except (
        OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, AttributeError, EOFError, ArithmeticError,
        struct.error, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        raise InputError(f"{name}: damaged or cut off: {str(error)[:200]}", hint="fetch or export it again") from None


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{name}: is empty ({width} × {height})")
    if width * height > max_pixels:
        raise InputError(
            f"{name}: {width} × {height} is above the limit of {max_pixels} pixels",
            hint=f"scale it down, or raise the limit with --max-pixels or {MAX_PIXELS_VARIABLE}",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "TIFF", "PPM")):
        # Pillow's own conversion clips at 255, which turns nearly every 16-bit picture white.
        grey = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("F", "I"):
        raise InputError(
            f"a picture of mode {image.mode} has no defined white", hint="convert it to 8-bit RGB or grey first"
        )
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    from PIL import Image

    hint = "uint8 [H, W] or [H, W, 1|3|4], 0 = black, 255 = white"
    if array.dtype != np.uint8:
        raise InputError(f"an array as picture must be uint8, not {array.dtype}", hint=hint)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise InputError(f"an array of shape {list(array.shape)} is no picture", hint=hint)
    _check_size(array.shape[1], array.shape[0], "the array", max_pixels)
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))
