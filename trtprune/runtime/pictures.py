"""From any form of an image to upright 8-bit RGB.

Images are untrusted input: the size is checked in the header before anything is decoded.  This module does not depend
on the model; a model's own steps are in ``images``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, TypeAlias, cast

import numpy as np

from trtprune.arguments import arg, as_python, whole
from trtprune.errors import InputError, one_line
from trtprune.runtime.sources import opened

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DEFAULT_MAX_PIXELS", "ImageInput", "load_picture", "max_pixels_from"]

DEFAULT_MAX_PIXELS = 64 << 20
MAX_PIXELS_VARIABLE = "TRTPRUNE_MAX_PIXELS"

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
PPM_PLAIN_BYTES = 4 << 20
HEAD = 4096
"""Bytes that tell a video's container."""
STILL_BRANDS = {b"avif", b"avis", b"mif1", b"heic", b"heix", b"heif"}
MAX_READS = 1_000_000
SMALL_READ = 1024
READ_SECONDS = 8.0
# A broken file makes Pillow's readers raise nearly any exception; all of them mean the same here.
READER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, AttributeError, EOFError, ArithmeticError,
    RuntimeError, struct.error,
)  # fmt: skip

logger = logging.getLogger("trtprune")

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | np.ndarray | Image.Image"


def max_pixels_from(value: int | None) -> int:
    """The pixel limit: ``value``, else ``$TRTPRUNE_MAX_PIXELS``, else 64 Mi pixels."""
    if value is None:
        text = os.environ.get(MAX_PIXELS_VARIABLE, "")
        try:
            value = int(text) if text else DEFAULT_MAX_PIXELS
        except ValueError:
            raise InputError(f"{MAX_PIXELS_VARIABLE}={text}: not a number", hint="width × height") from None
    return whole("max_pixels", value, 1, ": width × height of the largest picture")


def load_picture(
    source: ImageInput,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    *,
    strict: bool = False,
    urls: bool = False,
    prepared: Callable[[int, int], int] | None = None,
) -> Image.Image:
    """Reads an image.

    Args:
        source: A path; an address (``https://``, ``http://``, ``data:``, ``file://``); the bytes of an image file; a
            file open for binary reading; a PIL image; or an array uint8 [H, W], [H, W, 1|3|4].
        max_pixels: Largest width × height; larger images are refused without decoding.
        strict: Whether an animation or a file of several pages is refused, instead of giving its first frame.
        urls: Whether ``http(s)`` addresses are fetched; they are refused otherwise.
        prepared: Function of (width, height) to the largest number of pixels in the work of the model's processor;
            these count against ``max_pixels``, too.

    Returns:
        An RGB image, rotated as its EXIF orientation says; transparency is laid on white, as transformers does;
        16-bit grey is scaled to 8 bits; CMYK goes through Pillow's plain conversion, without colour profiles.  A
        photograph with further images in its file (a preview, a gain map) gives the photograph.

    Raises:
        InputError: naming the image and its fault.
    """
    from PIL import Image

    rules = _Rules(max_pixels, strict, prepared)
    if isinstance(source, Image.Image):
        return _finish(source, "the picture", rules)
    if isinstance(source, np.ndarray):
        return _from_array(source, rules)
    with opened(source, urls) as (stream, name):
        try:
            return _decode(stream, name, rules)
        except OSError as error:  # of the disk; Pillow's own have no number and are caught where they come up
            hint = "copy the file from its source again"
            raise InputError(f"{name}: cannot be read: {error.strerror or error}", hint=hint) from None


@dataclass(frozen=True)
class _Rules:
    """The limits of an image; as the arguments of :func:`load_picture`."""

    max_pixels: int
    strict: bool
    prepared: Callable[[int, int], int] | None

    def check_size(self, width: int, height: int, name: str) -> None:
        """Raises InputError for an image that is empty or too large."""
        hint = f"scale it down, or raise the limit with {arg('max_pixels')} or {MAX_PIXELS_VARIABLE}"
        if width < 1 or height < 1:
            raise InputError(f"{name}: is empty ({width} × {height})", hint="a picture has at least one pixel")
        if width * height > self.max_pixels:
            raise InputError(f"{name}: {width} × {height} is above the limit of {self.max_pixels} pixels", hint=hint)
        taken = self.prepared(width, height) if self.prepared else 0
        if taken > self.max_pixels:
            raise InputError(
                f"{name}: {width} × {height} is too narrow: prepared for the model it takes {taken} pixels, above the "
                f"limit of {self.max_pixels}",
                hint=f"crop it, or raise the limit with {arg('max_pixels')} or {MAX_PIXELS_VARIABLE}",
            )


class _Counted:
    """A stream for Pillow, whose readers go through some parts of a file in Python: comments and numbers of a PPM,
    runs of a BMP, segments of a JPEG, blocks of a GIF.  A small file of millions of them would take minutes.

    Args:
        stream: The file's stream, which is read from its beginning.
        name: The image's name in errors.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream, self._name = stream, name
        self._reads = self._bytes = 0
        self._start = time.thread_time()
        self.opening = True
        """While only headers are read, a long time alone shows a fault."""

    def read(self, size: int = -1) -> bytes:
        """As the stream's."""
        data = self._stream.read(size)
        self._reads += 1
        self._bytes += len(data)
        timed = self.opening or (self._reads % 64 == 0 and self._bytes < SMALL_READ * self._reads)
        if self._reads > MAX_READS or (timed and time.thread_time() - self._start > READ_SECONDS):
            raise InputError(f"{self._name}: is made of too many small parts", hint="save it as PNG")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As the stream's."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """As the stream's."""
        return self._stream.tell()


def _decode(stream: IO[bytes], name: str, rules: _Rules) -> Image.Image:
    from PIL import Image

    head = stream.read(2)
    if head in (b"P1", b"P2", b"P3") and stream.seek(0, os.SEEK_END) > PPM_PLAIN_BYTES:
        raise InputError(f"{name}: a large PPM of numbers in text", hint="save it as PNG")
    counted = _Counted(stream, name)
    with _own_limits():
        try:
            image = Image.open(cast("IO[bytes]", counted), formats=_formats())
        except Image.DecompressionBombError:
            # Pillow first checks a limit of its own, some 179 million pixels.
            raise InputError(f"{name}: is above the limit of pixels", hint="scale it down") from None
        except MemoryError:
            raise InputError(f"{name}: does not fit in memory", hint="scale it down") from None
        except READER_ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            hint = f"one of {', '.join(_formats())}"
            stream.seek(0)
            if kind := video_kind(stream.read(HEAD)):
                message = f"{name}: a video ({kind}); videos are not supported"
                raise InputError(message, hint="save a frame of it as PNG or JPEG") from None
            raise InputError(f"{name}: not a picture that can be read", hint=hint) from None
        with image:
            counted.opening = False
            return _finish(image, name, rules)


def video_kind(head: bytes) -> str:
    """The container of a video by its first bytes, such as ``MP4``; empty for anything else."""
    if head[4:8] == b"ftyp":  # ISO base media; still pictures in it (AVIF, HEIC) have brands of their own
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, len(head) - 3, 4))}
        if brands & STILL_BRANDS:
            return ""
        return "QuickTime" if head[8:12] == b"qt  " else "MP4"
    if head[4:8] in (b"moov", b"mdat", b"wide"):
        return "QuickTime"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "WebM" if b"webm" in head else "Matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI"
    if head[:4] in (b"\0\0\x01\xba", b"\0\0\x01\xb3"):
        return "MPEG"
    if head[:1] == b"G" and head[188:189] == b"G":
        return "MPEG transport stream"
    return {b"FLV\x01": "FLV", b"0&\xb2u": "WMV", b"OggS": "Ogg"}.get(head[:4], "")


def _formats() -> tuple[str, ...]:
    """The formats that are opened.  Pillow has some forty more; one of them starts another program (EPS), and some are
    decoded before their size can be checked (ICO, ICNS)."""
    from PIL import features

    return (*FORMATS, "AVIF") if features.check("avif") else FORMATS


@contextlib.contextmanager
def _own_limits() -> Iterator[None]:
    # Pillow warns of large pictures on stderr; the limit here is stricter and decides alone.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _finish(image: Image.Image, name: str, rules: _Rules) -> Image.Image:
    from PIL import Image, ImageOps

    rules.check_size(image.width, image.height, name)
    try:
        with _own_limits():
            # A photograph with a preview behind it (MPO) is not an animation, nor is a frame selected by the caller.
            several = image.format != "MPO" and not _tell(image) and getattr(image, "is_animated", False)
            if several and rules.strict:
                raise InputError(
                    f"{name}: has several frames", hint=f"save the frame you mean, or leave {arg('strict_images')} out"
                )
            image.load()
            image = ImageOps.exif_transpose(image)
            found = _to_rgb(image, name)
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{name}: does not fit in memory", hint="scale it down") from None
    except (*READER_ERRORS, Image.DecompressionBombError) as error:
        reason = one_line(str(error), 200) or type(error).__name__
        raise InputError(f"{name}: damaged or cut off: {reason}", hint="fetch or export it again") from None
    if several:
        logger.warning("%s: has several frames; the first one is taken", as_python(name))
    return found


def _tell(image: Image.Image) -> int:
    """The current frame of an image."""
    return image.tell() if callable(getattr(image, "tell", None)) else 0


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "TIFF", "PPM")):
        # Pillow's own conversion clips at 255, which turns nearly every 16-bit image white.
        grey = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("F", "I"):
        raise InputError(
            f"{name}: of mode {image.mode}, which has no defined white", hint="convert it to 8-bit RGB or grey first"
        )
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray, rules: _Rules) -> Image.Image:
    from PIL import Image

    hint = "uint8 [H, W] or [H, W, 1|3|4], 0 = black, 255 = white"
    if array.dtype != np.uint8:
        raise InputError(f"an array as picture must be uint8, not {array.dtype}", hint=hint)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise InputError(f"an array of shape {list(array.shape)} is no picture", hint=hint)
    rules.check_size(array.shape[1], array.shape[0], "the array")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), "the array")
