"""Memory and decode step of a backend whose arrays are NumPy's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.tensor_names import INPUT_IDS, INPUTS_EMBEDS, LOGITS, LOGITS_INDEX, POSITION_IDS, TEXT_EMBEDS, WRITE_INDEX

if TYPE_CHECKING:
    from trtprune.backends.base import Session

__all__ = ["HostMemory", "HostStep"]


class HostMemory:
    """NumPy arrays; see :class:`trtprune.backends.base.Memory`."""

    def join(self, rows: Sequence[Sequence[Any]], width: int) -> np.ndarray:
        """Pieces [n, D] of each row, and zeros behind them: [rows, width, D]."""
        first = rows[0][0]
        joined = np.zeros((len(rows), width, first.shape[1]), first.dtype)
        for row, pieces in zip(joined, rows, strict=True):
            start = 0
            for piece in pieces:
                row[start : start + len(piece)] = piece
                start += len(piece)
        return joined

    def concatenate(self, pieces: Sequence[Any]) -> np.ndarray:
        """The pieces behind one another; a single one as it is."""
        joined: np.ndarray = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return joined

    def to_host(self, array: Any) -> np.ndarray:
        """The array itself."""
        found: np.ndarray = array
        return found

    def wait(self) -> None:
        """Returns at once: nothing runs asynchronously."""


class HostStep:
    """Embedding lookup and decoder, one after the other; see :class:`trtprune.backends.base.Step`."""

    def __init__(self, embed: Session, decoder: Session, cache: Any) -> None:
        self._embed = embed
        self._decoder = decoder
        self._cache = cache
        self._last = np.zeros((cache.batch, 1), np.int64)

    def __call__(self, token: np.ndarray, position: np.ndarray, write_index: np.ndarray) -> np.ndarray:
        """Logits float32 [B, V] after ``token``."""
        inputs = {
            INPUTS_EMBEDS: self._embed.run({INPUT_IDS: token})[TEXT_EMBEDS],
            POSITION_IDS: position,
            WRITE_INDEX: write_index,
            LOGITS_INDEX: self._last,
        }
        logits: np.ndarray = self._decoder.run(inputs, self._cache)[LOGITS][:, 0]
        return logits
