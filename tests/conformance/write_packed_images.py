"""Writes ``packed_images.json``: images → the inputs of a packed tower, as transformers has them.

    python -m tests.conformance.write_packed_images

A member of ``cases``:

* ``processor``, ``settings``: as ``config.json`` of an engine directory has them.
* ``height``, ``width``: of the image, whose pixels are those of ``write_images.py``.
* ``tokens``, ``rows``, ``columns``: its visual tokens, N, and their rectangle.
* ``pixel_values``: SHA-256 of the patches, float32 [patches, width].
* ``grid``: SHA-256 of int32 [N, 3].
* ``arrays``: name → shape and SHA-256, int64, of each further input.

``ranges`` has settings and what follows from them without an image: ``tokens``, and the bounds of dimensions.
``refused`` has sizes that are none, with the error's words.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from tests.conformance.write_images import digest, picture
from trtprune.errors import InputError
from trtprune.runtime.images import PackedShape, Processor, processor_from_settings

PATH = Path(__file__).with_name("packed_images.json")
SIZES = [(1, 1), (20, 20), (27, 332), (90, 70), (100, 31), (484, 1024), (3, 600), (600, 3), (112, 112)]
CASES: list[tuple[PackedShape, dict[str, Any], list[tuple[int, int]]]] = [
    (PackedShape(14, 2, 2, 4), {"min_pixels": 3136, "max_pixels": 12845056}, [*SIZES, (480, 640)]),
    (PackedShape(14, 2, 2), {}, SIZES),
    (
        PackedShape(16, 2, 2),
        {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        [(20, 20), (90, 70), (484, 1024), (3, 600), (480, 640)],
    ),
    (PackedShape(4, 2, 2, 3), {"min_pixels": 64 * 7, "max_pixels": 64 * 90}, SIZES),
    (PackedShape(8, 3, 1, 2), {"size": {"shortest_edge": 576 * 9, "longest_edge": 576 * 10}}, SIZES),
]
"""Patches, settings of the file, and sizes (height, width)."""
REFUSED = [(1, 201), (402, 2), (0, 7)]


def ours(shape: PackedShape, changes: dict[str, Any]) -> Processor:
    """This runtime's processor of a file with these settings."""
    values = {"image_processor_type": "Qwen2VLImageProcessor", **patches(shape), **changes, **shape.settings()}
    return processor_from_settings("qwen2_vl", values, "preprocessor_config.json")


def patches(shape: PackedShape) -> dict[str, int]:
    """The file's sizes of patches."""
    return {"patch_size": shape.patch, "merge_size": shape.merge, "temporal_patch_size": shape.frames}


def arrays(shape: PackedShape, grid: Any) -> dict[str, np.ndarray]:
    """The further inputs, made of transformers' positions and window order."""
    first = get_vision_position_ids(grid, shape.merge).numpy()[:: shape.unit] // shape.merge
    found = {"token_positions": first}
    if not shape.window:
        return found
    order, lengths = get_vision_window_index(grid, shape.merge, shape.window * shape.factor, shape.patch)
    ends = lengths.numpy() // shape.unit
    index = np.full((len(ends) - 1, shape.slots), -1, np.int64)
    places = np.empty(len(first), np.int64)
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        for token in order.numpy()[start:end]:
            row, column = first[token] % shape.window
            index[number, row * shape.window + column] = token
            places[token] = number * shape.slots + row * shape.window + column
    return found | {"window_index": index, "window_places": places}


def case(shape: PackedShape, changes: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """One image."""
    theirs = Qwen2VLImageProcessorPil(**patches(shape), **changes)(picture(height, width), return_tensors="pt")
    grid = theirs["image_grid_thw"]
    rows, columns = (int(side) // shape.merge for side in grid[0, 1:])
    y, x = np.divmod(np.arange(rows * columns), columns)
    return {
        "processor": "qwen2_vl",
        "settings": ours(shape, changes).settings(),
        "height": height,
        "width": width,
        "tokens": rows * columns,
        "rows": rows,
        "columns": columns,
        "pixel_values": digest(theirs["pixel_values"].numpy(), "float32"),
        "grid": digest(np.stack((0 * y, y, x), axis=1), "int32"),
        "arrays": {
            name: {"shape": list(array.shape), "sha256": digest(array, "int64")}
            for name, array in arrays(shape, grid).items()
        },
    }


def ranges(shape: PackedShape, changes: dict[str, Any]) -> dict[str, Any]:
    """What follows from the settings alone, by this runtime."""
    made = ours(shape, changes)
    return {"settings": made.settings(), "tokens": list(made.tokens_range), "dims": made.vision_dims}


def refused(height: int, width: int) -> dict[str, Any]:
    """The words of a size that is none."""
    try:
        ours(*CASES[0][:2]).plan(height, width)
    except InputError as error:
        return {"height": height, "width": width, "message": error.message, "hint": error.hint}
    raise AssertionError(f"{height} × {width} is taken")


def text() -> str:
    """The file's content, a case a line."""
    parts = {
        "cases": [case(shape, changes, *size) for shape, changes, sizes in CASES for size in sizes],
        "ranges": [ranges(shape, changes) for shape, changes, _ in CASES],
        "refused": [refused(*size) for size in REFUSED],
    }
    lines = [f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in parts.items()]
    return '{"version": 1,\n' + ",\n".join(lines) + "}\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
