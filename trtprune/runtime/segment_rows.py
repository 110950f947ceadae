"""Prompts between the segments of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtprune.runtime.positions import ImageTokens, Piece

if TYPE_CHECKING:
    from trtprune.backends.base import Array

__all__ = ["MARKER", "MERGED", "TEXT", "PromptRow", "kept_of", "pieces_of", "rating_table"]

TEXT = -1
"""Value for text instead of an image's number."""
MARKER = -2
"""Value for the text around and between an image's spans instead of an image's number."""
MERGED = -2
"""Value for merged tokens instead of a row of the first segment."""


@dataclass
class PromptRow:
    """A prompt between two segments, with S tokens.

    Attributes:
        pieces: Arrays [n, D], together its S states.
        positions: int64 [axes, S].
        next_position: The position behind its last token, the same on all axes.
        picture: int64 [S], the number of the image a token belongs to, :data:`TEXT` or :data:`MARKER`.
        source: int64 [S], a token's row in the first segment, or :data:`MERGED`.
        raters: For each image the rows of the first segment that rate it.
        keeps: For each image its budget.
        grids: For each image int [N, 3], crop, row and column of its visual tokens before pruning.
        places: For each image and each of its spans the first row and the row behind the last in the first segment,
            where all visual tokens are.
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
    places: Sequence[Sequence[tuple[int, int]]]
    ranks: list[list[int]]
    counts: list[list[int]]
    stale: bool = False

    def __len__(self) -> int:
        return len(self.source)

    def rows_of(self, number: int) -> np.ndarray:
        """The rows of an image, int64, ascending."""
        return np.flatnonzero(self.picture == number)

    def rating(self, number: int | None = None) -> np.ndarray:
        """The present rows of an image's raters; None: of all images."""
        wanted = np.concatenate(self.raters) if number is None else self.raters[number]
        return np.flatnonzero(np.isin(self.source, wanted) & (self.picture == TEXT))


def pieces_of(row: PromptRow) -> list[Piece]:
    """The row's text and images for a position rule; merged tokens, which have no place in an image, count as text."""
    pieces: list[Piece] = []
    done = 0
    for number, (places, grid) in enumerate(zip(row.places, row.grids, strict=True)):
        source = row.source[row.rows_of(number)]
        visual = source[source != MERGED]
        first = 0
        for begin, stop in places:
            kept = visual[(visual >= begin) & (visual < stop)] - begin
            # Text is never pruned: all that lies between two spans of the first segment is still there.
            pieces += [begin - done, ImageTokens(kept, grid[first : first + stop - begin])]
            done, first = stop, first + stop - begin
        pieces.append(len(source) - len(visual))
    return [*pieces, len(row) - sum(piece if isinstance(piece, int) else len(piece.kept) for piece in pieces)]


def rating_table(rows: Sequence[PromptRow]) -> np.ndarray:
    """The raters' rows of each row of the batch, int64 [B, R], padded with row 0."""
    found = [row.rating() if row.raters else np.zeros(1, np.int64) for row in rows]
    table = np.zeros((len(rows), max(map(len, found))), np.int64)
    for b, index in enumerate(found):
        table[b, : len(index)] = index
    return table


def kept_of(row: PromptRow) -> list[np.ndarray]:
    """For each image, the indices of its kept tokens among its visual tokens, without merged ones."""
    kept = []
    for number, places in enumerate(row.places):
        source = row.source[row.rows_of(number)]
        rows = np.concatenate([np.arange(begin, stop) for begin, stop in places])
        kept.append(np.flatnonzero(np.isin(rows, source)))
    return kept
