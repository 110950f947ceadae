"""An evaluation on the terminal."""

from __future__ import annotations

from typing import Any

import click

from trtprune.eval.planning import CONTROLS, UNPRUNED
from trtprune.eval.report import Evaluation, Example, Figure
from trtprune.reports.tables import Column, lay_out, terminal_width, wrap

__all__ = ["describe_examples", "render_evaluation", "show_evaluation"]

NAMES = {"wrong": "wrong\npicture", "grey": "grey\npicture", "f1": "F1", "yes_ratio": "says yes"}


def show_evaluation(evaluation: Evaluation) -> None:
    """Prints the table to stdout."""
    click.echo(render_evaluation(evaluation, terminal_width()))


def render_evaluation(evaluation: Evaluation, width: int | None = None) -> str:
    """The table, at most ``width`` columns wide, and the notes."""
    controls = [name for name in CONTROLS if any(name in f.controls for f in evaluation.figures)]
    # The figures of POPE's tables; precision and recall are in the files.
    yes_no = [name for name in ("f1", "yes_ratio") if any(name in f.yes_no for f in evaluation.figures)]
    several = len(evaluation.sets) > 1
    columns = [
        *([Column("set", left=True)] if several else []),
        Column("method", left=True), Column("kept"), Column("share", 5),
        Column("accuracy"), Column("95 % interval", 3), Column("change"), Column("95 % interval\nof the change", 1),
        Column("p", 4), Column("broken", 2), Column("repaired", 2),
        *(Column(NAMES[name], 7) for name in controls), *(Column(NAMES[name], 6) for name in yes_no),
    ]  # fmt: skip
    rows: list[list[str] | None] = []
    last = ""
    for figure in evaluation.figures:
        label = [f"{figure.set} ({figure.n})" if figure.set != last else ""] if several else []
        last = figure.set
        blind = [f"{100 * figure.controls[c]:.1f}" if c in figure.controls else "" for c in controls]
        blind += [f"{100 * figure.yes_no[name]:.1f}" if name in figure.yes_no else "" for name in yes_no]
        rows.append([*label, figure.method, *_cells(figure), *blind])
    lines = lay_out(columns, rows, width=width, more="report.csv has all")
    return "\n".join([*lines, *(part for note in evaluation.notes for part in wrap(note, width, "  "))])


def _cells(figure: Figure) -> list[str]:
    cells = [
        f"{figure.kept:.0f}" if figure.kept.is_integer() else f"{figure.kept:.1f}",
        f"{100 * figure.share:.1f} %",
        f"{100 * figure.accuracy:.1f}",
        f"{100 * figure.low:.1f} to {100 * figure.high:.1f}",
    ]
    if figure.method == UNPRUNED:
        return [*cells, "", "", "", "", ""]
    return [
        *cells,
        f"{100 * figure.change:+.1f}",
        f"{100 * figure.change_low:+.1f} to {100 * figure.change_high:+.1f}",
        f"{figure.mcnemar_p:.3f}" if figure.mcnemar_p >= 0.001 else "< 0.001",
        str(figure.broken),
        str(figure.repaired),
    ]


def describe_examples(evaluation: Evaluation) -> list[str]:
    """Lines about the first broken and repaired questions of each run, over all sets."""
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
