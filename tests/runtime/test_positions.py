"""Position rules: transformers' ``get_rope_index`` for whole images, and the rule token by token for pruned ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance import write_positions
from tests.conformance.write_positions import FAMILIES, Piece, transformers_places, walk, whole
from trtprune.engine_dir import POSITIONS
from trtprune.errors import EngineDirError
from trtprune.runtime.layout import Selection, lay_out
from trtprune.runtime.positions import RULES, ImageTokens, PositionRule, Positions, position_rule
from trtprune.runtime.prompt import Prompt

SIDE = st.integers(1, 9)


def grid_of(crops: int, rows: int, columns: int) -> np.ndarray:
    """Crop, row and column of each token, crop by crop and row by row."""
    sides = (crops, rows, columns)
    return np.stack(np.unravel_index(np.arange(np.prod(sides)), sides), axis=-1)


@st.composite
def prompts(draw: Any, pruned: bool) -> list[Piece]:
    """Texts around images, with a token at least between two of them."""
    pieces: list[Piece] = [draw(st.integers(0, 5))]
    for _ in range(draw(st.integers(1, 4))):
        sides = [draw(st.sampled_from([1, 1, 4]) if pruned else st.just(1)), draw(SIDE), draw(SIDE)]
        kept = whole(sides)
        if pruned:
            kept = sorted(draw(st.sets(st.sampled_from(kept), max_size=len(kept))))
        pieces += [{"sides": sides, "kept": kept}, draw(st.integers(1, 7))]
    return pieces


def image_of(piece: dict[str, list[int]]) -> ImageTokens:
    return ImageTokens(np.array(piece["kept"], np.int64), grid_of(*piece["sides"]))


def place(rule: PositionRule, pieces: Sequence[Piece]) -> Positions:
    return rule.place([piece if isinstance(piece, int) else image_of(piece) for piece in pieces])


def test_the_rules_are_those_a_config_may_name() -> None:
    assert tuple(RULES) == POSITIONS
    for name in RULES:
        assert (position_rule(name, 3).name, position_rule(name, 3).axes) == (name, 3)
    with pytest.raises(EngineDirError, match="'other' is unknown"):
        position_rule("other", 1)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(prompts(pruned=False))
def test_whole_images_as_transformers_places_them(family: Any, pieces: list[Piece]) -> None:
    """Both rules, of images that keep everything; and ``rope_deltas``, which is next position minus length."""
    positions, following = transformers_places(family, pieces)
    for rule in RULES:
        found = place(position_rule(rule, 3), pieces)
        assert (found.of_tokens.tolist(), found.next) == (positions, following)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("rule", POSITIONS)
@given(prompts(pruned=True))
def test_pruned_images(rule: str, axes: int, pieces: list[Piece]) -> None:
    made = position_rule(rule, axes)
    found = place(made, pieces)
    assert found.of_tokens.dtype == np.int64
    assert (found.of_tokens.tolist(), found.next) == walk(rule, axes, pieces)
    # No image takes more positions than the bound says, and one with its last token takes as many.
    for piece in pieces:
        if not isinstance(piece, int):
            image, last = image_of(piece), {**piece, "kept": whole(piece["sides"])[-1:]}
            assert made.place([image]).next <= made.most(len(image.kept), image.grid)
            assert place(made, [last]).next == made.most(1, image.grid)


def test_the_vectors() -> None:
    """What other runtimes are held to, as it is written now and as this runtime has it."""
    assert write_positions.PATH.read_text(encoding="utf-8") == write_positions.text()
    cases = json.loads(write_positions.PATH.read_text(encoding="utf-8"))["cases"]
    for case in cases:
        found = place(position_rule(case["rule"], case["axes"]), case["pieces"])
        assert (found.of_tokens.tolist(), found.next) == (case["positions"], case["next"])


def test_three_axes_need_a_row_and_a_column() -> None:
    grid = grid_of(1, 2, 2)
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
    selection = Selection(kept, rows, (grid_of(1, 2, 3), grid_of(1, 4, 1)), (2, 1))
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
