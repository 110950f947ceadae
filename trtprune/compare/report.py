"""The tables of ``trtprune compare`` on the terminal, and its report as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.compare.results import Comparison, ComponentResult, Layers, OutputResult, PointResult
from trtprune.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from trtprune.compare.answers import Agreement

__all__ = ["show_agreement", "show_comparison", "write_report"]

# A pipe has no width; most that read one can take this.
PIPE_WIDTH = 120
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
    """Prints what was found to stdout."""
    console = _console()
    console.print(_outputs(comparison.components))
    for component in comparison.components:
        for invalid in component.invalid:
            console.print(f"{component.name}: NaN or infinity in {invalid}", highlight=False, markup=False)
        if component.layers is not None:
            _print_layers(console, component.name, component.layers)


def show_agreement(agreement: Agreement) -> None:
    """Prints the comparison of answers to stdout."""
    from rich.markup import escape
    from rich.table import Table

    console = _console()
    table = Table(box=None, pad_edge=False)
    for name, justify in (("question", "left"), ("pruned", "left"), ("unpruned", "left"), ("", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in agreement.rows:
        mark = "same" if row.same else "differs" if row.counted else f"not counted: {row.why}"
        table.add_row(*map(escape, (row.prompt, row.pruned, row.unpruned, mark)))
    console.print(table)


def _console() -> Any:
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def _outputs(components: Sequence[ComponentResult]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("component")
    table.add_column("output")
    for name in ("error", "relative", "tolerance", "largest"):
        table.add_column(name, justify="right")
    table.add_column("at")
    table.add_column("")
    for component in components:
        name = component.name
        for row, label in _grouped(component.outputs):
            verdict = "[green]PASSED[/]" if row.passed else "[bold red]FAILED[/]"
            stat = "max" if row.stat == "elemwise" else row.stat
            table.add_row(
                name,
                label,
                row.note or f"{_number(row.error)} {stat}",
                _number(row.relative),
                f"{row.atol:.3g} / {row.rtol:.3g}",
                _number(row.max_abs),
                row.iteration,
                verdict,
            )
            name = ""
    return table


def _grouped(outputs: Sequence[OutputResult]) -> list[tuple[OutputResult, str]]:
    """The caches of all layers are one row, that of the worst, or of the first that failed."""
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
    from rich.markup import escape
    from rich.table import Table

    if len(layers.residual) > 1:
        worst = max(layers.residual, key=lambda p: p.error if p.error is not None else float("inf"))
        count = sum(not p.passed for p in layers.residual)
        console.print(
            f"{name}: {count} of {len(layers.residual)} points of the residual stream are beyond tolerance; "
            f"the largest error, {_number(worst.error)}, is behind {worst.label}",
            highlight=False,
        )
    if layers.first is None:
        return
    console.print(f"{name}: first beyond tolerance: [bold]{escape(layers.first)}[/]", highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("  tensor")
    for column in ("error", "relative", "size"):
        table.add_column(column, justify="right")
    table.add_column("")
    rows = _neighbourhood(layers.tensors) or _neighbourhood(layers.inside) or _neighbourhood(layers.residual)
    for p in rows:
        verdict = "" if p.passed else "[bold red]beyond[/]"
        table.add_row("  " + escape(p.label), _number(p.error), _number(p.relative), _number(p.magnitude), verdict)
    console.print(table)
    if layers.note:
        console.print(f"  ({layers.note})", highlight=False, markup=False)


def _neighbourhood(points: Sequence[PointResult], around: int = 3) -> Sequence[PointResult]:
    """The first point beyond tolerance with some before and behind it."""
    bad = next((i for i, p in enumerate(points) if not p.passed), None)
    return () if bad is None else points[max(0, bad - around) : bad + around]


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3g}"
