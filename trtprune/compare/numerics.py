"""Runs two runners on the same inputs and compares their outputs, with Polygraphy's Comparator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtprune.compare._require import as_error
from trtprune.compare.results import OutputResult
from trtprune.compare.tolerance import Tolerance
from trtprune.errors import BackendError, InputError
from trtprune.tensor_names import KEPT_INDICES, PRUNED_FEATURES

__all__ = ["Feed", "in_common", "judge", "rename", "run_both", "runtimes", "selection_as_mask", "validate"]

Feed = dict[str, np.ndarray]
"""The inputs of one run. Inputs of a bfloat16 side are float32 numbers that bfloat16 can represent."""


def run_both(
    candidate: Any,
    reference: Any,
    feeds: Sequence[Feed],
    *,
    save_inputs: Path | None = None,
    save_outputs: Path | None = None,
) -> Any:
    """Polygraphy's RunResults of both runners, the candidate first.

    Raises:
        BackendError: if a runner fails.
        InputError: if a file cannot be written.
    """
    from polygraphy.comparator import Comparator

    for flag, path in (("--save-inputs", save_inputs), ("--save-outputs", save_outputs)):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{flag} {path}: there is no directory {path.parent}", hint="make it first")
    try:
        with as_error(f"{candidate.name} against {reference.name}"):
            return Comparator.run(
                [candidate, reference],
                data_loader=list(feeds),
                save_inputs_path=None if save_inputs is None else str(save_inputs),
                save_outputs_path=None if save_outputs is None else str(save_outputs),
            )
    except OSError as error:
        raise InputError(f"--save-inputs, --save-outputs: {error}", hint="choose another file") from None
    except MemoryError:
        raise BackendError("not enough memory for the inputs and outputs", hint="fewer --iterations") from None


def rename(results: Any, labels: Sequence[dict[str, str]]) -> Any:
    """Renames the outputs of each runner by ``labels[i]``, label → tensor."""
    from polygraphy.comparator import IterationResult, RunResults

    renamed = RunResults()
    for (name, iterations), names in zip(results.items(), labels, strict=True):
        rows = [
            IterationResult({label: row[tensor] for label, tensor in names.items()}, row.runtime, name)
            for row in iterations
        ]
        renamed.append((name, rows))
    return renamed


def in_common(results: Any) -> tuple[Any, list[str]]:
    """The outputs of both runners, and the names of the others: a vision graph returns what its method needs."""
    from polygraphy.comparator import IterationResult, RunResults

    have = [{name for row in rows for name in row} for _, rows in results.items()]
    lost = sorted(have[0] ^ have[1])
    if not lost:
        return results, []
    kept = RunResults()
    for name, rows in results.items():
        left = [{k: v for k, v in row.items() if k not in lost} for row in rows]
        kept.append((name, [IterationResult(k, row.runtime, name) for k, row in zip(left, rows, strict=True)]))
    return kept, lost


def selection_as_mask(results: Any, visual_tokens: int, *, merges: bool = False) -> Any:
    """A pruner's outputs in a form with meaningful differences.

    ``kept_indices`` [B, keep] becomes a 0/1 mask over the visual tokens, because one more token near the front shifts
    all indices behind it; with ``merges`` the mask has one more place, for a kept CLS token (-1).
    ``pruned_features`` is reduced to the tokens that both sides kept.  If it has merged tokens (in further rows, or
    with ``merges`` in any row), which depend on the whole selection, it is dropped if the selections differ.
    """
    from polygraphy.comparator import IterationResult, RunResults

    (left, ours), (right, theirs) = results.items()
    changed: tuple[list[Any], list[Any]] = ([], [])
    for a, b in zip(ours, theirs, strict=True):
        masks = [_mask(row[KEPT_INDICES], visual_tokens + merges) for row in (a, b)]
        both, same = masks[0] & masks[1], bool((masks[0] == masks[1]).all())
        for row, mask, rows in zip((a, b), masks, changed, strict=True):
            outputs = {KEPT_INDICES: mask.astype(np.float32)}
            features = row[PRUNED_FEATURES]
            if same:
                outputs[PRUNED_FEATURES] = features
            elif not merges and both.any() and features.shape[1] == row[KEPT_INDICES].shape[1]:
                # Features of kept tokens are in ascending order of their indices.
                outputs[PRUNED_FEATURES] = np.concatenate([f[both[i][mask[i]]] for i, f in enumerate(features)])
            rows.append(IterationResult(outputs, row.runtime, row.runner_name))
    masked = RunResults()
    masked.append((left, changed[0]))
    masked.append((right, changed[1]))
    return masked


def _mask(indices: np.ndarray, places: int) -> np.ndarray:
    mask = np.zeros((len(indices), places), bool)
    np.put_along_axis(mask, indices.astype(np.int64), True, axis=1)
    return mask


def judge(results: Any, tolerance: Tolerance, iterations: Sequence[str]) -> list[OutputResult]:
    """Compares the outputs of two runners, with one result per output.

    Args:
        results: RunResults of the candidate and the reference.
        tolerance: Tolerances by output name.
        iterations: Descriptions of the iterations, for the report.

    Raises:
        BackendError: if the sides have no output in common.
    """
    from polygraphy.comparator import Comparator

    # Masks and empty slots lead to divisions by zero; their results are compared, without a warning.
    with as_error("comparison"), np.errstate(all="ignore"):
        accuracy = Comparator.compare_accuracy(results, compare_func=tolerance.compare_func())[0]
    ((_, rows),) = accuracy.items()
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [_summary(name, [row.get(name) for row in rows], tolerance, iterations) for name in names]


def _summary(name: str, found: Sequence[Any], tolerance: Tolerance, iterations: Sequence[str]) -> OutputResult:
    stat, atol, rtol = tolerance.of(name)
    for result, iteration in zip(found, iterations, strict=True):
        if isinstance(result, bool) or result is None:
            note = "shapes differ" if result is False else "missing"
            return OutputResult(name, False, stat, atol, rtol, None, None, None, None, None, iteration, note)
    attribute = "max" if stat == "elemwise" else stat
    errors = [_nan_is_worst(getattr(result, f"{attribute}_absdiff")) for result in found]
    failed = [i for i, result in enumerate(found) if not result]
    # The iteration with the largest error, among the failed ones or else among all.
    worst = max(failed or range(len(found)), key=lambda i: errors[i])

    def largest(field: str) -> float | None:
        values = [getattr(result, field) for result in found]
        return None if any(v is None or not np.isfinite(v) for v in values) else float(max(values))

    return OutputResult(
        name,
        not failed,
        stat,
        atol,
        rtol,
        None if not np.isfinite(errors[worst]) else errors[worst],
        _finite(getattr(found[worst], f"{attribute}_reldiff")),
        largest("max_absdiff"),
        largest("mean_absdiff"),
        largest("median_absdiff"),
        iterations[worst],
        "" if np.isfinite(errors[worst]) else "NaN or infinity",
    )


def _nan_is_worst(value: float) -> float:
    return float("inf") if np.isnan(value) else float(value)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def validate(results: Any) -> tuple[str, ...]:
    """``RUNNER: OUTPUT`` of every output with a NaN or an infinity, as in Polygraphy's ``--validate``."""
    from polygraphy.comparator import Comparator

    if Comparator.validate(results, check_inf=True, check_nan=True):
        return ()
    return tuple(
        dict.fromkeys(
            f"{name}: {output}"
            for name, iterations in results.items()
            for row in iterations
            for output, array in row.items()
            if not np.isfinite(np.asarray(array, dtype=np.float64)).all()
        )
    )


def runtimes(results: Any) -> tuple[float, float]:
    """Mean milliseconds per run of the two runners."""
    means = [1000 * float(np.mean([row.runtime for row in rows])) for _, rows in results.items()]
    return means[0], means[1]
