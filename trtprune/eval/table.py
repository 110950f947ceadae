"""An evaluation on the terminal."""

from __future__ import annotations

import sys
from typing import Any

from trtprune.eval.planning import CONTROLS, UNPRUNED
from trtprune.eval.report import Evaluation, Example, Figure

__all__ = ["describe_examples", "show_evaluation"]

# A pipe has no width; most that read one can take this.
PIPE_WIDTH = 160
NAMES = {"wrong": "wrong picture", "grey": "grey picture", "f1": "F1", "yes_ratio": "says yes"}


def show_evaluation(evaluation: Evaluation) -> None:
    """Prints the table to stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    controls = [name for name in CONTROLS if any(name in f.controls for f in evaluation.figures)]
    table = Table(box=None, pad_edge=False)
    sets = len(evaluation.sets) > 1
    if sets:
        table.add_column("set", no_wrap=True)
    table.add_column("method", no_wrap=True)
    # In a narrow terminal cells wrap: a figure cut short would be a wrong one.
    for name in ("kept", "accuracy (95 %)", "change (95 %)", "p", "broken", "repaired"):
        table.add_column(name, justify="right", overflow="fold")
    for name in controls:
        table.add_column(NAMES[name], justify="right", overflow="fold")
    # What POPE's tables show; precision and recall are in the files.
    yes_no = [name for name in ("f1", "yes_ratio") if any(name in f.yes_no for f in evaluation.figures)]
    for name in yes_no:
        table.add_column(NAMES[name], justify="right", overflow="fold")
    last = ""
    for figure in evaluation.figures:
        if sets and last and figure.set != last:
            table.add_section()
        label = [f"{escape(figure.set)} ({figure.n})" if figure.set != last else ""] if sets else []
        last = figure.set
        blind = [f"{100 * figure.controls[c]:.1f}" if c in figure.controls else "" for c in controls]
        blind += [f"{100 * figure.yes_no[name]:.1f}" if name in figure.yes_no else "" for name in yes_no]
        table.add_row(*label, escape(figure.method), *_cells(figure), *blind)
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    console.print(table)
    for note in evaluation.notes:
        console.print(note, markup=False)


def _cells(figure: Figure) -> list[str]:
    kept = f"{figure.kept:.0f}" if figure.kept.is_integer() else f"{figure.kept:.1f}"
    cells = [
        f"{kept} ({100 * figure.share:.1f} %)",
        f"{100 * figure.accuracy:.1f} ({100 * figure.low:.1f} to {100 * figure.high:.1f})",
    ]
    if figure.method == UNPRUNED:
        return [*cells, "", "", "", ""]
    return [
        *cells,
        f"{100 * figure.change:+.1f} ({100 * figure.change_low:+.1f} to {100 * figure.change_high:+.1f})",
        f"{figure.mcnemar_p:.3f}" if figure.mcnemar_p >= 0.001 else "< 0.001",
        str(figure.broken),
        str(figure.repaired),
    ]


def describe_examples(evaluation: Evaluation) -> list[str]:
    """Lines about the first questions each run broke and repaired, over all sets."""
    lines = []
    last = evaluation.sets[-1]
    for figure in evaluation.figures:
        if figure.set != last:
            continue
        kinds: tuple[tuple[str, Any], ...] = (
            ("broken", figure.broken_examples),
            ("repaired", figure.repaired_examples),
        )
        for kind, examples in kinds:
            lines += [f"{figure.method} {figure.keep}, {kind}: {_example(example)}" for example in examples]
    return lines


def _example(example: Example) -> str:
    wanted = ", ".join(dict.fromkeys(example.answers))
    question = " ".join(example.question.split())
    return f"{example.id}: {question} [{wanted}] unpruned {example.unpruned!r}, pruned {example.pruned!r}"
