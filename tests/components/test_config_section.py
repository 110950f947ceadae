"""``Section``: any JSON value is read as what it says or refused in one line, whatever it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trtprune.components.config import Section
from trtprune.components.rope import ROPE_TYPES, Rope
from trtprune.errors import CheckpointError, one_line, shown

ODD = [10**400, -(10**400), 1e39, 1e-320, math.inf, -math.inf, math.nan, 0, 0.0, -0.0, 2**63, True]
NUMBERS = st.integers() | st.floats() | st.sampled_from(ODD)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
READERS: dict[str, Callable[[Section], Any]] = {
    "integer": lambda s: s.integer("x", 7),
    "optional_integer": lambda s: s.optional_integer("x"),
    "number": lambda s: s.number("x", 1.0),
    "numbers": lambda s: s.numbers("x", 2),
    "flag": lambda s: s.flag("x", False),
    "choice": lambda s: s.choice("x", {"a": 1, "b": 2}, "a"),
    "choices": lambda s: s.choices("x", ("a", "b"), 2),
    "size": lambda s: s.size("x", 3),
    "section": lambda s: s.section("x"),
    "fixed": lambda s: s.fixed("x", 1.0),
}


def refused(error: CheckpointError, begin: str) -> None:
    assert error.message.startswith(begin)
    assert len(error.message) < 500
    assert error.hint


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=80, deadline=None)
@given(value=JSON | NUMBERS | st.lists(NUMBERS, min_size=2, max_size=2))
def test_any_value_is_read_or_refused(reader: str, value: Any) -> None:
    check_reader(reader, value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("value", ODD, ids=lambda value: f"{value:.3g}" if isinstance(value, float) else None)
def test_odd_numbers(reader: str, value: Any) -> None:
    for entry in (value, [value, value], [1, value], {"a": value}):
        check_reader(reader, entry)


def check_reader(reader: str, value: Any) -> None:
    try:
        found = READERS[reader](Section({"x": value}, "text_config"))
    except CheckpointError as error:
        refused(error, "config.json: text_config.x")
        return
    for number in found if isinstance(found, list) else [found]:
        if isinstance(number, float):
            assert number > 0
            assert np.isfinite(np.float32(number))


ROPE_KEYS = [
    "rope_theta",
    "factor",
    "attention_factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "short_factor",
    "long_factor",
    "truncate",
]
PLAUSIBLE = st.sampled_from([0.5, 1, 1.0, 2, 4.0, 32, 1e4, [1.0] * 4, [1.0, 2.0, 1e-30, 1e30], True, 1e-38, 3e38])


@settings(max_examples=300, deadline=None)
@example(kind="linear", values={"factor": 1e-38, "rope_theta": 1e-3}, dim=8, longest=64)
@example(kind="linear", values={"factor": 1e-38, "rope_theta": 1e-9}, dim=8, longest=64)
@example(kind="yarn", values={"factor": 2.0, "rope_theta": 1.0}, dim=8, longest=64)
@example(kind="longrope", values={"short_factor": [1e-38] * 4, "long_factor": [1e-45] * 4}, dim=8, longest=64)
@given(
    kind=st.sampled_from(ROPE_TYPES),
    values=st.dictionaries(st.sampled_from(ROPE_KEYS), PLAUSIBLE | JSON, max_size=7),
    dim=st.sampled_from([2, 4, 8]),
    longest=st.sampled_from([1, 2, 64, 2**31 - 1]),
)
def test_any_rope_is_finite_or_refused(kind: str, values: dict[str, Any], dim: int, longest: int) -> None:
    text = Section({"rope_parameters": {"rope_type": kind, **values}}, "text_config")
    try:
        rope = Rope.from_config(text, dim, longest)
    except CheckpointError as error:
        refused(error, "config.json: text_config")
        return
    assert rope.inv_freq.shape == (dim // 2,)
    assert np.isfinite(rope.inv_freq).all()
    assert np.isfinite(rope.scaling)
    if rope.long_inv_freq is not None:
        assert np.isfinite(rope.long_inv_freq).all()


@given(value=JSON)
def test_shown_is_short_and_printable_for_any_value(value: Any) -> None:
    assert len(one_line(shown(value))) <= 500


def test_shown_does_not_make_what_it_cuts() -> None:
    assert shown("x" * 100_000_000).count("x") < 200
    assert shown([1] * 1_000_000) == "[1, 1, 1, 1, 1, 1, 1, 1, ...]"
    assert shown(10**4000).startswith("1000")
    assert "digits" in shown(10**5000)
    assert shown({"a": [math.inf, math.nan]}) == "{'a': [Infinity, NaN]}"
