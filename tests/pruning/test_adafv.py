"""AdaFV against independent derivations: brute force over the split, and the whole method in float64 torch."""

from __future__ import annotations

import functools
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit import pruning_cases as pc
from trtprune import pruning
from trtprune.graph import Graph
from trtprune.pruning.methods import adafv

QUICK = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
ADAFV = pruning.get("adafv")


@functools.cache
def split_graph() -> onnxruntime.InferenceSession:
    """``write_split`` alone."""
    g = Graph("split")
    text = g.input("text", "float32", ["batch", "keep"])
    cls = g.input("cls", "float32", ["batch", "keep"])
    quota, keep = g.input("quota", "int64", [1]), g.input("keep", "int64", [1])
    g.output(adafv.write_split(g, text, cls, quota, keep), "count", "int64", ["batch", 1])
    return pc.open_graph(g)


def run_split(text: np.ndarray, cls: np.ndarray, quota: int) -> int:
    feed = {
        "text": text[None].astype(np.float32),
        "cls": cls[None].astype(np.float32),
        "quota": np.array([quota]),
        "keep": np.array([len(text)]),
    }
    return int(split_graph().run(None, feed)[0][0, 0])


def brute_force(text: list[Fraction], cls: list[Fraction], quota: int) -> int:
    """The T2I count with the largest product of sums, the smallest of equals; exact arithmetic."""
    keep, best, result = len(text), Fraction(-1), -1
    for count in range(quota, keep - quota + 1):
        product = sum(text[quota:count], Fraction(0)) * sum(cls[quota : keep - count], Fraction(0))
        if product > best:
            best, result = product, count
    return result


@settings(max_examples=2000, **QUICK)
@given(st.data())
def test_split_with_exact_ties(data: st.DataObject) -> None:
    """Lists whose sums and products are exact in float32, so that equal products are equal: all three agree.

    The T2I values are 1 (log 0) or 0 (log far below): exp of anything else would round.
    """
    keep = data.draw(st.integers(1, 40))
    quota = data.draw(st.integers(0, keep // 2))
    ones = data.draw(st.integers(quota + 1, keep)) if quota < keep else keep
    levels = data.draw(st.sampled_from([1, 2, 4]))
    cls = sorted(data.draw(st.lists(st.integers(0, levels), min_size=keep, max_size=keep)), reverse=True)
    log = np.where(np.arange(keep) < ones, 0.0, -500.0).astype(np.float32)
    cls32 = np.array(cls, np.float32) / 64
    values = [Fraction(int(i < ones)) for i in range(keep)]
    want = brute_force(values, [Fraction(c, 64) for c in cls], quota)
    assert adafv.split(log, cls32, quota) == want
    assert run_split(log, cls32, quota) == want


@settings(max_examples=1500, **QUICK)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_split_of_real_lists(number: int, keep: int) -> None:
    """Falling lists of reals: all agree unless products are equal within the rounding of the sums."""
    rng = np.random.default_rng(number)
    quota = int(rng.integers(0, keep // 2 + 1))
    log = -np.sort(-rng.normal(0, rng.choice([0.3, 2.0, 30.0]), keep)).astype(np.float32)
    cls = -np.sort(-(rng.random(keep) ** 3)).astype(np.float32)
    relative = np.exp(log.astype(np.float64) - log[quota])
    text_sums = np.concatenate([[0], np.cumsum(relative[quota:])])
    cls_sums = np.concatenate([[0], np.cumsum(cls[quota:].astype(np.float64))])
    products = {k: text_sums[k - quota] * cls_sums[keep - quota - k] for k in range(quota, keep - quota + 1)}
    top = max(products.values())
    # Two ulps of exp and the rounding of the difference it takes, one for each addition, one for the product.
    error = pc.UNIT * (2 * keep + 2 * float(np.abs(log - log[quota]).max()) + 10)
    allowed = [k for k, p in products.items() if p >= top * (1 - error)]
    got = adafv.split(log, cls, quota), run_split(log, cls, quota)
    if len(allowed) == 1:
        assert got == (allowed[0], allowed[0])
    assert set(got) <= set(allowed)


def test_split_takes_the_first_maximum() -> None:
    """Three equal entries each, odd rest: 1·2 and 2·1 tie, the smaller T2I count wins."""
    zeros, flat = np.zeros(3, np.float32), np.full(3, 0.25, np.float32)
    assert adafv.split(zeros, flat, 0) == run_split(zeros, flat, 0) == 1
    five = np.zeros(5, np.float32)
    assert adafv.split(five, np.full(5, 0.25, np.float32), 1) == 2
    assert run_split(five, np.full(5, 0.25, np.float32), 1) == 2


@pytest.mark.parametrize("mode", ["distinct", "official"])
def test_against_float64(mode: str) -> None:
    """The whole method from its formula; a different answer must be within the rounding bound, and be rare."""
    count: Counter[str] = Counter()

    @settings(max_examples=800, **QUICK)
    @given(pc.cases(max_tokens=40))
    def small(case: dict[str, Any]) -> None:
        check(case)

    @settings(max_examples=6, **QUICK)
    @given(pc.cases(sizes=(100, 300)))
    def large(case: dict[str, Any]) -> None:
        check(case)

    def check(case: dict[str, Any]) -> None:
        got = ADAFV.reference(**pc.arguments(case), mode=mode)
        for row, picks in zip(pc.rows(case), got.tolist(), strict=True):
            oracle = pc.AdaFvOracle(row, mode)
            count["rows"] += 1
            if picks != next(oracle.selections()):
                count["ties"] += 1
                assert picks in oracle.selections(), (case["kind"], picks, next(oracle.selections()))

    small()
    large()
    print(f"\nadafv {mode} against float64: {dict(count)}")
    assert count["rows"] > 1000
    # Mostly tokens that several text rows single out: s is 1 - 1e-9 and 1 - 1e-12, the same number in float32.
    assert count["ties"] <= 0.03 * count["rows"], count


def test_most_cases_are_decided() -> None:
    """The tolerance does not explain everything: by its (worst-case) bound nine in ten selections are certain."""
    undecided = 0
    for number in range(300):
        case = pc.make(number, 1, 32, 5, 2 + number % 20, "normal")
        undecided += not pc.AdaFvOracle(next(pc.rows(case))).decided()
    assert undecided <= 36, undecided


def hand_case() -> dict[str, Any]:
    """Four tokens along the axes; the text points at token 3, CLS attention falls from token 0 on."""
    return {
        "image_features": np.eye(4, 4, dtype=np.float32),
        "text_embeds": np.array([[0, 0, 0.5, 1]], np.float32),
        "cls_attention": np.array([0.4, 0.3, 0.2, 0.1], np.float32),
    }


def test_by_hand() -> None:
    # K = 1: both products are 0, the first maximum gives the place to CLS.  K = 2: one of each list.
    # K = 4 fills a quota of one each and shares out the other two, one each: T2I 3, 2; CLS 0, 1.
    case = hand_case()
    assert ADAFV.reference(**case, keep=1).tolist() == [0]
    assert ADAFV.reference(**case, keep=2).tolist() == [0, 3]
    assert ADAFV.reference(**case, keep=4).tolist() == [0, 1, 2, 3]


def test_duplicates() -> None:
    # Both lists start with token 3: official has it twice, distinct the next best of the CLS list in place of it.
    case = hand_case() | {"cls_attention": np.array([0.1, 0.3, 0.2, 0.4], np.float32)}
    assert ADAFV.reference(**case, keep=2, mode="official").tolist() == [3, 3]
    assert ADAFV.reference(**case, keep=2).tolist() == [1, 3]


def test_distinct_contains_official() -> None:
    """What official keeps, distinct keeps too; without duplicates they are the same."""
    seen = Counter[bool]()
    for number in range(400):
        case = pc.make(number, 1, 30, 4, 1 + number % 30, "normal")
        official = ADAFV.reference(**pc.arguments(case), mode="official")[0].tolist()
        distinct = ADAFV.reference(**pc.arguments(case))[0].tolist()
        assert set(official) <= set(distinct)
        unique = len(set(official)) == len(official)
        seen[unique] += 1
        assert (official == distinct) == unique
    assert min(seen.values()) > 20


def test_scale_of_cls_attention_is_irrelevant() -> None:
    for number in range(50):
        case = pc.make(number, 2, 40, 4, 15, "normal")
        scaled = case | {"cls_attention": case["cls_attention"] * np.float32(2.0**-9)}
        np.testing.assert_array_equal(ADAFV.reference(**pc.arguments(case)), ADAFV.reference(**pc.arguments(scaled)))


def test_scores_below_the_float32_range_keep_their_order() -> None:
    """cos 0.8, 0, -0.8, -1 against 1: exp(100 · (cos - 1)) of the last three is 0 in float32."""
    angles = np.arccos(np.array([-1.0, 0.0, -0.8, 0.8, 1.0]))
    image = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    log = adafv.text_scores(image, np.array([[1, 0]], np.float32), 100.0)
    assert np.argsort(-log).tolist() == [4, 3, 1, 2, 0]


def test_quota_is_a_decimal_fraction() -> None:
    """0.29 · 100 is 29, although the product of the floats is 28.999…; 0.25 · K is int(0.25 * K)."""
    assert adafv._quota_fraction(0.29) * 100 == 29
    for keep in range(1, 3000):
        assert int(adafv._quota_fraction(0.25) * keep) == int(0.25 * keep)
