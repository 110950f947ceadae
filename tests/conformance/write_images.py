"""Writes ``images.json``: images → prepared arrays, visual tokens and pack index, as transformers has them.

    python -m tests.conformance.write_images

A member of ``cases``:

* ``processor``, ``settings``: as ``config.json`` of an engine directory has them.
* ``height``, ``width``, ``images``: of the image, and the images of its prompt.  Pixel (x, y) of channel c (red, green,
  blue) is ``(7·x + 13·y + 29·c + (x·y) // 5) mod 256``.
* ``crops``, ``tokens``: arrays of the image, and its visual tokens, N.
* ``pixel_values``: SHA-256 of the arrays, float32 [crops, 3, H, W].
* ``grid``, ``pack_index``: SHA-256 of int32 [N, 3] and of int32 [N], the first tap.  Not there for an image whose
  plane is shrunk: its tokens are several patches.
* ``packed``: for some tokens, the weighted sum of features where feature i of the image, crop after crop, is
  ``(i · 7919 mod 10007) / 10007`` and the newline token is −1; to 1e-6.

Arrays are digested in C order, least significant byte first.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import LlavaImageProcessorPil, SiglipImageProcessorPil

from tests.runtime.images.kit import CLIP_336, NEXT, NEXT_SETTINGS, ONEVISION, SIGLIP_384, Theirs
from trtprune.runtime.images import CropShape, processor_from_settings

PATH = Path(__file__).with_name("images.json")
SAMPLES = 24

SMALL = CropShape(28, 28, (7, 7))
ODD = CropShape(31, 31, (7, 7))
SQUARE = {"height": 28, "width": 28}
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84], [84, 140]]
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
ODD_SETTINGS = {"size": {"height": 31, "width": 31}, "image_grid_pinpoints": [[31, 31], [62, 93], [155, 62]]}
SMALL_SIZES = [(1, 1), (28, 28), (40, 60), (97, 41), (10, 300), (300, 10), (123, 456)]

TILED: list[tuple[Theirs, list[tuple[int, int]]]] = [
    (Theirs(NEXT, SMALL, {"size": 28, "crop_size": 28, "image_grid_pinpoints": PINPOINTS}), SMALL_SIZES),
    (Theirs(NEXT, SMALL, {"size": 40, "crop_size": 28, "image_grid_pinpoints": PINPOINTS, **HALF}), SMALL_SIZES),
    (Theirs(NEXT, CLIP_336, NEXT_SETTINGS), [(336, 336), (480, 640), (1000, 1000), (10, 1000), (1000, 10)]),
    (Theirs(ONEVISION, SMALL, {"size": SQUARE, "image_grid_pinpoints": PINPOINTS, **HALF}, 2), SMALL_SIZES),
    (Theirs(ONEVISION, ODD, ODD_SETTINGS, 1), SMALL_SIZES),
    (Theirs(ONEVISION, SIGLIP_384, HALF), [(384, 384), (480, 640), (1080, 1920), (20, 30)]),
]
SINGLE: list[Any] = [
    LlavaImageProcessorPil(size=28, crop_size=28),
    LlavaImageProcessorPil(size=28, crop_size=28, do_pad=True),
    SiglipImageProcessorPil(size=SQUARE),
]


def picture(height: int, width: int) -> Image.Image:
    """The image of a case."""
    y, x, c = np.ogrid[:height, :width, :3]
    return Image.fromarray(((7 * x + 13 * y + 29 * c + x * y // 5) % 256).astype(np.uint8))


def digest(array: np.ndarray, dtype: str) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()).hexdigest()


def features(crops: int, count: int) -> np.ndarray:
    """The features of ``packed``: float32 [crops, count]."""
    return (np.arange(crops * count) * 7919 % 10007 / 10007).astype(np.float32).reshape(crops, count)


def unshrunk(theirs: Theirs) -> Theirs:
    """The processor of the same tiles that never shrinks them."""
    edge, pinpoints = theirs.shape.height, theirs.images.image_grid_pinpoints
    return Theirs(NEXT, theirs.shape, {"size": edge, "crop_size": edge, "image_grid_pinpoints": pinpoints})


def tokens_of(theirs: Theirs, height: int, width: int, crops: int) -> dict[str, Any]:
    """What transformers packs: the digests of places that pass through it as if they were features, and a sample."""
    shape = theirs.shape
    places = np.arange(crops * shape.patches).reshape(crops, shape.patches)
    patch = np.broadcast_to(np.arange(shape.patches), places.shape)
    rows, columns = patch // shape.columns, patch % shape.columns
    if crops > 1:
        tiles = np.arange(crops - 1)
        across = theirs.best(height, width)[1] // shape.width
        down, right = tiles // across * shape.rows, tiles % across * shape.columns
        rows = rows + np.concatenate(([0], down))[:, None]
        columns = columns + np.concatenate(([0], right))[:, None]
    crop = np.broadcast_to(np.arange(crops)[:, None], places.shape)
    coded = np.stack((places, crop, rows, columns, features(crops, shape.patches)), axis=-1).astype(np.float32)
    newline = np.array([crops * shape.patches, -1, -1, -1, -1], np.float32)
    packed = theirs.pack(coded, (height, width), newline)
    sample = np.unique(np.linspace(0, len(packed) - 1, SAMPLES).astype(int))
    result: dict[str, Any] = {"tokens": len(packed)}
    if crops == 1 or len(packed) == unshrunk(theirs).tokens(height, width):
        result |= {"grid": digest(packed[:, 1:4], "int32"), "pack_index": digest(packed[:, 0], "int32")}
    return result | {"packed": {str(token): round(float(packed[token, 4]), 7) for token in sample}}


def tiled_case(theirs: Theirs, height: int, width: int, images: int) -> dict[str, Any]:
    """One image of a processor that cuts tiles."""
    image = picture(height, width)
    pixels = theirs.pixels(*[image] * images)[0]
    case = tokens_of(theirs, height, width, len(pixels))
    if images == 1:
        assert case["tokens"] == theirs.tokens(height, width)
    return {
        "processor": theirs.name,
        "settings": theirs.ours().settings(),
        "height": height,
        "width": width,
        "images": images,
        "crops": len(pixels),
        "pixel_values": digest(pixels, "float32"),
        **case,
    }


def single_case(theirs: Any, height: int, width: int) -> dict[str, Any]:
    """One image of a processor that makes one crop, whose features are the visual tokens."""
    pixels = theirs(picture(height, width), return_tensors="np")["pixel_values"]
    places = np.arange(SMALL.patches)
    values = {**theirs.to_dict(), **SMALL.settings()}
    grid = np.stack((0 * places, places // SMALL.columns, places % SMALL.columns), axis=1)
    return {
        "processor": "single",
        "settings": processor_from_settings("single", values, "preprocessor_config.json").settings(),
        "height": height,
        "width": width,
        "images": 1,
        "crops": 1,
        "pixel_values": digest(pixels, "float32"),
        "tokens": SMALL.patches,
        "grid": digest(grid, "int32"),
        "pack_index": digest(places, "int32"),
    }


def cases() -> list[dict[str, Any]]:
    """All cases, in the file's order."""
    result = [single_case(theirs, *size) for theirs in SINGLE for size in SMALL_SIZES]
    for theirs, sizes in TILED:
        result += [tiled_case(theirs, *size, images=1) for size in sizes]
        if theirs.name == ONEVISION:
            result += [tiled_case(theirs, *size, images=2) for size in sizes[:3]]
    return result


def text() -> str:
    """The file's content, a case a line."""
    lines = ",\n".join(json.dumps(case) for case in cases())
    return f'{{"version": 1, "cases": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
