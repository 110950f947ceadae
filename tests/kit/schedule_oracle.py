"""The schedules of the methods that prune inside the decoder, retold without a search: every level is tried."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

SPARSE_POINTS = {"table": (2, 6, 15), "rank": (2, 6, 15, 19)}
SPARSE_TABLES = {
    "1.0": {64: (66, 30, 17), 96: (238, 48, 26), 128: (303, 110, 36), 192: (300, 200, 110)},
    "2.0": {64: (66, 34, 20), 96: (246, 54, 28), 128: (238, 108, 60), 192: (300, 200, 118)},
}
"""``score.py`` of Gumpest/SparseVLMs."""


def points_of(method: str, depth: int, options: dict[str, Any]) -> tuple[int, ...]:
    if method == "fastv":
        return (options.get("k", 2) - 1,)
    if method == "pyramiddrop":
        first = options.get("first", 0) or max(1, round(depth / 4))
        return tuple(first + round(stage * (depth - first) / 3) - 1 for stage in range(3))
    published = SPARSE_POINTS[options.get("ratio", "table")]
    if options.get("layers") == "published":
        return published
    return tuple(round(point * depth / 32) for point in published)


def vectors_of(removed: int, method: str, options: dict[str, Any]) -> int:
    """How many vectors ``removed`` tokens become: a tenth of 30 % of them, one at least, in SparseVLM 1.0 only."""
    share = Fraction(str(options.get("recycle", 0.3)))
    if method != "sparsevlm" or options.get("version") == "2.0" or not share or removed < 1:
        return 0
    return min(removed, int(removed * share) + 1) // 10 + 1


def follow(counts: Any, tokens: int, method: str, options: dict[str, Any]) -> tuple[list[int], list[int]]:
    """What is kept and what is left behind each point."""
    kept, left = [], []
    before = tokens
    for count in counts:
        kept.append(max(1, min(int(count), before - 1)))
        before = kept[-1] + vectors_of(before - kept[-1], method, options)
        left.append(before)
    return kept, left


def average(left: list[int], tokens: int, depth: int, points: tuple[int, ...], method: str) -> float:
    """Over the layers; SparseVLM's authors book a pruning layer with what is left, the others with what enters."""
    shift = 0 if method == "sparsevlm" else 1
    layers = np.full(depth, tokens)
    for point, count in zip(points, left, strict=True):
        layers[point + shift :] = count
    return float(layers.sum()) / depth


def counts_at(level: int, tokens: int, keep: int, depth: int, method: str, options: dict[str, Any]) -> list[int]:
    """What each point keeps, unlimited, where the first keeps ``level``."""
    points = len(points_of(method, depth, options))
    if method == "pyramiddrop":
        return [max(1, int(tokens * Fraction(level, tokens) ** (stage + 1))) for stage in range(points)]
    if method == "fastv" or options.get("ratio") == "rank":
        return [level] * points
    table = {**SPARSE_TABLES[options.get("version", "1.0")], 576: (1, 1, 1)}
    at = 576 * keep / tokens
    known = np.array(sorted(table), float)
    ratios = [np.array([table[int(k)][i] / table[int(k)][0] for k in known]) for i in (1, 2)]
    return [level, *(max(1, round(float(np.interp(at, known, r)) * level)) for r in ratios)]


def schedule(
    method: str, keep: int, tokens: int, depth: int, options: dict[str, Any], at_most: bool = False
) -> tuple[list[int], list[int]] | None:
    """Kept and left at each point for an average of ``keep``; None: it cannot be reached, unless from above
    ``at_most``."""
    points = points_of(method, depth, options)
    table = SPARSE_TABLES[options.get("version", "1.0")]
    if method == "sparsevlm" and not options.get("ratio") and (tokens, depth) == (576, 32) and keep in table:
        return follow(table[keep], tokens, method, options)
    ways = [
        follow(counts_at(level, tokens, keep, depth, method, options), tokens, method, options)
        for level in range(1, tokens)
    ]
    far = [average(left, tokens, depth, points, method) - keep for _, left in ways]
    if far[0] > 0.5 or (far[-1] < -0.5 and not at_most):
        return None
    return ways[nearest(far)]


def nearest(far: list[float]) -> int:
    """Of the first that is not below 0 and the one in front of it, the nearer to 0; the one in front of two as near."""
    first = next((i for i, distance in enumerate(far) if distance >= 0), len(far) - 1)
    return first - 1 if first and abs(far[first - 1]) <= abs(far[first]) else first
