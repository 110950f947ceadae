"""The tables of ``trtprune compare`` on the terminal, and its report as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.compare.results import Comparison, ComponentResult, Layers, OutputResult, PointResult
from trtprune.errors import InputError
from trtprune.reports.tables import Column, lay_out, terminal_width, wrap

if TYPE_CHECKING:
    from trtprune.compare.answers import Agreement

__all__ = ["show_agreement", "show_comparison", "write_report"]

# Answers can have any length: in a pipe, which has no width, longer questions are printed one by one.
PIPE_WIDTH = 120
VERDICTS = {"PASSED": "green", "FAILED": "bold red", "beyond": "bold red"}
GROUPED = re.compile(r"^(present)\.\d+\.(key|value)$")


def write_report(data: Any, path: Path) -> None:
    """Writes a report as indented JSON.

    Raises:
        InputError: if it cannot be written.
    """
    try:
        path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--report {path}: {error.strerror or error}", hint="choose another file") from None


def show_comparison(comparison: Comparison) -> None:
    """Prints the comparison to stdout."""
    console = _console()
    _print(console, _outputs(comparison.components))
    for component in comparison.components:
        for invalid in component.invalid:
            console.print(f"{component.name}: NaN or infinity in {invalid}")
        if component.layers is not None:
            _print_layers(console, component.name, component.layers)


def show_agreement(agreement: Agreement) -> None:
    """Prints the comparison of answers to stdout."""
    columns = [Column(name, left=True) for name in ("question", "pruned", "unpruned", "")]
    rows = []
    for row in agreement.rows:
        mark = "same" if row.same else "differs" if row.counted else f"not counted: {row.why}"
        rows.append([" ".join(text.split()) for text in (row.prompt, row.pruned, row.unpruned, mark)])
    _print(_console(), lay_out(columns, rows, width=terminal_width(PIPE_WIDTH)))


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _print(console: Any, lines: Sequence[str]) -> None:
    """Lines of a table, with coloured verdicts if colours are enabled."""
    from rich.text import Text

    for line in lines:
        text = Text(line)
        for words, style in VERDICTS.items():
            text.highlight_regex(rf"\b{words}$", style)
        console.print(text)


def _outputs(components: Sequence[ComponentResult]) -> list[str]:
    columns = [
        Column("component", left=True), Column("output", left=True), Column("error"), Column("relative", 3),
        Column("tolerance", 2), Column("largest", 4), Column("at", 1, left=True), Column("", left=True),
    ]  # fmt: skip
    rows = []
    for component in components:
        name = component.name
        for row, label in _grouped(component.outputs):
            stat = "max" if row.stat == "elemwise" else row.stat
            rows.append(
                [
                    name,
                    label,
                    row.note or f"{_number(row.error)} {stat}",
                    _number(row.relative),
                    f"{row.atol:.3g} / {row.rtol:.3g}",
                    _number(row.max_abs),
                    row.iteration,
                    "PASSED" if row.passed else "FAILED",
                ]
            )
            name = ""
    return lay_out(columns, rows, width=terminal_width(), more="--report has all")


def _grouped(outputs: Sequence[OutputResult]) -> list[tuple[OutputResult, str]]:
    """Results for the table: the caches of all layers are one row, with the worst or first failed layer."""
    rows: dict[str, list[OutputResult]] = {}
    for output in outputs:
        rows.setdefault(GROUPED.sub(r"\1.*.\2", output.name), []).append(output)
    found = []
    for label, group in rows.items():
        failed = [output for output in group if not output.passed]
        worst = (failed or sorted(group, key=lambda o: -(o.error or 0.0)))[0]
        found.append((worst, label if len(group) == 1 else f"{label} (worst: {worst.name.split('.')[1]})"))
    return found


def _print_layers(console: Any, name: str, layers: Layers) -> None:
    width = terminal_width()
    if len(layers.residual) > 1:
        worst = max(layers.residual, key=lambda p: p.error if p.error is not None else float("inf"))
        count = sum(not p.passed for p in layers.residual)
        text = (
            f"{name}: {count} of {len(layers.residual)} points of the residual stream are beyond tolerance; "
            f"the largest error, {_number(worst.error)}, is behind {worst.label}"
        )
        _print(console, wrap(text, width, "  "))
    if layers.first is None:
        return
    _print(console, wrap(f"{name}: first beyond tolerance: {layers.first}", width, "  "))
    columns = [Column("  tensor", left=True), Column("error"), Column("relative", 2), Column("size", 1), Column("")]
    near = _neighbourhood(layers.tensors) or _neighbourhood(layers.inside) or _neighbourhood(layers.residual)
    rows = [
        [f"  {p.label}", _number(p.error), _number(p.relative), _number(p.magnitude), "" if p.passed else "beyond"]
        for p in near
    ]
    _print(console, lay_out(columns, rows, width=width, more="--report has all"))
    if layers.note:
        _print(console, wrap(f"  ({layers.note})", width, "  "))


def _neighbourhood(points: Sequence[PointResult], around: int = 3) -> Sequence[PointResult]:
    """The first point beyond tolerance, with some points before and behind it."""
    bad = next((i for i, p in enumerate(points) if not p.passed), None)
    return () if bad is None else points[max(0, bad - around) : bad + around]


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3g}"
