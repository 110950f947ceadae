"""Pictures of all formats that are opened and some that are not, damaged and thin, through a hostile processor."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

SHORT = 10
PRELOAD = ("numpy", "PIL.Image", "trtprune.runtime.images")
KINDS = (
    "PNG",
    "JPEG",
    "MPO",
    "WEBP",
    "BMP",
    "TIFF",
    "GIF",
    "PPM",
    "AVIF",
    "ICO",
    "ICNS",
    "EPS",
    "TGA",
    "PCX",
    "JPEG2000",
)
PROCESSORS = (
    "CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor", "BitImageProcessor", "LlavaNextImageProcessor",
    "LlavaNextImageProcessor", "LlavaOnevisionImageProcessor", "LlavaOnevisionImageProcessor",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    0, 1, 2, 336, -1, 16384, 16385, 2**31, 10**400, 1e-45, 3e38, float("inf"), float("nan"), True, None, "x", "\x1b[2J",
    [], {}, [0.5] * 3, [0, 0, 0], {"height": 336, "width": 336}, {"shortest_edge": 336}, {"shortest_edge": 1},
    "a" * 10**6, [[336, 672]], [[336, 336]] * 5000, [[16464, 336]], [[336, 16128]], [[5376, 5376]], [[337, 336]], [[]],
    "anyres_max_1", "anyres_max_9999", "anyres_max_0",
)  # fmt: skip
KEYS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_pad", "image_processor_type", "feature_extractor_type",
    "image_grid_pinpoints", "image_grid_pinpoints", "vision_aspect_ratio", "default_to_square",
)  # fmt: skip


def make_case(rng: random.Random) -> tuple[bytes, dict[str, Any]]:
    """Bytes of a picture, and the content of a preprocessor_config.json."""
    config: dict[str, Any] = {
        "image_processor_type": rng.choice(PROCESSORS),
        "size": {"shortest_edge": 336},
        "crop_size": 336,
        "do_pad": False,
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 1008]],
    }
    if rng.random() < 0.3:
        config |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        config[rng.choice(KEYS)] = rng.choice(VALUES)
    return rng.choice((_thin, _damaged, _damaged, _slow))(rng), config


def thin(width: int, height: int) -> bytes:
    """A black PNG of one bit a pixel: some hundred bytes, however long it is."""
    body = zlib.compress((b"\0" + b"\0" * ((width + 7) // 8)) * height, 9)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", body), (b"IEND", b""))
    parts = [struct.pack(">I", len(b)) + name + b + struct.pack(">I", zlib.crc32(name + b)) for name, b in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _thin(rng: random.Random) -> bytes:
    size = [int(10 ** rng.uniform(0, 5)), rng.choice((1, 1, 2, 30))]
    rng.shuffle(size)
    return thin(*size)


def _damaged(rng: random.Random) -> bytes:
    from PIL import Image

    size = (rng.randrange(1, 200), rng.randrange(1, 200))
    modes = rng.choice(("RGB", "L", "P", "RGBA", "1", "CMYK", "I;16", "LA"))
    image = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    stream = io.BytesIO()
    more = {"save_all": True, "append_images": [image.rotate(90)] * 2} if rng.random() < 0.2 else {}
    try:
        image.convert(modes).save(stream, rng.choice(KINDS), **more)
    except (OSError, ValueError, KeyError, SystemError, RuntimeError):
        image.save(stream, "PNG")
    data = bytearray(stream.getvalue())
    for _ in range(rng.choice((0, 1, 3, 20))):
        data[rng.randrange(min(len(data), rng.choice((40, 400, 10**6))))] = rng.randrange(256)
    return bytes(data[: rng.randrange(1, len(data) + 1)] if rng.random() < 0.2 else data)


def _slow(rng: random.Random) -> bytes:
    length = rng.choice((10**5, 10**6, 3 * 10**7))
    comment = b"#" + b"c" * length
    return rng.choice(
        (
            b"P6 " + comment + b"\n4 4 255\n" + b"x" * 48,
            b"P3 4 4 255\n" + comment,
            b"P2 4000 4000 255\n" + b"1 " * (length // 2),
            b"P5" + b" #\n" * (length // 4),
            b"GIF89a\x01\x00\x01\x00\x00\x00\x00" + b"!\xfe" + b"\x01x" * (length // 2),
            b"GIF89a\x01\x00\x01\x00\x00\x00\x00" + b"!\xfe" + (b"\xff" + b"x" * 255) * (length // 256),
            b"\xff\xd8" + (b"\xff\xe1\xff\xff" + b"Exif\0\0" + b"\0" * 65527) * (length // 65536),
            b"II*\x00\x08\x00\x00\x00" + b"\xff\xff" * (length // 2),
            b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0tEXt\x1e\x7f\xd1\x9f" * (length // 12),
            b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 8000, 8000, 1, 8, 1, 0, 0, 0, 0, 0) + b"\1\1" * length,
            b"\xff\xd8" + b"\xff\xe1\x00\x02" * (length // 4),
        )
    )


def attempt(case: tuple[bytes, dict[str, Any]], folder: Path) -> None:
    """The picture, from a file and from memory, as the model is fed it: alone, or as one of two."""
    from trtprune.runtime.images import PROCESSORS as NAMES
    from trtprune.runtime.images import CropShape, processor_from_files
    from trtprune.runtime.pictures import load_picture

    data, config = case
    # As it is read: from JSON.
    files = {"preprocessor_config.json": json.dumps(config)}
    model = {key: config[key] for key in ("image_grid_pinpoints", "vision_aspect_ratio") if key in config}
    ready = processor_from_files(files, CropShape(336, 336, (14, 14)), model, list(NAMES))
    least, most = ready.tokens_range
    path = folder / "picture.png"
    path.write_bytes(data)
    for images, source in enumerate((path, data), 1):
        picture = load_picture(source, prepared=partial(ready.pixels_taken, images=images))
        prepared = ready.prepare(picture, images)
        assert prepared.pixel_values.shape == (prepared.plan.crops, 3, 336, 336)
        assert least <= prepared.plan.tokens <= most


def prepare(data: bytes, config: dict[str, Any]) -> None:
    """One picture through one processor."""
    from trtprune.runtime.images import CropShape, processor_from_settings
    from trtprune.runtime.pictures import load_picture

    settings = {**config, **CropShape(336, 336, (14, 14)).settings()}
    ready = processor_from_settings("single", settings, "preprocessor_config.json")
    ready.prepare(load_picture(data, prepared=ready.pixels_taken))
