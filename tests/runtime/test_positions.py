"""Position rules: transformers' ``get_rope_index`` for whole images, and the rule token by token for pruned ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from trtprune.engine_dir import POSITIONS
from trtprune.errors import EngineDirError
from trtprune.runtime.layout import Selection, lay_out
from trtprune.runtime.positions import RULES, ImageTokens, Piece, position_rule
from trtprune.runtime.prompt import Prompt

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))
MERGE = 2
"""Patches of a side of a visual token."""


def grid_of(rows: int, columns: int, crops: int = 1) -> np.ndarray:
    """Crop, row and column of each token, row by row."""
    sides = (crops, rows, columns)
    return np.stack(np.unravel_index(np.arange(np.prod(sides)), sides), axis=-1)


@st.composite
def prompts(draw: Any) -> tuple[list[int], list[np.ndarray]]:
    """Lengths of the texts around images, at least a token between two of them, and the images' grids."""
    images = draw(st.lists(SIDES, min_size=1, max_size=4))
    texts = [draw(st.integers(1, 7)) for _ in images]
    return [draw(st.integers(0, 5)), *texts], [grid_of(*sides) for sides in images]


def whole(texts: list[int], grids: list[np.ndarray], kept: list[np.ndarray] | None = None) -> list[Piece]:
    pieces: list[Piece] = [texts[0]]
    for i, (grid, text) in enumerate(zip(grids, texts[1:], strict=True)):
        pieces += [ImageTokens(np.arange(len(grid)) if kept is None else kept[i], grid), text]
    return pieces


def test_the_rules_are_those_a_config_may_name() -> None:
    assert tuple(RULES) == POSITIONS
    for name in RULES:
        assert (position_rule(name, 3).name, position_rule(name, 3).axes) == (name, 3)
    with pytest.raises(EngineDirError, match="'other' is unknown"):
        position_rule("other", 1)


@pytest.mark.parametrize("family", [Qwen2_5_VLModel, Qwen3VLModel])
@settings(max_examples=60, deadline=None)
@given(prompts())
def test_whole_images_as_transformers_places_them(family: Any, prompt: tuple[list[int], list[np.ndarray]]) -> None:
    """Both rules, of images that keep everything; and ``rope_deltas``, which is next position minus length."""
    texts, grids = prompt
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=MERGE, tokens_per_second=2))
    model = SimpleNamespace(config=config)
    model.get_vision_position_ids = lambda *a, **k: family.get_vision_position_ids(model, *a, **k)
    types = [0] * texts[0]
    for grid, text in zip(grids, texts[1:], strict=True):
        types += [1] * len(grid) + [0] * text
    sides = [[1, *(MERGE * (grid.max(axis=0)[1:] + 1))] for grid in grids]
    expected, delta = family.get_rope_index(
        model,
        input_ids=torch.zeros(1, len(types), dtype=torch.long),
        mm_token_type_ids=torch.tensor([types]),
        image_grid_thw=torch.tensor(sides),
    )
    for rule in RULES:
        found = position_rule(rule, 3).place(whole(texts, grids))
        np.testing.assert_array_equal(found.of_tokens, expected[:, 0].numpy())
        assert found.next == int(delta) + len(types)


def by_hand(rule: str, axes: int, pieces: list[Piece]) -> tuple[list[list[int]], int]:
    """The rule as a walk over every token, dropped ones included."""
    rows: list[list[int]] = []
    p = 0
    for piece in pieces:
        if not isinstance(piece, ImageTokens):
            for _ in range(piece):
                rows.append([p] * axes)
                p += 1
            continue
        kept, start, top = set(piece.kept.tolist()), p, p - 1
        for token, place in enumerate(piece.grid.tolist()):
            stays = token in kept
            if axes == 1:
                if stays:
                    rows.append([p])
                p += stays or rule == "original"
                continue
            mine = [start + number for number in place]
            if stays:
                rows.append(mine)
            if stays or rule == "original":
                top = max(top, *mine)
        if axes == 3:
            p = top + 1
    return rows, p


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("rule", POSITIONS)
@given(prompts(), st.data())
def test_pruned_images(rule: str, axes: int, prompt: tuple[list[int], list[np.ndarray]], data: st.DataObject) -> None:
    texts, grids = prompt
    if data.draw(st.booleans()):  # crops as a time axis, which may be the longest
        grids[0] = grid_of(2, 3, crops=data.draw(st.integers(1, 6)))
    kept = [np.array(sorted(data.draw(st.sets(st.integers(0, len(grid) - 1), min_size=0))), np.int64) for grid in grids]
    pieces = whole(texts, grids, kept)
    made = position_rule(rule, axes)
    found = made.place(pieces)
    rows, following = by_hand(rule, axes, pieces)
    assert found.of_tokens.dtype == np.int64
    np.testing.assert_array_equal(found.of_tokens, np.array(rows, np.int64).reshape(-1, axes).T)
    assert found.next == following
    # No image takes more positions than the bound says, and one with its last token takes as many.
    for grid, some in zip(grids, kept, strict=True):
        assert made.place([ImageTokens(some, grid)]).next <= made.most(len(some), grid)
        assert made.place([ImageTokens(np.array([len(grid) - 1]), grid)]).next == made.most(1, grid)


def test_three_axes_need_a_row_and_a_column() -> None:
    grid = grid_of(2, 2)
    grid[3] = -1  # a newline token
    for rule in POSITIONS:
        assert position_rule(rule, 3).place([ImageTokens(np.array([0, 2]), grid)]).of_tokens.shape == (3, 2)
        for kept in ([2, 3], [-1, 0]):
            with pytest.raises(EngineDirError, match="no row and column"):
                position_rule(rule, 3).place([ImageTokens(np.array(kept), grid)])


def test_the_layout_of_a_prompt() -> None:
    """Two pruned images, of 2 x 3 and of 4 x 1 tokens, between texts; numbered by hand."""
    ids = np.array([7, 7, 5, 8, 5, 9, 9], np.int64)
    prompt = Prompt(ids, (2, 4), ())
    embeds = np.zeros((7, 4), np.float32)
    kept = (np.array([1, 3]), np.array([0]))
    rows = tuple(np.ones((len(k), 4), np.float32) for k in kept)
    selection = Selection(kept, rows, (grid_of(2, 3), grid_of(4, 1)), (2, 1))
    compact = lay_out(prompt, embeds, selection, position_rule("compact", 3))
    assert compact.positions.T.tolist() == [
        [0] * 3, [1] * 3, [2, 2, 3], [2, 3, 2], [4] * 3, [5, 5, 5], [6] * 3, [7] * 3,
    ]  # fmt: skip
    original = lay_out(prompt, embeds, selection, position_rule("original", 3))
    assert original.positions.T.tolist() == [
        [0] * 3, [1] * 3, [2, 2, 3], [2, 3, 2], [5] * 3, [6, 6, 6], [10] * 3, [11] * 3,
    ]  # fmt: skip
    assert (compact.next_position, original.next_position) == (8, 12)
    assert compact.visual_tokens == (6, 4)
