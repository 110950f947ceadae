"""Intervals and the paired test against exhaustive sums, textbook values and simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtprune.eval.statistics import bootstrap, interval, mcnemar_exact, paired, wilson


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
