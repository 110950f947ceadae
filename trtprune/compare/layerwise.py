"""Finds the first tensor inside a component where the two sides part.

Three looks, each closer than the one before: at the residual stream behind every layer; at the modules inside the
first layer beyond tolerance; and, where both sides are graphs, at the tensors of the graph between the last module
within tolerance and the first beyond.  So a few dozen tensors are looked at and not thousands, and memory stays
bounded: the residual stream is fetched in portions.

Tolerances are those of the outputs, except that rows whose numbers are larger than 1 are taken relative to their size
(:func:`by_row_size`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.compare.numerics import Feed, judge, rename, run_both
from trtprune.compare.points import Point, between
from trtprune.compare.results import Layers, OutputResult, PointResult
from trtprune.compare.tolerance import Tolerance

if TYPE_CHECKING:
    from trtprune.compare.sides import Side
    from trtprune.engine_dir import ComponentInfo

__all__ = ["find_layer"]

# Of tensors that are held at once, on each side.
BUDGET_BYTES = 512 << 20
# Tensors of the graph between two modules; a layer has about thirty, a pruner with its loops written out some more.
MAX_TENSORS = 200


def find_layer(
    candidate: Side,
    reference: Side,
    component: ComponentInfo,
    feeds: Sequence[Feed],
    iterations: Sequence[str],
    tolerance: Tolerance,
    *,
    hidden_size: int,
    report: Callable[[str], None],
) -> Layers:
    """Looks for it.  What outputs decide, layers explain: a layer beyond tolerance alone fails nothing.

    Args:
        candidate, reference: The sides.
        component: Of the candidate.
        feeds: Inputs; every one of them is run.
        iterations: What they are.
        tolerance: For tensors inside as for outputs; ``layers.3.mlp.fc1:1e-3`` is for one of them.
        hidden_size: For the estimate of memory.
        report: Told what is being looked at.
    """
    stat, atol, _ = tolerance.of("")
    ours, theirs = candidate.points(component), {p.label: p for p in reference.points(component)}
    shared = [p for p in ours if p.label in theirs]

    def look(pairs: Mapping[str, tuple[str, str]]) -> tuple[PointResult, ...]:
        """Label → names on both sides, in order."""
        found: list[PointResult] = []
        for part in _portions(list(pairs), feeds, hidden_size):
            probes = [
                side.probe(component, list(dict.fromkeys(pairs[label][i] for label in part)))
                for i, side in enumerate((candidate, reference))
            ]
            results = run_both(probes[0][0], probes[1][0], feeds)
            names = [{label: probes[i][1][pairs[label][i]] for label in part} for i in (0, 1)]
            found += _points(rename(results, names), part, tolerance, iterations)
        return tuple(found)

    def named(points: Sequence[Point]) -> dict[str, tuple[str, str]]:
        return {p.label: (p.tensor, theirs[p.label].tensor) for p in points}

    coarse = [p for p in shared if p.coarse]
    graphs = candidate.graph(component), reference.graph(component)
    if not coarse and None in graphs:
        return Layers((), note=f"{reference.name} shows outputs only here")
    report(f"{len(coarse)} points of the residual stream")
    residual = look(named(coarse)) if coarse else ()
    bad = next((p for p, result in zip(coarse, residual, strict=True) if not result.passed), None)
    if coarse and bad is None:
        return Layers(residual, stat=stat, atol=atol)
    inside: tuple[PointResult, ...] = ()
    # From the last point within tolerance to the first beyond.
    good = coarse[coarse.index(bad) - 1] if bad is not None and coarse.index(bad) > 0 else None
    if bad is not None:
        modules = [p for p in shared if not p.coarse and p.scope == bad.scope and bad.scope]
        if modules:
            report(f"{len(modules)} modules of {bad.label}")
            inside = look(named(modules))
            wrong = next((p for p, result in zip(modules, inside, strict=True) if not result.passed), None)
            if wrong is not None:
                before = modules[: modules.index(wrong)]
                good, bad = (before[-1] if before else good), wrong
    first = None if bad is None else bad.label
    if graphs[0] is None or graphs[1] is None:
        return Layers(residual, inside, (), first, f"{reference.name} shows modules only", stat, atol)
    start = (-1, -1) if good is None else (good.index, theirs[good.label].index)
    ends = (len(graphs[0].node) - 1, len(graphs[1].node) - 1)
    stop = ends if bad is None else (bad.index, theirs[bad.label].index)
    pairs = {ours_: (ours_, theirs_) for ours_, theirs_ in between(graphs[0], graphs[1], start, stop)}
    if not pairs or len(pairs) > MAX_TENSORS:
        return Layers(residual, inside, (), first, "the graphs are written too differently to look closer", stat, atol)
    report(f"{len(pairs)} tensors up to {first or 'the outputs'}")
    tensors = look(pairs)
    closest = next((result.label for result in tensors if not result.passed), None)
    if closest is not None and bad is not None and closest != bad.tensor:
        first = f"{closest} (in {bad.label})"
    elif bad is None:
        first = closest
    return Layers(residual, inside, tensors, first, stat=stat, atol=atol)


def _portions(labels: list[str], feeds: Sequence[Feed], hidden_size: int) -> list[list[str]]:
    """Labels in groups whose tensors fit the budget, by the largest batch times sequence that is fed."""
    rows = sum(max((int(np.prod(a.shape[:2])) for a in feed.values() if a.ndim >= 2), default=1) for feed in feeds)
    size = max(1, BUDGET_BYTES // max(1, rows * hidden_size * 4))
    return [labels[i : i + size] for i in range(0, len(labels), size)]


def _points(results: Any, labels: Sequence[str], tolerance: Tolerance, iterations: Sequence[str]) -> list[PointResult]:
    judged: dict[str, OutputResult] = {r.name: r for r in judge(by_row_size(results), tolerance, iterations)}
    ((_, _), (_, reference)) = results.items()
    found = []
    for label in labels:
        r = judged[label]
        magnitude = float(np.mean([np.abs(np.asarray(row[label], np.float64)).mean() for row in reference]))
        size = magnitude if np.isfinite(magnitude) else None
        found.append(PointResult(label, r.passed, r.error, r.relative, r.max_abs, r.mean_abs, size))
    return found


def by_row_size(results: Any) -> Any:
    """Divides rows (of the last axis) whose RMS in the reference is above 1 by it, on both sides.

    A trained model's residual stream has single numbers in the thousands, and rounding errors to match. The next layer
    begins with dividing each row by its RMS: that is the proportion in which an error counts.
    """
    from polygraphy.comparator import IterationResult, RunResults

    (left, ours), (right, theirs) = results.items()
    scaled: tuple[list[Any], list[Any]] = ([], [])
    for a, b in zip(ours, theirs, strict=True):
        pairs: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
        for name, reference in b.items():
            mine = a[name]
            if reference.dtype.kind == "f" and reference.ndim and mine.shape == reference.shape:
                with np.errstate(all="ignore"):
                    rms = np.sqrt(np.mean(np.square(reference, dtype=np.float64), axis=-1, keepdims=True))
                    size = np.maximum(1, rms).astype(np.float32)
                    mine, reference = mine / size, reference / size
            pairs[0][name], pairs[1][name] = mine, reference
        for rows, outputs, row in zip(scaled, pairs, (a, b), strict=True):
            rows.append(IterationResult(outputs, row.runtime, row.runner_name))
    done = RunResults()
    done.append((left, scaled[0]))
    done.append((right, scaled[1]))
    return done
