"""The places of a prompt's text and kept visual tokens in the decoder's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtprune.runtime.positions import ImageTokens, Piece, PositionRule

if TYPE_CHECKING:
    from trtprune.backends.base import Array
    from trtprune.runtime.prompt import Prompt

__all__ = ["Layout", "Selection", "lay_out"]


@dataclass(frozen=True)
class Selection:
    """The visual tokens that enter the decoder, of all images of a prompt.

    Attributes:
        kept: For each image int64 [n], ascending, indices of its visual tokens that enter.
        rows: For each image [n, D], their features.
        grids: For each image int [N, 3], crop, row and column of its visual tokens before pruning.
        keeps: For each image its budget.
    """

    kept: tuple[np.ndarray, ...]
    rows: tuple[Array, ...]
    grids: tuple[np.ndarray, ...]
    keeps: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """One row's prompt as the decoder reads it; S rows of text and kept visual tokens.

    Attributes:
        ids: int64 [S]; the placeholder's id stands for every kept visual token.
        embeds: Pieces [n, D] in the build's dtype with S rows in all; together they are the decoder's input.
        positions: int64 [axes, S].
        next_position: The position of the answer's first token, the same on all axes.
        pictures: For each image its first row and the row behind its last.
        keeps: For each image its budget, for a decoder that prunes.
        kept: For each image int64, indices of its visual tokens in the rows.
        grids: For each image int [N, 3], crop, row and column of its visual tokens before pruning.
    """

    ids: np.ndarray
    embeds: tuple[Array, ...]
    positions: np.ndarray
    next_position: int
    pictures: tuple[tuple[int, int], ...] = ()
    keeps: tuple[int, ...] = ()
    kept: tuple[np.ndarray, ...] = ()
    grids: tuple[np.ndarray, ...] = ()

    @property
    def visual_tokens(self) -> tuple[int, ...]:
        """For each image N, its visual tokens before pruning."""
        return tuple(map(len, self.grids))


def lay_out(prompt: Prompt, text_embeds: Array, selection: Selection, rule: PositionRule) -> Layout:
    """Replaces the placeholders by the kept features.

    Args:
        prompt: A prompt with one placeholder per image of the selection.
        text_embeds: [T, D], the embeddings of all ids of the prompt; rows at placeholders are ignored.
        selection: The features of each image that enter the decoder.
        rule: The rule of the rows' positions.
    """
    ids, rows, pictures = [], [], []
    pieces: list[Piece] = []
    start, length = 0, 0
    for image, end in enumerate([*prompt.image_positions, len(prompt.ids)]):
        ids.append(prompt.ids[start:end])
        rows.append(text_embeds[start:end])
        pieces.append(end - start)
        length += end - start
        if image < len(selection.rows):
            kept = selection.kept[image]
            ids.append(np.full(len(kept), int(prompt.ids[end]), np.int64))
            rows.append(selection.rows[image])
            pictures.append((length, length + len(kept)))
            pieces.append(ImageTokens(kept, selection.grids[image]))
            length += len(kept)
        start = end + 1
    positions = rule.place(pieces)
    return Layout(
        ids=np.concatenate(ids),
        embeds=tuple(piece for piece in rows if len(piece)),
        positions=positions.of_tokens,
        next_position=positions.next,
        pictures=tuple(pictures),
        keeps=selection.keeps,
        kept=selection.kept,
        grids=selection.grids,
    )
