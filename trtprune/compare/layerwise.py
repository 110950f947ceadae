"""Finds the first tensor inside a component where the two sides differ.

Three comparisons, each finer than the one before: the residual stream behind every layer; the modules inside the first
layer beyond tolerance; and, if both sides are graphs, the tensors of the graph between the last module within tolerance
and the first beyond.  So a few dozen tensors are compared instead of thousands, and memory stays bounded: the residual
stream is fetched in portions.

Tolerances are those of the outputs, but rows with numbers larger than 1 are compared relative to their size
(:func:`by_row_size`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.compare.numerics import Feed, judge, rename, run_both
from trtprune.compare.points import TensorPoint, between
from trtprune.compare.results import Layers, OutputResult, PointResult
from trtprune.compare.tolerance import Tolerance

if TYPE_CHECKING:
    from trtprune.compare.sides import Side
    from trtprune.engine_dir import ComponentInfo

__all__ = ["find_layer"]

# Bytes of tensors that are in memory at once, on each side.
BUDGET_BYTES = 512 << 20
# Tensors of the graph between two modules; a layer has about thirty, a pruner with unrolled loops some more.
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
    """Finds the first layer and tensor beyond tolerance.  This only explains: outputs alone decide about failure.

    One function for the three comparisons, because each goes on from what the one before has found and any of them can
    be the last.

    Args:
        candidate, reference: The sides.
        component: A component of the candidate.
        feeds: Inputs of all runs.
        iterations: Descriptions of the runs.
        tolerance: Tolerances of outputs and inner tensors; ``layers.3.mlp.fc1:1e-3`` is for one of them.
        hidden_size: Width of the model, for the estimate of memory.
        report: Called with the name of each comparison.
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

    def named(points: Sequence[TensorPoint]) -> dict[str, tuple[str, str]]:
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
    """Labels in groups whose tensors fit into memory, by the largest batch times sequence."""
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
    """Divides rows (of the last axis) by their RMS in the reference, if that is above 1, on both sides.

    A trained model's residual stream has single numbers in the thousands, with rounding errors in proportion. The next
    layer first divides each row by its RMS, so an error matters in that proportion.
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
