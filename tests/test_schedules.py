"""Schedules as data: what ``config.json`` says, computed for any image, is what the methods' rules say in loops."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.kit import schedule_oracle as oracle
from trtprune import pruning
from trtprune.engine_dir.json_dataclasses import decode
from trtprune.errors import BudgetError
from trtprune.schedules import Schedule, ScheduleInfo, wrong_schedule

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sparsevlm": ("sparsevlm", {}),
    "sparsevlm 2.0": ("sparsevlm", {"version": "2.0"}),
    "sparsevlm published layers": ("sparsevlm", {"layers": "published"}),
    "sparsevlm recycle=0": ("sparsevlm", {"recycle": 0.0}),
    "sparsevlm recycle=0.55": ("sparsevlm", {"recycle": 0.55}),
    "sparsevlm rank": ("sparsevlm", {"ratio": "rank"}),
    "fastv": ("fastv", {}),
    "fastv k=3": ("fastv", {"k": 3}),
    "pyramiddrop": ("pyramiddrop", {}),
    "pyramiddrop first=2": ("pyramiddrop", {"first": 2}),
}


def stored(method: str, depth: int, options: dict[str, Any]) -> ScheduleInfo:
    """The method's schedule as a program that reads ``config.json`` has it."""
    chosen = pruning.get(method)
    plan = chosen.plan(depth, chosen.validate_options(options))
    assert plan is not None
    info = decode(ScheduleInfo, json.loads(json.dumps(dataclasses.asdict(plan))))
    assert info == plan
    assert not list(wrong_schedule(info))
    return info


def agrees(case: str, keep: int, tokens: int, depth: int) -> None:
    method, options = CASES[case]
    info, wanted = stored(method, depth, options), oracle.schedule(method, keep, tokens, depth, options)
    if wanted is None:
        with pytest.raises(BudgetError, match=f"keep={keep}"):
            info.schedule(keep, tokens)
        most = oracle.schedule(method, keep, tokens, depth, options, at_most=True)
        if most is not None and keep < tokens:
            assert [*info.kept(keep, tokens)] == most[0]
        return
    made = info.schedule(keep, tokens)
    assert ([*made.kept], [*made.after]) == wanted, (case, keep, tokens, depth)
    points = oracle.points_of(method, depth, options)
    assert made.points == points
    assert made.nominal == oracle.average(wanted[1], tokens, depth, points, method)
    assert made.processed == sum(made.per_layer) / depth == oracle.average(wanted[1], tokens, depth, points, "fastv")
    if keep < tokens:
        assert info.kept(keep, tokens) == made.kept


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(CASES)), st.integers(2, 700), st.integers(18, 48), st.data())
def test_any_budget_of_any_image(case: str, tokens: int, depth: int, data: st.DataObject) -> None:
    if "published" in case:
        depth += 4
    agrees(case, data.draw(st.integers(1, tokens)), tokens, depth)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tokens", [576, 1176, 2340, 2928])
def test_budgets_of_llava_next(case: str, tokens: int) -> None:
    for keep in (160, 320, 640):
        agrees(case, keep, tokens, 32)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("keep", [64, 96, 128, 192])
def test_published_tables(version: str, keep: int) -> None:
    info = stored("sparsevlm", 32, {"version": version})
    assert info.schedule(keep, 576).kept == oracle.SPARSE_TABLES[version][keep]


RANKS = st.lists(st.integers(0, 60), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(RANKS, st.integers(1, 400), st.integers(2, 400), st.sampled_from([0.0, 0.3]))
@example([9, 9, 3, 1], 100, 300, 0.3)
def test_ranks_share_out_the_budget(ranks: list[int], keep: int, tokens: int, recycle: float) -> None:
    """Every common factor is tried: the one whose average comes nearest to the budget is taken."""
    options = {"ratio": "rank", "recycle": recycle}
    if keep >= tokens:
        assert stored("sparsevlm", 30, options).rank_counts(ranks, keep, tokens) == (tokens,) * len(ranks)
        return
    points = oracle.points_of("sparsevlm", 30, options)
    known = [max(1, rank) for rank in ranks]
    known += known[-1:] * (4 - len(known))
    ways = []
    for level in range(1, tokens * max(known)):
        counts = [max(1, level * rank // max(known)) for rank in known]
        ways.append(oracle.follow(counts, tokens, "sparsevlm", options))
        if min(counts) >= tokens:  # nothing changes any more
            break
    far = [oracle.average(left, tokens, 30, points, "sparsevlm") - keep for _, left in ways]
    kept = ways[oracle.nearest(far)][0]
    assert [*stored("sparsevlm", 30, options).rank_counts(ranks, keep, tokens)] == kept[: len(ranks)]


def test_an_image_with_no_more_than_the_budget_keeps_all() -> None:
    for case in CASES:
        method, options = CASES[case]
        info = stored(method, 32, options)
        assert info.kept(640, 576) == (576,) * len(info.points)
        assert info.kept(576, 576) == (576,) * len(info.points)


def test_a_schedule_of_the_users_own() -> None:
    info = stored("sparsevlm", 4, {"schedule": "0:20,2:9"})
    assert info.schedule(16, 40) == Schedule(40, 4, (0, 2), (20, 9), (21, 10), 0)
    assert info.served(40) == [16]
    # Another image of the same prompt has fewer tokens than the schedule keeps.
    assert info.kept(16, 18) == (17, 9)
    with pytest.raises(BudgetError, match="averages 15"):
        info.schedule(17, 40)
    with pytest.raises(BudgetError, match="20 tokens of an image of 20"):
        info.schedule(16, 20)


def test_scales_of_ranks() -> None:
    info = stored("sparsevlm", 32, {"ratio": "rank", "scale": 2, "bias": -3.5})
    assert info.ranked
    assert not info.meets_keep
    assert info.entering(64, 576) is None
    assert "the rank of the attention says" in info.describe(64, 576)
    assert info.rank_counts([10, 2, 1], 77, 576) == (16, 1, 1)
    huge = dataclasses.replace(info, scales=((0.0, 1e308, -1e308),))
    assert huge.rank_counts([40, 0], 77, 576) == (575, 1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"points": ()}, "points"),
        ({"points": (3, 3)}, "points"),
        ({"points": (-1, 3)}, "points"),
        ({"points": (3, 31)}, "points"),
        ({"rule": "guess"}, "rule"),
        ({"rule": "fixed", "counts": (5,)}, "counts"),
        ({"rule": "fixed", "counts": (5, 0, 1)}, "counts"),
        ({"ratios": ()}, "ratios"),
        ({"ratios": ((64, 3, 2, 1), (64, 3, 2, 1))}, "ratios"),
        ({"ratios": ((64, 3, 2),)}, "ratios"),
        ({"ratios": ((64, 0, 2, 1),)}, "ratios"),
        ({"ratio_tokens": 0}, "ratios"),
        ({"nominal_shift": 2}, "nominal_shift"),
        ({"recycled": (3, 0)}, "recycled"),
        ({"recycled": (3, 2)}, "recycled"),
        ({"per_vector": 0}, "per_vector"),
        ({"scales": ((0.0, 1.0, 0.0),)}, "scales"),
    ],
)
def test_schedules_that_no_method_writes(change: dict[str, Any], word: str) -> None:
    info = stored("sparsevlm", 32, {})
    assert any(word in what for what in wrong_schedule(dataclasses.replace(info, **change)))


@pytest.mark.parametrize(("method", "options"), [("fastv", {"k": 1}), ("pyramiddrop", {"first": 1}), ("sparsevlm", {})])
def test_a_budget_that_the_largest_image_meets(method: str, options: dict[str, object]) -> None:
    """Images of any smaller number of tokens meet it, too; one or two above it they stay below."""
    chosen = pruning.get(method)
    values = chosen.validate_options(options)
    for depth, fewest, most in ((8, 16, 88), (6, 17, 60)):
        info = chosen.plan(depth, values)
        assert info is not None
        low, high = chosen.budgets(most, depth, values)
        for tokens in range(fewest, most + 1):
            reached = info.served(tokens)
            for keep in range(low, min(high, tokens - 1) + 1):
                kept = info.kept(keep, tokens)
                assert kept[-1] < tokens
                if keep not in reached:
                    assert kept == tuple(tokens - 1 - place for place in range(len(kept)))
