"""The picture of an evaluation: accuracy over kept tokens, with one line per method and one panel per set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtprune import pruning
from trtprune.eval.planning import GREY, UNPRUNED, WRONG
from trtprune.eval.report import Evaluation, Figure
from trtprune.reports.figures import INK, Style, require_matplotlib, save_figure, styles_of

__all__ = ["draw_accuracy"]

COLUMNS = 3
BLIND = "#888888"
APART = 0.24
"""Horizontal spread of the methods at one budget, in doublings of the budget: equal marks would overlap."""


def draw_accuracy(evaluation: Evaluation, path: Path) -> None:
    """Draws the picture.

    Args:
        evaluation: An evaluation with at least one pruned run.
        path: The file; its suffix is the format.

    Raises:
        BackendError: if matplotlib is missing.
        InputError: if the file cannot be written.
    """
    pyplot = require_matplotlib("--plot", path)
    sets = evaluation.sets
    columns = 2 if len(sets) == 4 else min(COLUMNS, len(sets))
    rows = -(-len(sets) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(2.0 + 4.3 * columns, 0.9 + 3.6 * rows), squeeze=False, sharex=True, sharey=True,
        layout="constrained",
    )  # fmt: skip
    styles = styles_of([f.method for f in evaluation.figures if f.method != UNPRUNED], pruning.names())
    for place, axis in enumerate(axes.flat):
        if place < len(sets):
            _panel(axis, [f for f in evaluation.figures if f.set == sets[place]], styles)
        else:
            axis.set_axis_off()
    for place in range(len(sets)):
        if place % columns == 0:
            axes.flat[place].set_ylabel("accuracy, %")
        if place + columns >= len(sets):
            axes.flat[place].set_xlabel("visual tokens kept")
            axes.flat[place].tick_params(labelbottom=True)
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.suptitle(f"{evaluation.data['name']}, {evaluation.engine['model']}; bars: 95 % intervals", fontsize=10)
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="outside right upper", frameon=False)
    save_figure(figure, "--plot", path)


def _panel(axis: Any, figures: Sequence[Figure], styles: Mapping[str, Style]) -> None:
    base = next((f for f in figures if f.method == UNPRUNED), None)
    if base is not None:
        axis.axhspan(100 * base.low, 100 * base.high, color=INK, alpha=0.10, lw=0)
        axis.axhline(100 * base.accuracy, color=INK, lw=1.2, label="unpruned")
        for control, dash, name in ((WRONG, ":", "wrong picture"), (GREY, "--", "grey picture")):
            if control in base.controls:
                label = f"unpruned, {name}"
                axis.axhline(100 * base.controls[control], color=BLIND, lw=1, ls=dash, label=label)
    ticks = set()
    for number, (label, style) in enumerate(styles.items()):
        points = sorted((f for f in figures if f.method == label), key=lambda f: f.kept)
        if not points:
            continue
        aside = APART * (number / (len(styles) - 1) - 0.5) if len(styles) > 1 else 0.0
        kept, marks = [f.kept * 2**aside for f in points], [100 * f.accuracy for f in points]
        # Bars, not bands: bands of several methods would cover each other.
        below = [max(0.0, 100 * (f.accuracy - f.low)) for f in points]
        above = [max(0.0, 100 * (f.high - f.accuracy)) for f in points]
        axis.errorbar(
            kept, marks, yerr=[below, above], ms=4, lw=1.2, elinewidth=0.7, capsize=1.5, label=label, **style.line
        )
        ticks |= {f.keep for f in points}
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    axis.minorticks_off()
    axis.margins(x=0.06, y=0.08)
    total = f"{figures[0].n:,} questions"
    axis.set_title(f"{figures[0].set}: {total}", fontsize=10, loc="left")
    axis.grid(True, alpha=0.25)
