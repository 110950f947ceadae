"""The command ``trtprune frontier``: the reports of eval and bench in one picture and one line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from trtprune.cli.bench import check_writable
from trtprune.cli.console import echo_json, log_options, logger
from trtprune.cli.flags import Command, option
from trtprune.cli.options import JSON, OUTPUT, PATH, plot_options
from trtprune.errors import InputError
from trtprune.reports.figures import plot_wanted
from trtprune.reports.tables import terminal_width

__all__ = ["frontier"]

CHOICE = "Choice"


@click.command(cls=Command, short_help="Say which method and budget to take, from reports of eval and bench.")
@click.argument("eval_reports", type=PATH, metavar="EVAL.json…", nargs=-1, required=True)
@click.argument("bench_report", type=PATH, metavar="BENCH.json")
@option(
    "--max-loss",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    default=1.0,
    show_default=True,
    group=CHOICE,
    help="The points of accuracy that may be lost.",
)
@option(
    "--limit",
    type=click.Choice(["low", "high"]),
    default="low",
    show_default=True,
    group=CHOICE,
    help="The limit of the change's 95 % interval that --max-loss bounds: low takes what is shown to lose no more, "
    "high what is not shown to lose more.",
)
@option(
    "--set",
    "sets",
    metavar="NAME",
    multiple=True,
    group=CHOICE,
    help="A set of questions to look at; repeatable.  [default: all]",
)
@plot_options("Draw accuracy over time, to FILE or frontier.png.  [default: if matplotlib is there]")
@option("-o", "--output", type=PATH, group=OUTPUT, help="The picture to write, as --plot FILE.")
@JSON
@log_options
def frontier(
    eval_reports: tuple[Path, ...],
    bench_report: Path,
    output: Path | None,
    plot: Any,
    max_loss: float,
    limit: str,
    sets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put reports of eval and of bench together, and say which method and budget to take.

    \b
    trtprune eval out --data scenes --methods adafv,divprune --keep 192,64
    trtprune bench out --methods adafv,divprune --keep 192,64 --report bench.json
    trtprune frontier out-eval/report.json bench.json -o frontier.png
    """
    from trtprune.frontier import Rule, join, read_report
    from trtprune.frontier.report import render, to_json

    rule = Rule(max_loss, "low" if limit == "low" else "high")
    asked = True if output is not None and plot is None else plot if plot is None else plot is not False
    flag, picture = ("--plot", plot) if isinstance(plot, Path) else ("-o", output or Path("frontier.png"))
    if asked is not False:
        check_writable(flag, picture)
    draw = plot_wanted(asked, flag, picture)
    joined = join([read_report(path, "eval") for path in eval_reports], read_report(bench_report, "bench"))
    unknown = [name for name in sets if name not in joined.sets]
    if unknown:
        raise InputError(f"--set {unknown[0]}: none of the sets of questions", hint=f"it has {', '.join(joined.sets)}")
    if sets:
        joined.sets = {name: joined.sets[name] for name in sets}
    if draw:
        from trtprune.frontier.plot import draw_frontier

        draw_frontier(joined, rule, picture)
        logger.info("%-9s %s", "plot", picture)
    if as_json:
        echo_json(to_json(joined, rule, shlex.join(["trtprune", *sys.argv[1:]])))
    else:
        click.echo(render(joined, rule, terminal_width()))
