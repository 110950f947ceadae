"""Prompts between the segments of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtprune.runtime.positions import ImageTokens, Piece

if TYPE_CHECKING:
    from trtprune.backends.base import Array

__all__ = ["MERGED", "TEXT", "PromptRow", "kept_of", "pieces_of", "rating_table"]

TEXT = -1
"""Value for text instead of an image's number."""
MERGED = -2
"""Value for merged tokens instead of a row of the first segment."""


@dataclass
class PromptRow:
    """A prompt between two segments, with S tokens.

    Attributes:
        pieces: Arrays [n, D], together its S states.
        positions: int64 [axes, S].
        next_position: The position behind its last token, the same on all axes.
        picture: int64 [S], the number of the image a token belongs to, or :data:`TEXT`.
        source: int64 [S], a token's row in the first segment, or :data:`MERGED`.
        raters: For each image the rows of the first segment that rate it.
        keeps: For each image its budget.
        grids: For each image int [N, 3], crop, row and column of its visual tokens before pruning.
        firsts: For each image its first row in the first segment, where all of its visual tokens are.
        ranks: For each image the rank of its raters' attention at each point, as far as known, if that decides the
            number of tokens.
        counts: For each image the kept tokens at each point so far, likewise.
        stale: Whether a rank requires other numbers at earlier points.
    """

    pieces: list[Array]
    positions: np.ndarray
    next_position: int
    picture: np.ndarray
    source: np.ndarray
    raters: list[np.ndarray]
    keeps: Sequence[int]
    grids: Sequence[np.ndarray]
    firsts: Sequence[int]
    ranks: list[list[int]]
    counts: list[list[int]]
    stale: bool = False

    def __len__(self) -> int:
        return len(self.source)

    def span(self, number: int) -> tuple[int, int]:
        """First row of an image, and the row behind its last."""
        rows = np.flatnonzero(self.picture == number)
        return int(rows[0]), int(rows[-1]) + 1

    def rating(self, number: int | None = None) -> np.ndarray:
        """The present rows of an image's raters; None: of all images."""
        wanted = np.concatenate(self.raters) if number is None else self.raters[number]
        return np.flatnonzero(np.isin(self.source, wanted) & (self.picture == TEXT))


def pieces_of(row: PromptRow) -> list[Piece]:
    """The row's text and images for a position rule; merged tokens, which have no place in an image, count as text."""
    pieces: list[Piece] = []
    done = 0
    for number, (first, grid) in enumerate(zip(row.firsts, row.grids, strict=True)):
        begin, stop = row.span(number)
        source = row.source[begin:stop]
        kept = source[source != MERGED] - first
        pieces += [begin - done, ImageTokens(kept, grid), len(source) - len(kept)]
        done = stop
    return [*pieces, len(row) - done]


def rating_table(rows: Sequence[PromptRow]) -> np.ndarray:
    """The raters' rows of each row of the batch, int64 [B, R], padded with row 0."""
    found = [row.rating() if row.raters else np.zeros(1, np.int64) for row in rows]
    table = np.zeros((len(rows), max(map(len, found))), np.int64)
    for b, index in enumerate(found):
        table[b, : len(index)] = index
    return table


def kept_of(row: PromptRow) -> list[np.ndarray]:
    """For each image, the indices of its kept tokens among its visual tokens, without merged ones."""
    return [piece.kept for piece in pieces_of(row) if isinstance(piece, ImageTokens)]
