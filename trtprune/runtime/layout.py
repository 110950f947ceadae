"""The places of a prompt's text and kept visual tokens in the decoder's input."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from trtprune.runtime.positions import ImageTokens, Piece, PositionRule

if TYPE_CHECKING:
    from trtprune.backends.base import Array
    from trtprune.runtime.prompt import Prompt

__all__ = ["Layout", "Selection", "beginning", "lay_out"]


@dataclass(frozen=True)
class Selection:
    """The visual tokens that enter the decoder, of all images of a prompt.

    Attributes:
        kept: For each image int64 [n], ascending, indices of its visual tokens that enter.
        rows: For each image [n, D], their features.
        grids: For each image int [N, 3], crop, row and column of its visual tokens before pruning.
        keeps: For each image its budget.
        spans: For each image the visual tokens of each of its spans before pruning; empty: one span an image.
    """

    kept: tuple[np.ndarray, ...]
    rows: tuple[Array, ...]
    grids: tuple[np.ndarray, ...]
    keeps: tuple[int, ...]
    spans: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "spans", self.spans or tuple((len(grid),) for grid in self.grids))


@dataclass(frozen=True)
class Layout:
    """One row's prompt as the decoder reads it; S rows of text and kept visual tokens.

    Attributes:
        ids: int64 [S]; the placeholder's id stands for every kept visual token.
        embeds: Pieces [n, D] in the build's dtype with S rows in all; together they are the decoder's input.
        positions: int64 [axes, S].
        next_position: The position of the answer's first token, the same on all axes.
        spans: For each image the visual tokens of each of its spans before pruning.
        places: For each image and each of its spans the first row and the row behind the last; they are equal where no
            visual token of the span is kept.
        markers: int64, ascending, the rows of the text around and between an image's spans, see
            :attr:`trtprune.runtime.images.TokenPlan.markers`.
        keeps: For each image its budget, for a decoder that prunes.
        kept: For each image int64, indices of its visual tokens in the rows.
        grids: For each image int [N, 3], crop, row and column of its visual tokens before pruning.
    """

    ids: np.ndarray
    embeds: tuple[Array, ...]
    positions: np.ndarray
    next_position: int
    spans: tuple[tuple[int, ...], ...] = ()
    places: tuple[tuple[tuple[int, int], ...], ...] = ()
    markers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    keeps: tuple[int, ...] = ()
    kept: tuple[np.ndarray, ...] = ()
    grids: tuple[np.ndarray, ...] = ()

    @property
    def visual_tokens(self) -> tuple[int, ...]:
        """For each image N, its visual tokens before pruning."""
        return tuple(map(len, self.grids))


def beginning(layout: Layout, stop: int) -> Layout:
    """The first ``stop`` rows of a layout, for a decoder that does not prune."""
    pieces, rest = [], stop
    for piece in layout.embeds:
        if rest > 0:
            pieces.append(piece[:rest] if rest < len(piece) else piece)
        rest -= len(piece)
    return replace(layout, ids=layout.ids[:stop], embeds=tuple(pieces), positions=layout.positions[:, :stop])


def lay_out(prompt: Prompt, text_embeds: Array, selection: Selection, rule: PositionRule) -> Layout:
    """Replaces the placeholders by the kept features.

    Args:
        prompt: A prompt with one placeholder for each span of the selection's images.
        text_embeds: [T, D], the embeddings of all ids of the prompt; rows at placeholders are ignored.
        selection: The features of each image that enter the decoder.
        rule: The rule of the rows' positions.
    """
    ids, rows = [], []
    places: list[tuple[int, int]] = []
    pieces: list[Piece] = []
    start, length = 0, 0
    parts = list(_parts(selection))
    for number, end in enumerate([*prompt.image_positions, len(prompt.ids)]):
        ids.append(prompt.ids[start:end])
        rows.append(text_embeds[start:end])
        pieces.append(end - start)
        length += end - start
        if number < len(parts):
            image, features = parts[number]
            kept = len(image.kept)
            ids.append(np.full(kept, int(prompt.ids[end]), np.int64))
            rows.append(features)
            places.append((length, length + kept))
            pieces.append(image)
            length += kept
        start = end + 1
    positions = rule.place(pieces)
    ends = iter(places)
    # A row moves by the visual tokens in front of it, each placeholder being one already.
    moved = np.cumsum([0, *(stop - first - 1 for first, stop in places)])
    markers = np.array(prompt.markers, np.int64)
    return Layout(
        ids=np.concatenate(ids),
        embeds=tuple(piece for piece in rows if len(piece)),
        positions=positions.of_tokens,
        next_position=positions.next,
        spans=selection.spans,
        places=tuple(tuple(itertools.islice(ends, len(lengths))) for lengths in selection.spans),
        markers=markers + moved[np.searchsorted(prompt.image_positions, markers)],
        keeps=selection.keeps,
        kept=selection.kept,
        grids=selection.grids,
    )


def _parts(selection: Selection) -> Iterator[tuple[ImageTokens, Array]]:
    """The kept visual tokens of each span, counted from its first one, with their features."""
    for kept, rows, grid, lengths in zip(selection.kept, selection.rows, selection.grids, selection.spans, strict=True):
        first = 0
        # A token of the tower's own, below 0, stands in front of all others.
        edges = np.searchsorted(kept, np.cumsum([0, *lengths]))
        edges[0] = 0
        for length, begin, stop in zip(lengths, edges, edges[1:], strict=False):
            yield ImageTokens(kept[begin:stop] - first, grid[first : first + length]), rows[begin:stop]
            first += length
