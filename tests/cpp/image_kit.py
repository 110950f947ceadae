"""Image files for the tests of C++, and comparisons with Python's reader."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.runtime.test_pictures import encoded, noise, png
from trtprune.errors import InputError
from trtprune.runtime.pictures import load_picture, max_pixels_from

Call = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]

PYTHONS = "one of PNG, JPEG, WEBP, BMP, TIFF, GIF, PPM"
OURS = "one of PNG, JPEG, WEBP, BMP, GIF"


def request(data: bytes, **options: Any) -> dict[str, Any]:
    return {"op": "memory", "data": data.hex(), **options}


def pixels(answer: dict[str, Any]) -> np.ndarray:
    assert "error" not in answer, answer
    return np.frombuffer(bytes.fromhex(answer["pixels"]), np.uint8).reshape(answer["height"], answer["width"], 3)


def check(call: Call, files: dict[str, bytes], **options: Any) -> None:
    """Every pixel of every file is Python's, or the error is."""
    answers = call([request(data, **options) for data in files.values()])
    for (name, data), answer in zip(files.items(), answers, strict=True):
        expected, error = read(data)
        if error is None:
            np.testing.assert_array_equal(pixels(answer), expected, err_msg=name)
        else:
            assert same_text(answer, error), (name, answer, str(error))


def read(data: bytes, max_pixels: int | None = None) -> tuple[np.ndarray | None, InputError | None]:
    """Python's pixels, or its error."""
    try:
        return np.asarray(load_picture(data, max_pixels_from(max_pixels))), None
    except InputError as error:
        return None, error


def same_text(answer: dict[str, Any], error: InputError) -> bool:
    """Whether the messages are equal, but for the words of a decoder about a damaged file."""
    mark = "damaged or cut off: "
    ours, theirs = (message.partition(mark)[:2] for message in (answer.get("error", ""), error.message))
    hints = answer.get("hint", ""), error.hint or ""
    return ours == theirs and (hints[0] == hints[1] or (hints[0] == OURS and hints[1].startswith(PYTHONS)))


def smooth(height: int, width: int) -> Image.Image:
    y, x, c = np.ogrid[:height, :width, :3]
    return Image.fromarray(((x + 2 * y + 40 * c + x * y // 9) % 256).astype(np.uint8))


def rgba(seed: int = 0) -> Image.Image:
    return Image.fromarray(noise(37, 23, seed, 4), "RGBA")


def bmp(
    bits: int, rows: bytes, size: tuple[int, int] = (4, 3), *, masks: bytes = b"", table: bytes = b"", **head: int
) -> bytes:
    """A bitmap of BITMAPINFOHEADER, width × height."""
    width, height = size
    compression, colours = head.get("compression", 3 if masks else 0), head.get("colours", len(table) // 4)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(rows), 0, 0, colours, 0)
    offset = 14 + len(info) + len(masks) + len(table)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + info + masks + table + rows


def gif(size: tuple[int, int], box: tuple[int, int, int, int], **options: Any) -> bytes:
    """A frame at a place of a canvas; ``colours`` of both tables, ``transparent``, ``local``."""
    frame = encoded(
        Image.fromarray(noise(box[2], box[3], 7)).quantize(16), "GIF", interlace=options.get("interlace", 0)
    )
    at = frame.index(b",", 13 + 48)
    table = frame[13 : 13 + 48]
    other = noise(16, 1, 11).tobytes()
    control = b""
    if "transparent" in options:
        control = b"!\xf9\x04\x01\0\0" + bytes([options["transparent"], 0])
    local = options.get("local")
    screen = b"GIF89a" + struct.pack("<HHBBB", *size, 0x80 | 3, 5, 0)
    head = b"," + struct.pack("<4HB", *box, (frame[at + 9] & 0x40) | (0x83 if local else 0))
    shades = bytes(i for i in range(16) for _ in range(3))
    colours = {"shades": shades}.get(options.get("colours", ""), other if local else table)
    return screen + colours + options.get("before", b"") + control + head + (table if local else b"") + frame[at + 10 :]


def adam7(rows: np.ndarray) -> list[np.ndarray]:
    """The passes of an interlaced image, samples [h, w, channels]."""
    steps = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    return [rows[y::dy, x::dx] for y, dy, x, dx in steps]


def packed_rows(samples: np.ndarray, depth: int) -> bytes:
    """Rows of a PNG without a filter."""
    lines = []
    for row in map(np.ravel, samples):
        if depth == 16:
            data = row.astype(">u2").tobytes()
        else:
            bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
            data = np.packbits(bits.ravel()).tobytes()
        lines.append(b"\0" + data)
    return b"".join(lines) if samples.shape[1] else b""


def png_of(
    depth: int, colour: int, interlaced: bool, *extra: tuple[bytes, bytes], size: tuple[int, int] = (11, 19)
) -> bytes:
    """A PNG of random samples, with further chunks behind its header, in three parts."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    random = np.random.default_rng(depth * 10 + colour)
    samples = random.integers(0, 1 << depth, (*size, channels))
    parts = adam7(samples) if interlaced else [samples]
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, interlaced)
    data = zlib.compress(b"".join(packed_rows(part, depth) for part in parts))
    half = len(data) // 2
    pieces = [(b"IDAT", data[:half]), (b"IDAT", b""), (b"IDAT", data[half:])]
    return png([(b"IHDR", header), *extra, *pieces, (b"IEND", b"")])
