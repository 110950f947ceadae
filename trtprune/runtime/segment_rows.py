"""Prompts on their way through a decoder in segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from trtprune.backends.base import Array

__all__ = ["MERGED", "TEXT", "PromptRow", "kept_of", "rating_table"]

TEXT = -1
"""In place of an image's number."""
MERGED = -2
"""In place of the row of the first segment."""


@dataclass
class PromptRow:
    """A prompt on its way through the segments, S tokens at present.

    Attributes:
        pieces: Arrays [n, D] that together are its S states.
        positions: int64 [S].
        picture: int64 [S], the number of the image a token belongs to, or :data:`TEXT`.
        source: int64 [S], which row of the first segment a token is, or :data:`MERGED`.
        raters: For each image the rows of the first segment that rate it.
        keep: The budget of each image.
        visual_tokens: For each image N, its visual tokens before pruning.
        ranks: For each image the rank of its raters' attention at each point, as far as known, where that decides how
            many tokens stay.
        counts: For each image the tokens kept at each point so far, likewise.
        stale: Whether a rank showed that earlier points should have kept another number.
    """

    pieces: list[Array]
    positions: np.ndarray
    picture: np.ndarray
    source: np.ndarray
    raters: list[np.ndarray]
    keep: int
    visual_tokens: Sequence[int]
    ranks: list[list[int]]
    counts: list[list[int]]
    stale: bool = False

    def __len__(self) -> int:
        return len(self.positions)

    def span(self, number: int) -> tuple[int, int]:
        """First row of an image, and the one behind its last."""
        rows = np.flatnonzero(self.picture == number)
        return int(rows[0]), int(rows[-1]) + 1

    def rating(self, number: int | None = None) -> np.ndarray:
        """Rows, at present, of an image's raters; None: of any image's."""
        wanted = np.concatenate(self.raters) if number is None else self.raters[number]
        return np.flatnonzero(np.isin(self.source, wanted) & (self.picture == TEXT))


def rating_table(rows: Sequence[PromptRow]) -> np.ndarray:
    """The rating rows of each row, int64 [B, R], filled up with row 0."""
    found = [row.rating() if row.raters else np.zeros(1, np.int64) for row in rows]
    table = np.zeros((len(rows), max(map(len, found))), np.int64)
    for b, index in enumerate(found):
        table[b, : len(index)] = index
    return table


def kept_of(row: PromptRow) -> list[np.ndarray]:
    """For each image, the sources of its kept tokens, without merged ones."""
    return [row.source[(row.picture == number) & (row.source != MERGED)] for number in range(len(row.raters))]
