"""Where the text and the kept visual tokens of a prompt stand in the decoder's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from trtprune.backends.base import Array
    from trtprune.runtime.prompt import Prompt

__all__ = ["Layout", "lay_out"]


@dataclass(frozen=True)
class Layout:
    """One row's prompt as the decoder reads it; S rows of text and kept visual tokens.

    Attributes:
        ids: int64 [S]; the placeholder's id stands for every kept visual token.
        embeds: Pieces [n, D] in the build's dtype, S rows together; the decoder's input is put together from them.
        positions: int64 [S].
        next_position: Of the first token of the answer.
        pictures: First row of each image and the one behind its last.
        keep: The budget of each image, where the decoder prunes.
    """

    ids: np.ndarray
    embeds: tuple[Array, ...]
    positions: np.ndarray
    next_position: int
    pictures: tuple[tuple[int, int], ...] = ()
    keep: int = 0


def lay_out(
    prompt: Prompt,
    text_embeds: Array,
    features: Sequence[Array],
    kept: Sequence[np.ndarray],
    visual_tokens: int,
    positions: str,
    keep: int = 0,
) -> Layout:
    """Puts the kept features where the placeholders are.

    Args:
        prompt: With as many placeholders as there are ``features``.
        text_embeds: [T, D], of all ids of the prompt; rows at placeholders are ignored.
        features: [keep, D] of each picture.
        kept: int64 [keep] of each picture: which of its N tokens the features are.
        visual_tokens: N.
        positions: ``compact`` numbers what is left 0, 1, 2 …; ``original`` gives each token the number it would have
            if nothing had been dropped.
        keep: For the layout.
    """
    ids, rows, places, pictures = [], [], [], []
    start, place = 0, 0
    placeholder = -1
    for image, end in enumerate([*prompt.image_positions, len(prompt.ids)]):
        ids.append(prompt.ids[start:end])
        rows.append(text_embeds[start:end])
        places.append(place + np.arange(end - start))
        place += end - start
        if image < len(features):
            placeholder = int(prompt.ids[end])
            ids.append(np.full(len(kept[image]), placeholder, np.int64))
            rows.append(features[image])
            begin = sum(map(len, ids[:-1]))
            pictures.append((begin, begin + len(kept[image])))
            places.append(place + kept[image])
            place += visual_tokens
        start = end + 1
    all_ids, embeds = np.concatenate(ids), tuple(piece for piece in rows if len(piece))
    if positions == "compact":
        return Layout(all_ids, embeds, np.arange(len(all_ids)), len(all_ids), tuple(pictures), keep)
    return Layout(all_ids, embeds, np.concatenate(places).astype(np.int64), place, tuple(pictures), keep)
