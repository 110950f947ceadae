"""Intervals and the paired test against exhaustive sums, textbook values and simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtprune.reports.statistics import (
    bootstrap,
    design_effect,
    interval,
    mcnemar_exact,
    paired,
    paired_interval,
    wilson,
)  # fmt: skip


def binomial_p(b: int, c: int) -> Fraction:
    """Two-sided by doubling the smaller tail, summed in whole numbers."""
    n = b + c
    tail = term = 1
    for k in range(min(b, c)):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(Fraction(1), Fraction(2 * tail, 2**n))


@settings(max_examples=60)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_sum(b: int, c: int) -> None:
    assert mcnemar_exact(b, c) == pytest.approx(float(binomial_p(b, c)), rel=1e-12)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


@pytest.mark.parametrize(("b", "c"), [(1000, 1001), (900, 1101), (1100, 1300), (2400, 2600), (10, 3000), (0, 2500)])
def test_mcnemar_of_many_pairs(b: int, c: int) -> None:
    assert mcnemar_exact(b, c) == pytest.approx(float(binomial_p(b, c)), rel=1e-9, abs=1e-300)


def test_mcnemar_of_a_million_pairs_is_quick_and_near_the_normal_limit() -> None:
    b, c = 499_000, 501_000
    z = (abs(b - c) - 1) / math.sqrt(b + c)
    assert mcnemar_exact(b, c) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


def test_mcnemar_edges() -> None:
    assert mcnemar_exact(0, 0) == 1
    assert mcnemar_exact(1, 0) == 1
    assert mcnemar_exact(6, 0) == pytest.approx(2 / 64)
    with pytest.raises(ValueError):
        mcnemar_exact(-1, 0)


def test_mcnemar_against_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    for b, c in [(3, 9), (40, 71), (500, 640)]:
        expected = scipy_stats.binomtest(b, b + c, 0.5, alternative="two-sided").pvalue
        assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)


def test_wilson_solves_the_score_equation() -> None:
    # The bounds are where |right/n - p| = z sqrt(p (1 - p) / n).
    for right, n in [(1, 10), (7, 10), (81, 263), (1800, 2000)]:
        for bound in wilson(right, n):
            distance = abs(right / n - bound)
            assert distance == pytest.approx(1.959963984540054 * math.sqrt(bound * (1 - bound) / n), rel=1e-9)
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 15 of 148, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_wilson_edges() -> None:
    assert wilson(0, 0) == (0, 1)
    assert wilson(0, 20)[0] == 0
    assert wilson(0, 20)[1] == pytest.approx(0.1611, abs=5e-5)  # Newcombe 1998
    assert wilson(20, 20)[1] == 1
    with pytest.raises(ValueError):
        wilson(3, 2)


def test_wilson_covers() -> None:
    rng = np.random.default_rng(1)
    for p in (0.05, 0.5, 0.93):
        hits = rng.binomial(400, p, 2000)
        inside = np.mean([low <= p <= high for low, high in (wilson(int(k), 400) for k in hits)])
        assert 0.93 <= inside <= 0.97


def test_bootstrap_covers_and_repeats() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for trial in range(200):
        scores = rng.choice([0, 0.3, 0.6, 0.9, 1.0], 120, p=[0.3, 0.1, 0.1, 0.1, 0.4])
        low, high = bootstrap(scores.tolist(), seed=trial, resamples=400)
        inside += low <= 0.58 <= high
    assert inside >= 176  # 95 % expected; below 88 % would be six standard errors off
    scores = rng.random(50).tolist()
    assert bootstrap(scores, seed=4) == bootstrap(scores, seed=4) != bootstrap(scores, seed=5)


def test_bootstrap_near_the_normal_interval_in_blocks() -> None:
    scores = np.random.default_rng(0).beta(2, 1, 5000)  # more than one block of indices
    low, high = bootstrap(scores.tolist(), resamples=3000)
    reach = 1.96 * scores.std() / math.sqrt(len(scores))
    assert (low, high) == pytest.approx((scores.mean() - reach, scores.mean() + reach), abs=0.1 * reach)
    assert bootstrap([]) == (0, 1)
    with pytest.raises(ValueError):
        bootstrap([1.0], level=1)


def test_interval_takes_the_one_that_fits() -> None:
    assert interval([1, 0, 1, 1]) == wilson(3, 4)
    assert interval([1, 0.3, 1, 1], seed=3) == bootstrap([1, 0.3, 1, 1], seed=3)


def test_paired_counts() -> None:
    before, after = [1, 1, 1, 0, 0, 0.6], [0, 0, 1, 1, 0, 0.3]
    result = paired(before, after)
    assert (result.broken, result.repaired, result.same) == (3, 1, 2)
    assert result.p == mcnemar_exact(3, 1)
    assert result.difference == pytest.approx(-1.3 / 6)
    assert result.low <= result.difference <= result.high
    with pytest.raises(ValueError):
        paired([1], [])
    assert paired([], []).p == 1


# -- several questions about one picture


def _clustered(rng: np.random.Generator, pictures: int, each: int, p: float) -> tuple[list[int], list[int]]:
    """Marks that are alike within a picture: half of them are its own draw."""
    common, own, takes = (rng.random((pictures, k)) for k in (1, each, each))
    marks = np.where(takes < 0.5, common < p, own < p).astype(int)
    return marks.ravel().tolist(), np.repeat(np.arange(pictures), each).tolist()


def test_the_design_effect_of_equal_clusters() -> None:
    """Of clusters of one size m it is 1 + (m - 1) ICC; marks that are all alike in a picture count once."""
    rng = np.random.default_rng(0)
    marks = rng.integers(0, 2, 200)
    five, labels = np.repeat(marks, 5).tolist(), np.repeat(np.arange(200), 5).tolist()
    assert design_effect(five, labels) == pytest.approx(5, rel=0.01)
    low, high = interval(five, clusters=labels)
    assert (low, high) == pytest.approx(wilson(int(marks.sum()), 200), abs=2e-3)
    found = np.mean([design_effect(*_clustered(rng, 400, 5, 0.7)) for _ in range(50)])
    # ICC: two marks of a picture are the same draw with probability 1/4.
    assert found == pytest.approx(1 + 4 * 0.25, rel=0.05)
    assert design_effect(five, None) == design_effect([1, 1, 1], [0, 0, 1]) == design_effect([1, 0], [0, 0]) == 1
    assert design_effect([1], [0]) == design_effect([], []) == 1


def test_clustered_intervals_cover() -> None:
    """Those that take the questions for independent do not."""
    rng = np.random.default_rng(4)
    inside, naive, change = 0, 0, 0
    for _ in range(400):
        marks, labels = _clustered(rng, 120, 5, 0.7)
        before = [1] * len(marks)
        low, high = interval(marks, clusters=labels)
        inside += low <= 0.7 <= high
        low, high = interval(marks)
        naive += low <= 0.7 <= high
        result = paired(before, marks, clusters=labels)
        change += result.low <= -0.3 <= result.high
    assert 0.92 <= inside / 400 <= 0.98
    assert 0.92 <= change / 400 <= 0.98
    assert naive / 400 < 0.9


def test_clustered_bootstrap_draws_pictures() -> None:
    rng = np.random.default_rng(5)
    scores = np.repeat(rng.choice([0.3, 0.6, 1.0], 100), 4).tolist()
    labels = np.repeat(np.arange(100), 4).tolist()
    wide, narrow = bootstrap(scores, clusters=labels), bootstrap(scores)
    assert wide[1] - wide[0] == pytest.approx(2 * (narrow[1] - narrow[0]), rel=0.15)
    assert interval(scores, clusters=labels) == wide


def test_a_change_that_nobody_saw_has_a_width() -> None:
    few, many = paired([1] * 10, [1] * 10), paired([1] * 1000, [1] * 1000)
    assert (few.low, few.high) == paired_interval(0, 0, 10)
    assert few.low < many.low < 0 < many.high < few.high
