"""The sizes of a packed tower: one that reads an image's patches in a row, whatever the image's size.

Patches come in merge order: a visual token is a square of patches, whose rows stand behind one another.  What depends
on the size beside the pixels are small arrays of whole numbers, which are computed here and not in the graph:

* ``token_positions`` int64 [visual_tokens, 2]: row and column of each visual token, row by row.
* ``window_index`` int64 [windows, slots]: the visual tokens of each attention window, −1 for a slot without one; only
  of a tower with windows.  Windows lie side by side from the top left, and those at the right and lower border have
  fewer tokens (``get_vision_window_index`` in transformers' ``vision_utils``).
* ``window_places`` int64 [visual_tokens]: the slot of each visual token among all of them, window after window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtprune.runtime.images.settings import whole_number
from trtprune.tensor_names import TOKEN_POSITIONS, WINDOW_INDEX, WINDOW_PLACES

__all__ = ["NO_TOKEN", "PackedShape", "packed_rows", "window_arrays"]

NO_TOKEN = -1
"""A slot of a window that holds no visual token."""
MOST_WINDOW = 64
CHANNELS = 3


@dataclass(frozen=True)
class PackedShape:
    """The patches that a packed tower reads.

    Attributes:
        patch: Side of a patch in pixels.
        merge: Patches on a side of a visual token.
        frames: Frames of a patch; an image is as many equal ones.
        window: Visual tokens on a side of an attention window; 0: every patch attends to all of the image.
    """

    patch: int
    merge: int
    frames: int
    window: int = 0

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> PackedShape:
        """Reads what :meth:`settings` gives; raises KeyError or ValueError for anything else."""
        values = settings["packed"]
        if not isinstance(values, Mapping):
            raise ValueError("packed is no object")
        return cls(
            whole_number("packed.patch", values["patch"], 1, 1024),
            whole_number("packed.merge", values["merge"], 1, 16),
            whole_number("packed.frames", values["frames"], 1, 16),
            whole_number("packed.window", values.get("window", 0), 0, MOST_WINDOW),
        )

    def settings(self) -> dict[str, Any]:
        """The shape as plain JSON data: the member ``packed`` of a processor's settings."""
        return {"packed": {"patch": self.patch, "merge": self.merge, "frames": self.frames, "window": self.window}}

    @property
    def factor(self) -> int:
        """Side of a visual token in pixels."""
        return self.patch * self.merge

    @property
    def unit(self) -> int:
        """Patches of a visual token."""
        return self.merge**2

    @property
    def width(self) -> int:
        """Numbers of a patch: channels, frames, rows and columns."""
        return CHANNELS * self.frames * self.patch**2

    @property
    def slots(self) -> int:
        """Visual tokens of a whole window."""
        return self.window**2

    def arrays(self, grid: np.ndarray) -> dict[str, np.ndarray]:
        """The vision graph's inputs beside the pixels, by name.

        Args:
            grid: int [N, 3], that of a :class:`~trtprune.runtime.images.base.TokenPlan` whose tokens fill a rectangle.
        """
        rows, columns = (int(side) + 1 for side in grid[-1, 1:])
        found = {TOKEN_POSITIONS: grid[:, 1:].astype(np.int64)}
        if self.window:
            found[WINDOW_INDEX], found[WINDOW_PLACES] = window_arrays(rows, columns, self.window)
        return found


def window_arrays(rows: int, columns: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """``window_index`` int64 [windows, window²] and ``window_places`` int64 [rows · columns] of a grid.

    Args:
        rows, columns: Visual tokens of the image.
        window: Visual tokens on a side of a window.
    """
    down, across = -(-rows // window), -(-columns // window)
    padded = np.full((down * window, across * window), NO_TOKEN, np.int64)
    padded[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    index = padded.reshape(down, window, across, window).transpose(0, 2, 1, 3).reshape(down * across, window**2)
    places = np.empty(rows * columns, np.int64)
    taken = np.flatnonzero(index.reshape(-1) != NO_TOKEN)
    places[index.reshape(-1)[taken]] = taken
    return index, places


def packed_rows(values: np.ndarray, shape: PackedShape) -> np.ndarray:
    """The patches of an image in merge order, each channel by channel and frame by frame: float32 [patches, width].

    Args:
        values: float32 [3, H, W], sides multiples of ``shape.factor``.
        shape: The patches.
    """
    channels, height, width = values.shape
    merge, patch = shape.merge, shape.patch
    down, across = height // shape.factor, width // shape.factor
    units = values.reshape(channels, down, merge, patch, across, merge, patch).transpose(1, 4, 2, 5, 0, 3, 6)
    rows = np.empty((*units.shape[:5], shape.frames, patch, patch), np.float32)
    rows[...] = units[:, :, :, :, :, None]
    return rows.reshape(-1, shape.width)
