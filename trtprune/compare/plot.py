"""The picture of ``--plot``: error by layer, one panel per component."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtprune.compare.results import Comparison, ComponentResult, PointResult
from trtprune.errors import InputError
from trtprune.reports.figures import require_matplotlib, save_figure

__all__ = ["draw_errors"]

WITHIN, BEYOND, SIZE, LIMIT = "#2f6db3", "#c8352b", "#9aa3ad", "#444444"
MAX_TICKS = 34


def draw_errors(comparison: Comparison, path: Path) -> None:
    """Draws the error behind every layer, with the size of the numbers and the tolerance for comparison.

    Args:
        comparison: A comparison with layers.
        path: The file to write; its suffix is the format.

    Raises:
        BackendError: if matplotlib is missing.
        InputError: if there is nothing to draw, or the file cannot be written.
    """
    pyplot = require_matplotlib("--plot", path)
    shown = [c for c in comparison.components if c.layers is not None and len(c.layers.residual) > 1]
    if not shown:
        raise InputError(
            f"--plot {path}: none of what was compared has layers", hint="--component vision, --component decoder"
        )
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(9, 0.6 + 3.4 * len(shown)), squeeze=False)
    for axis, component in zip(axes[:, 0], shown, strict=True):
        _panel(axis, component)
    axes[-1, 0].set_xlabel("behind layer")
    sides = f"{shown[0].candidate} against {shown[0].reference}"
    figure.suptitle(f"{sides}, {comparison.inputs}", fontsize=11)
    figure.tight_layout()
    save_figure(figure, "--plot", path)


def _panel(axis: object, component: ComponentResult) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    assert component.layers is not None
    points = component.layers.residual
    layers = component.layers
    places = list(range(len(points)))
    floor = _floor(points, layers.atol)
    top = 3 * max([p.error or 0 for p in points] + [p.magnitude or 0 for p in points] + [floor])
    errors = [top if p.error is None else p.error or floor for p in points]
    sizes = [float("nan") if p.magnitude is None else max(p.magnitude, floor) for p in points]
    axis.semilogy(places, sizes, color=SIZE, lw=1, label="mean size of the numbers")
    axis.semilogy(places, errors, color=WITHIN, lw=1.5, label=f"{_stat(layers.stat)} error")
    axis.axhline(layers.atol, color=LIMIT, lw=1, ls="--", label=f"tolerance {layers.atol:g}")
    for good, colour in ((True, WITHIN), (False, BEYOND)):
        chosen = [i for i, p in enumerate(points) if p.passed == good]
        hollow = [i for i in chosen if points[i].error == 0]
        filled = [i for i in chosen if points[i].error]
        axis.plot(filled, [errors[i] for i in filled], "o", ms=4, color=colour)
        axis.plot(hollow, [errors[i] for i in hollow], "o", ms=4, mec=colour, mfc="white")
    if any(p.error == 0 for p in points):
        axis.plot([], [], "o", ms=4, mec=WITHIN, mfc="white", label="no error at all")
    lost = [i for i in places if points[i].error is None]
    if lost:
        axis.plot(lost, [top] * len(lost), "x", ms=6, color=BEYOND, label="NaN or infinity")
    if not all(p.passed for p in points):
        axis.plot([], [], "o", ms=4, color=BEYOND, label="beyond tolerance")
    step = -(-len(points) // MAX_TICKS)
    axis.set_xticks(places[::step], [_tick(p.label) for p in points][::step], rotation=30, ha="right")
    axis.tick_params(axis="x", labelsize=8)
    axis.margins(x=0.02)
    verdict = "passed" if component.passed else "FAILED"
    first = f", first at {component.layers.first}" if component.layers.first else ""
    axis.set_title(f"{component.name}: {verdict}{first}", fontsize=10, loc="left")
    axis.grid(True, which="major", alpha=0.25)
    axis.legend(fontsize=8, loc="best")


def _stat(stat: str) -> str:
    return {"elemwise": "largest", "max": "largest", "quantile": "quantile of the"}.get(stat, stat)


def _floor(points: Sequence[PointResult], atol: float) -> float:
    """The place of zeros on the logarithmic axis: below every error, and below the tolerance."""
    positive = [p.error for p in points if p.error] + [atol] * (atol > 0)
    return min(positive, default=1e-8) / 3


def _tick(label: str) -> str:
    return label.removeprefix("layers.")
