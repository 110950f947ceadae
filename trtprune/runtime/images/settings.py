"""Readers for the settings of an image processor: values of an untrusted JSON file.

Each raises ValueError with the setting's name and its fault; :func:`named` turns that into one line that begins with
the file's name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from trtprune.errors import EngineDirError, shown

__all__ = [
    "FLOAT32_MAX",
    "PROCESSOR_FILES",
    "SIZE_LIMIT",
    "channels",
    "edge",
    "flag",
    "height_and_width",
    "marker",
    "named",
    "number",
    "pinpoint_list",
    "processor_section",
    "resample_filter",
    "resize_target",
    "whole_number",
]

FLOAT32_MAX = 3.4e38
SIZE_LIMIT = 16384
"""Largest side in a setting, in pixels."""
MAX_PINPOINTS = 1024
MAX_MARKER = 200
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Files of a checkpoint with its image processor's settings; the first one there counts."""


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
    """Turns the readers' errors into an EngineDirError that begins with the file's name ``where``."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise EngineDirError(
            f"{where}: not a valid image processor: {reason}",
            hint=f"correct {where}, or fetch it again, and build again",
        ) from None


def processor_section(files: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """The image processor's settings and the name of the file they are in.

    Args:
        files: A checkpoint's text files, content by name.

    Raises:
        EngineDirError: for a file that is not JSON, or if no file has such settings.
    """
    for name in PROCESSOR_FILES:
        if name not in files:
            continue
        try:
            data = json.loads(files[name])
        except (ValueError, RecursionError) as error:
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


def flag(values: Mapping[str, Any], name: str) -> bool:
    """A setting that is true or false, also as 1 or 0."""
    value = values[name]
    if not isinstance(value, int) or value not in (0, 1):  # a string "false" would be taken for yes
        raise ValueError(f"{name} {shown(value)} is neither true nor false")
    return bool(value)


def whole_number(name: str, value: Any, least: int, most: int) -> int:
    """An integer between two limits, both included."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} {shown(value)} is not between {least} and {most}")
    return value


def number(name: str, value: Any) -> float:
    """A number that float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} {shown(value)} is not a number")
    if not abs(value) < FLOAT32_MAX:
        raise ValueError(f"{name} is beyond every float32")
    return float(value)


def channels(name: str, value: Any) -> tuple[float, float, float]:
    """Numbers for red, green and blue; a single number stands for all three."""
    items = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(items) != 3:
        raise ValueError(f"{name} has not a value for each of 3 channels")
    red, green, blue = (number(name, item) for item in items)
    return red, green, blue


def resample_filter(value: Any) -> int:
    """The number of a Pillow filter."""
    if isinstance(value, bool) or not isinstance(value, int) or value not in range(6):
        raise ValueError(f"resample {shown(value)} is not a Pillow filter (0 to 5)")
    return int(value)


def edge(name: str, value: Any) -> int:
    """A side in pixels."""
    return whole_number(name, value, 1, SIZE_LIMIT)


def height_and_width(name: str, value: Any) -> tuple[int, int]:
    """A size as {"height": H, "width": W}; a single number stands for both."""
    if isinstance(value, int):
        return edge(name, value), edge(name, value)
    if not isinstance(value, dict):
        raise ValueError(f"{name} {shown(value)} is no size")
    return edge(name, value.get("height")), edge(name, value.get("width"))


def resize_target(values: Mapping[str, Any]) -> tuple[str, int, int]:
    """``size`` as ("shortest", edge, 0) or ("exact", height, width); ``default_to_square`` decides for a number."""
    size = values["size"]
    if isinstance(size, int):
        length = edge("size", size)
        square = values.get("default_to_square") is not None and flag(values, "default_to_square")
        return ("exact", length, length) if square else ("shortest", length, 0)
    if not isinstance(size, dict):
        raise ValueError(f"size {shown(size)} is no size")
    if size.get("longest_edge") or size.get("max_height"):
        raise ValueError(f"size {shown(size)} is not supported")
    if size.get("shortest_edge"):
        return "shortest", edge("size", size["shortest_edge"]), 0
    return ("exact", *height_and_width("size", size))


def marker(name: str, value: Any) -> str:
    """A text beside an image's visual tokens in a prompt."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_MARKER:
        raise ValueError(f"{name} {shown(value)} is no text of 1 to {MAX_MARKER} characters")
    return value


def pinpoint_list(name: str, value: Any, tile: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Resolutions as [[height, width], …], each a multiple of the tile.

    Args:
        name: The setting's name.
        value: The value in the file.
        tile: The side of a tile in pixels.
        max_tiles: Largest number of tiles of a resolution.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name} {shown(value)} is no list of resolutions [height, width]")
    if len(value) > MAX_PINPOINTS:
        raise ValueError(f"{name} has {len(value)} resolutions, above the limit of {MAX_PINPOINTS}")
    return tuple(_pinpoint(name, item, tile, max_tiles) for item in value)


def _pinpoint(name: str, value: Any, tile: int, max_tiles: int) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{name}: {shown(value)} is no resolution [height, width]")
    height, width = (edge(name, item) for item in value)
    if height % tile or width % tile:
        raise ValueError(f"{name}: {height} × {width} is not a multiple of the tile, {tile} × {tile} pixels")
    if height // tile * (width // tile) > max_tiles:
        raise ValueError(
            f"{name}: {height} × {width} has {height // tile * (width // tile)} tiles of {tile} × {tile} pixels, above "
            f"the limit of {max_tiles}"
        )
    return height, width
