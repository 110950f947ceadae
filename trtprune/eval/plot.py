"""The picture of an evaluation: accuracy over kept tokens, a line a method, a panel a set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtprune.bench.plot import require_matplotlib, save_figure
from trtprune.eval.planning import GREY, UNPRUNED, WRONG
from trtprune.eval.report import Evaluation, Figure

__all__ = ["draw_accuracy"]

COLUMNS = 3
LEGEND = 2.2
"""Inches."""
# Of Okabe and Ito, told apart by colour-blind readers; then again with another dash.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
MARKERS = "osD^vP*X<>"
REFERENCE, BLIND = "#222222", "#888888"
SHADED_UP_TO = 4
"""Methods that get a band; of more, bands cover each other, and bars stand in for them."""


def draw_accuracy(evaluation: Evaluation, path: Path) -> None:
    """Draws the picture.

    Args:
        evaluation: With at least one pruned run.
        path: The file; its suffix says the format.

    Raises:
        BackendError: if matplotlib is missing.
        InputError: if the file cannot be written.
    """
    pyplot = require_matplotlib("--plot", path)
    sets = evaluation.sets
    columns = 2 if len(sets) == 4 else min(COLUMNS, len(sets))
    rows = -(-len(sets) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(LEGEND + 4.3 * columns, 0.9 + 3.6 * rows), squeeze=False, sharex=True
    )
    labels = list(dict.fromkeys(f.method for f in evaluation.figures if f.method != UNPRUNED))
    for place, axis in enumerate(axes.flat):
        if place < len(sets):
            _panel(axis, [f for f in evaluation.figures if f.set == sets[place]], labels)
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
    figure.suptitle(f"{evaluation.data['name']}, {evaluation.engine['model']}", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1 - LEGEND / figure.get_figwidth(), 1))
    figure.legend(
        handles.values(), handles.keys(), fontsize=8, loc="center right", frameon=False, title="95 % intervals",
        title_fontsize=8,
    )  # fmt: skip
    save_figure(figure, "--plot", path)


def _panel(axis: Any, figures: Sequence[Figure], labels: Sequence[str]) -> None:
    base = next((f for f in figures if f.method == UNPRUNED), None)
    if base is not None:
        axis.axhspan(100 * base.low, 100 * base.high, color=REFERENCE, alpha=0.10, lw=0)
        axis.axhline(100 * base.accuracy, color=REFERENCE, lw=1.2, label="unpruned")
        for control, dash, name in ((WRONG, ":", "wrong picture"), (GREY, "--", "grey picture")):
            if control in base.controls:
                label = f"unpruned, {name}"
                axis.axhline(100 * base.controls[control], color=BLIND, lw=1, ls=dash, label=label)
    ticks = set()
    for number, label in enumerate(labels):
        points = sorted((f for f in figures if f.method == label), key=lambda f: f.kept)
        if not points:
            continue
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "ls": DASHES[number // len(COLOURS) % len(DASHES)],
            "marker": MARKERS[number % len(MARKERS)],
            "ms": 4,
            "lw": 1.4,
            "label": label,
        }
        kept, marks = [f.kept for f in points], [100 * f.accuracy for f in points]
        low, high = [100 * f.low for f in points], [100 * f.high for f in points]
        if len(labels) <= SHADED_UP_TO and len(points) > 1:
            axis.fill_between(kept, low, high, color=style["color"], alpha=0.15, lw=0)
            axis.plot(kept, marks, **style)
        else:
            below = [mark - end for mark, end in zip(marks, low, strict=True)]
            above = [end - mark for mark, end in zip(marks, high, strict=True)]
            axis.errorbar(kept, marks, yerr=[below, above], elinewidth=0.7, capsize=1.5, **style)
        ticks |= {f.keep for f in points}
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    axis.minorticks_off()
    axis.margins(x=0.06, y=0.08)
    total = f"{figures[0].n:,} questions"
    axis.set_title(f"{figures[0].set}: {total}", fontsize=10, loc="left")
    axis.grid(True, alpha=0.25)
