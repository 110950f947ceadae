"""The places of a prompt's text and kept visual tokens in the decoder's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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
        visual_tokens: For each image N, its visual tokens before pruning.
        keeps: For each image its budget.
    """

    kept: tuple[np.ndarray, ...]
    rows: tuple[Array, ...]
    visual_tokens: tuple[int, ...]
    keeps: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """One row's prompt as the decoder reads it; S rows of text and kept visual tokens.

    Attributes:
        ids: int64 [S]; the placeholder's id stands for every kept visual token.
        embeds: Pieces [n, D] in the build's dtype with S rows in all; together they are the decoder's input.
        positions: int64 [S].
        next_position: The position of the answer's first token.
        pictures: For each image its first row and the row behind its last.
        keeps: For each image its budget, for a decoder that prunes.
        kept: For each image int64, indices of its visual tokens in the rows.
        visual_tokens: For each image N, its visual tokens before pruning.
    """

    ids: np.ndarray
    embeds: tuple[Array, ...]
    positions: np.ndarray
    next_position: int
    pictures: tuple[tuple[int, int], ...] = ()
    keeps: tuple[int, ...] = ()
    kept: tuple[np.ndarray, ...] = ()
    visual_tokens: tuple[int, ...] = ()


def lay_out(prompt: Prompt, text_embeds: Array, selection: Selection, positions: str) -> Layout:
    """Replaces the placeholders by the kept features.

    Args:
        prompt: A prompt with one placeholder per image of the selection.
        text_embeds: [T, D], the embeddings of all ids of the prompt; rows at placeholders are ignored.
        selection: The features of each image that enter the decoder.
        positions: ``compact`` numbers the rows 0, 1, 2 …; ``original`` gives each row the number it would have if
            nothing had been dropped.
    """
    ids, rows, places, pictures = [], [], [], []
    start, place, length = 0, 0, 0
    for image, end in enumerate([*prompt.image_positions, len(prompt.ids)]):
        ids.append(prompt.ids[start:end])
        rows.append(text_embeds[start:end])
        places.append(place + np.arange(end - start))
        place, length = place + end - start, length + end - start
        if image < len(selection.rows):
            kept = selection.kept[image]
            ids.append(np.full(len(kept), int(prompt.ids[end]), np.int64))
            rows.append(selection.rows[image])
            pictures.append((length, length + len(kept)))
            places.append(place + kept)
            place, length = place + selection.visual_tokens[image], length + len(kept)
        start = end + 1
    numbers = np.concatenate(places).astype(np.int64)
    if positions == "compact":
        numbers, place = np.arange(length), length
    return Layout(
        ids=np.concatenate(ids),
        embeds=tuple(piece for piece in rows if len(piece)),
        positions=numbers,
        next_position=place,
        pictures=tuple(pictures),
        keeps=selection.keeps,
        kept=selection.kept,
        visual_tokens=selection.visual_tokens,
    )
