"""Intervals of an accuracy, and a paired test of the difference of two.

Everything here is exact or seeded: the same marks give the same numbers.

Questions about one image are not independent: if pruning loses an object, all of them suffer.  With ``clusters``, one
label per question, intervals are widened by the design effect of the marks' mean (L. Kish, "Survey Sampling", 1965):
its variance with clusters drawn at random, divided by that with questions drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

__all__ = [
    "Paired",
    "bootstrap",
    "design_effect",
    "interval",
    "mcnemar_exact",
    "paired",
    "paired_interval",
    "wilson",
]

Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""
_EXACT_UP_TO = 2000
_BLOCK = 1 << 22


def wilson(right: float, n: float, z: float = Z95) -> tuple[float, float]:
    """The score interval of a proportion: Wilson, "Probable inference, the law of succession, and statistical
    inference", J. Am. Stat. Assoc. 22 (1927).

    Args:
        right: Number of right ones among ``n``.
        n: Number of trials, or of independent trials that they count as; 0 gives (0, 1), as nothing is known.
        z: Normal quantile; the default makes a 95 % interval.
    """
    if n < 0 or not 0 <= right <= n:
        raise ValueError(f"{right} right of {n}")
    if n == 0:
        return 0.0, 1.0
    p, spread = right / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    reach = math.sqrt(p * (1 - p) * spread + spread * spread / 4) / (1 + spread)
    # At 0 and n the bounds are exactly 0 and 1; rounding must not move them.
    low = 0.0 if right == 0 else max(0.0, centre - reach)
    high = 1.0 if right == n else min(1.0, centre + reach)
    return low, high


def design_effect(values: Sequence[float], clusters: Sequence[Hashable] | None) -> float:
    """The variance of the mean of ``values`` divided by that of independent values, at least 1.

    Args:
        values: Marks, or differences of marks.
        clusters: The image of each value; None: all independent.
    """
    n = len(values)
    if clusters is None or n < 2:
        return 1.0
    mean = sum(values) / n
    residuals: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        residuals[cluster] = residuals.get(cluster, 0.0) + value - mean
    plain = sum((value - mean) ** 2 for value in values) * n / (n - 1)
    groups = len(residuals)
    # A single image says nothing about others; rounding alone must not look like variance.
    if groups < 2 or plain < 1e-12 * n:
        return 1.0
    return max(1.0, sum(r * r for r in residuals.values()) * groups / (groups - 1) / plain)


def bootstrap(
    scores: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``scores`` (Efron 1979), for marks other than 0 and 1.

    Args:
        scores: The marks, one per question, or differences of marks.
        seed: Seed of the resampling.
        resamples: Number of samples with replacement.
        level: Coverage.
        clusters: The units of drawing, each with all its scores; None: the scores.
    """
    import numpy as np

    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level {level}, {resamples} resamples")
    if len(scores) == 0:
        return 0.0, 1.0
    number: dict[Hashable, int] = {}
    labels = [number.setdefault(label, len(number)) for label in (range(len(scores)) if clusters is None else clusters)]
    sums = np.bincount(labels, np.asarray(scores, np.float64))
    counts = np.bincount(labels)
    rng = np.random.default_rng(seed)
    means: list[float] = []
    # In blocks: 10,000 questions times 2,000 resamples at once would be 160 MB of indices.
    block = max(1, _BLOCK // sums.size)
    while len(means) < resamples:
        rows = min(block, resamples - len(means))
        drawn = rng.integers(0, sums.size, (rows, sums.size))
        means.extend((sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)).tolist())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval(
    scores: Sequence[float], *, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """95 % interval of the mean mark: Wilson's if all marks are 0 or 1, otherwise the bootstrap's."""
    if all(score in (0, 1) for score in scores):
        effect = design_effect(scores, clusters)
        return wilson(sum(scores) / effect, len(scores) / effect)
    return bootstrap(scores, seed=seed, clusters=clusters)


def paired_interval(broken: float, repaired: float, n: float) -> tuple[float, float]:
    """95 % limits of a change of accuracy, from the numbers of broken and repaired questions.

    D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", Journal of Educational and Behavioral Statistics 37 (2012): with b broken and c repaired of n,

        p12 = (b + 1) / (n + 2),  p21 = (c + 1) / (n + 2),
        (p21 - p12) ± z sqrt((p12 + p21 - (p21 - p12)²) / (n + 2)).

    The interval has a width even if nothing changed: ten questions that all stayed right prove little.
    """
    worse, better = (broken + 1) / (n + 2), (repaired + 1) / (n + 2)
    centre = better - worse
    reach = Z95 * math.sqrt((worse + better - centre**2) / (n + 2))
    return max(-1.0, centre - reach), min(1.0, centre + reach)


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p-value of McNemar's test (Psychometrika 12, 1947): whether the ``b + c`` pairs that
    differ are more uneven than a fair coin.

    Args:
        b: Pairs right before and wrong after.
        c: Pairs wrong before and right after.

    Returns:
        min(1, 2 P[X <= min(b, c)]), X binomial with b + c draws of probability 1/2.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts {b} and {c}")
    n, few = b + c, min(b, c)
    if 2 * few >= n - 1:  # as even as possible: the two tails cover everything
        return 1.0
    if n <= _EXACT_UP_TO:
        term, total = 1, 1
        for k in range(1, few + 1):
            term = term * (n - k + 1) // k
            total += term
        return min(1.0, 2 * total / (1 << n))
    # From the largest term downwards, as fractions of it: integers of thousands of digits would take minutes.
    share, total_share = 1.0, 1.0
    for k in range(few, 0, -1):
        share *= k / (n - k + 1)
        total_share += share
        if share < 1e-18 * total_share:
            break
    log_largest = math.lgamma(n + 1) - math.lgamma(few + 1) - math.lgamma(n - few + 1) - n * math.log(2)
    return min(1.0, 2 * math.exp(log_largest) * total_share)


@dataclass(frozen=True)
class Paired:
    """The same questions marked twice: numbers of lower marks (broken) and higher marks (repaired).

    Attributes:
        broken: Number of marks that are lower after than before.
        repaired: Number of marks that are higher after than before.
        same: Number of equal marks.
        p: Two-sided exact p-value of "as many broken as repaired"; McNemar's test for marks of 0 and 1, the sign
            test for others.
        difference: Mean mark after minus before.
        low: Lower end of the difference's 95 % interval: :func:`paired_interval`, or the bootstrap's where marks lie
            between 0 and 1.
        high: Upper end of the interval.
    """

    broken: int
    repaired: int
    same: int
    p: float
    difference: float
    low: float
    high: float


def paired(
    before: Sequence[float], after: Sequence[float], *, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> Paired:
    """Compares two marks of each question.

    Args:
        before: Marks of the questions, unpruned for instance.
        after: Marks of the same questions in the same order.
        seed: Seed of the bootstrap.
        clusters: Each question's image, for the interval; the test treats all questions as independent.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} marks before and {len(after)} after")
    differences = [y - x for x, y in zip(before, after, strict=True)]
    broken = sum(1 for value in differences if value < 0)
    repaired = sum(1 for value in differences if value > 0)
    if not differences:
        low, high = -1.0, 1.0
    elif all(value in (-1, 0, 1) for value in differences):
        effect = design_effect(differences, clusters)
        low, high = paired_interval(broken / effect, repaired / effect, len(differences) / effect)
    else:
        low, high = bootstrap(differences, seed=seed, clusters=clusters)
    mean = sum(differences) / len(differences) if differences else 0.0
    same = len(differences) - broken - repaired
    return Paired(broken, repaired, same, mcnemar_exact(broken, repaired), mean, low, high)
