"""Schedules in C++: the counts of Python for any schedule, budget and image, and its words for those it refuses."""

from __future__ import annotations

import dataclasses
import os
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit import cpp_build
from trtprune.errors import BudgetError
from trtprune.schedules import MOST_POINTS, MOST_TOKENS, Schedule, ScheduleInfo, wrong_schedule

CODE = 2
"""``trtprune::ErrorCode::budget``."""
EXAMPLES = settings(max_examples=int(os.environ.get("TRTPRUNE_EXAMPLES", "40")), deadline=None)

Request = dict[str, Any]


def request(what: str, info: ScheduleInfo, **more: Any) -> Request:
    return {"do": what, "info": dataclasses.asdict(info), **more}


def python_answer(info: ScheduleInfo, asked: Request) -> Any:
    try:
        return _python_answer(info, asked)
    except BudgetError as error:
        return {"error": [CODE, error.message, error.hint or ""]}


def _python_answer(info: ScheduleInfo, asked: Request) -> Any:
    match asked["do"]:
        case "wrong":
            return next(wrong_schedule(info), None)
        case "merged":
            return list(info.merged_counts(asked["removed"]))
        case "schedule":
            return written(info.schedule(asked["keep"], asked["tokens"]))
        case "kept":
            return list(info.kept(asked["keep"], asked["tokens"]))
        case "entering":
            counts = info.entering(asked["keep"], asked["tokens"])
            return None if counts is None else list(counts)
        case "ranks":
            return list(info.rank_counts(asked["ranks"], asked["keep"], asked["tokens"]))
    raise AssertionError(asked["do"])


def written(schedule: Schedule) -> dict[str, Any]:
    return {
        "kept": list(schedule.kept),
        "after": list(schedule.after),
        "per_layer": list(schedule.per_layer),
        "nominal": schedule.nominal,
        "processed": schedule.processed,
    }


def check(cases: list[tuple[ScheduleInfo, Request]]) -> list[Any]:
    """Holds C++ to Python, floats bit for bit; Python's answers."""
    expected = [python_answer(info, asked) for info, asked in cases]
    answers = cpp_build.driver("schedule")([asked for _, asked in cases])
    for (_, asked), python, cpp in zip(cases, expected, answers, strict=True):
        assert cpp == python, asked
    return expected


def make_info(rng: random.Random, depth: int, rule: str) -> ScheduleInfo:
    """A schedule that a file may have."""
    points = tuple(sorted(rng.sample(range(depth - 1), rng.randint(1, min(depth - 1, rng.choice((1, 3, 4, 64)))))))
    tokens = rng.choice((7, 576, 2880, MOST_TOKENS))
    averages = sorted(rng.sample(range(1, max(6, tokens)), rng.randint(1, 5)))
    share = rng.choice(((0, 1), (3, 10), (1, 1), (rng.randint(0, 2**40), 2**40), (2**62, 2**63 - 1)))
    return ScheduleInfo(
        depth,
        points,
        rule,
        counts=tuple(rng.randint(1, rng.choice((9, 700))) for _ in points) if rule == "fixed" else (),
        ratios=tuple((average, *(rng.randint(1, tokens) for _ in points)) for average in averages)
        if rule == "ratios"
        else (),
        ratio_tokens=tokens if rule == "ratios" else 0,
        exact=rng.random() < 0.5,
        nominal_shift=rng.randint(0, 1),
        recycled=share,
        per_vector=rng.choice((1, 2, 10, 1000)),
        option="layers=… é",
    )


def make_tokens(rng: random.Random, info: ScheduleInfo, most: int) -> tuple[int, int]:
    """A budget and the visual tokens of an image."""
    sizes = (1, 2, rng.randint(1, 40), 576, rng.randint(1, 3000), info.ratio_tokens, rng.randint(1, most))
    tokens = max(1, min(rng.choice(sizes), most))
    budgets = [rng.randint(1, tokens), rng.randint(1, 2 * tokens), 1, tokens - 1, tokens]
    budgets += [row[0] for row in info.ratios]
    if info.rule == "fixed":
        budgets += [round(info.with_counts(tokens, info.counts).nominal)] * 3
    return rng.choice(budgets), tokens


@pytest.mark.parametrize("rule", ["fixed", "powers", "ratios", "equal"])
def test_counts_of_every_rule(rule: str) -> None:
    rng = random.Random(rule)
    cases = []
    for _ in range(150):
        info = make_info(rng, rng.choice((2, 3, 8, 32, 100, 1 << 14)), rule)
        assert next(wrong_schedule(info), None) is None
        # The larger the image, the more steps of the search, each of them in Python's own arithmetic.
        most = 3000 if len(info.points) > 4 else MOST_TOKENS
        for _ in range(5):
            keep, tokens = make_tokens(rng, info, most)
            cases += [
                (info, request(what, info, keep=keep, tokens=tokens)) for what in ("schedule", "kept", "entering")
            ]
    answers = check(cases)
    refused = sum(isinstance(answer, dict) and "error" in answer for answer in answers)
    assert 0 < refused < len(answers) * 0.9


def test_powers_are_exact() -> None:
    """Close to whole numbers, where floats of any size would have to guess: f · (f/N)^i with N = f + 1 and squares."""
    cases = []
    for tokens in (2**20, 2**20 - 1, 3**12, 1024**2 // 4):
        info = ScheduleInfo(MOST_POINTS + 2, tuple(range(MOST_POINTS)), "powers", nominal_shift=0)
        for keep in (tokens // 2, tokens - 1, tokens - 2, tokens // 3, tokens // 64):
            cases.append((info, request("schedule", info, keep=keep, tokens=tokens)))
    answers = check(cases)
    assert sum("error" not in answer for answer in answers) >= 12


@EXAMPLES
@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 3000), min_size=1, max_size=5))
def test_counts_by_rank(rng: random.Random, ranks: list[int]) -> None:
    cases = []
    for _ in range(20):
        info = make_info(rng, 8, "equal")
        budgets = (0.0, 64.0, 96.5, 1e6, 1e-5)
        scales = tuple(
            (rng.choice(budgets), rng.choice((1.5, 1e300, -2.0, 1 / 3)), rng.choice((0.0, -7.25, 1e308)))
            for _ in range(2)
        )
        info = dataclasses.replace(info, ranked=True, scales=scales if rng.random() < 0.5 else ())
        assert next(wrong_schedule(info), None) is None
        keep, tokens = make_tokens(rng, info, 3000)
        found = [min(rank, tokens) for rank in ranks[: len(info.points)]]
        keep = rng.choice((keep, 64))
        for what in ("ranks", "schedule", "kept", "entering"):
            cases.append((info, request(what, info, keep=keep, tokens=tokens, ranks=found)))
    check(cases)


@EXAMPLES
@given(st.lists(st.tuples(st.integers(-2, 2**40), st.integers(0, 2**62), st.integers(1, 2**62), st.integers(1, 2**62))))
def test_merged_counts(cases: list[tuple[int, int, int, int]]) -> None:
    asked = []
    for removed, part, more, per_vector in cases:
        info = ScheduleInfo(3, (0,), "equal", recycled=(part, part + more), per_vector=per_vector)
        asked.append((info, request("merged", info, removed=removed)))
    check(asked)


INTEGERS = st.integers(-2, 4) | st.integers(-(2**63), 2**63 - 1)


@EXAMPLES
@given(
    st.lists(
        st.builds(
            ScheduleInfo,
            depth=INTEGERS,
            points=st.lists(INTEGERS, max_size=3).map(tuple) | st.just(tuple(range(65))) | st.just((0, 1)),
            rule=st.sampled_from(["fixed", "powers", "ratios", "equal", "guess", ""]),
            counts=st.lists(INTEGERS, max_size=3).map(tuple),
            ratios=st.lists(st.lists(INTEGERS, max_size=4).map(tuple), max_size=3).map(tuple) | st.just(((1, 2, 3),)),
            ratio_tokens=INTEGERS,
            nominal_shift=INTEGERS,
            recycled=st.tuples(INTEGERS, INTEGERS),
            per_vector=INTEGERS,
            ranked=st.booleans(),
            scales=st.sampled_from([(), ((0.0, 1.0, 2.0),)]),
        ),
        min_size=1,
        max_size=50,
    )
)
def test_schedules_of_a_file_that_cannot_be(infos: list[ScheduleInfo]) -> None:
    check([(info, request("wrong", info)) for info in infos])


def test_bounds_of_a_file() -> None:
    plain = ScheduleInfo(100, (0, 1), "ratios", ratios=((5, 6, 7),), ratio_tokens=9)
    many = dataclasses.replace(plain, points=tuple(range(MOST_POINTS + 1)), rule="equal")
    faults = [
        plain,
        many,
        dataclasses.replace(plain, ratio_tokens=MOST_TOKENS + 1),
        dataclasses.replace(plain, counts=(MOST_TOKENS + 1,)),
        dataclasses.replace(plain, ratios=((5, 6, MOST_TOKENS + 1),)),
        dataclasses.replace(plain, ratios=((5, 6),)),
    ]
    answers = check([(info, request("wrong", info)) for info in faults])
    assert answers[0] is None
    assert answers[1] == f"points must be at most {MOST_POINTS}"
    assert answers[2] == answers[3] == answers[4] == f"counts, ratios and ratio_tokens must be at most {MOST_TOKENS}"
    assert answers[5].startswith("ratios must be rows of 3 numbers")
