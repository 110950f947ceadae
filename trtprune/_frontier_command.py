"""The command ``trtprune frontier``: the reports of eval and bench in one picture and one line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from trtprune._bench_command import check_writable
from trtprune._console import echo_json, log_options, logger
from trtprune._options import PATH
from trtprune._plots import plot_wanted
from trtprune.errors import InputError

__all__ = ["frontier"]


@click.command()
@click.argument("eval_reports", type=PATH, metavar="EVAL.json…", nargs=-1, required=True)
@click.argument("bench_report", type=PATH, metavar="BENCH.json")
@click.option(
    "-o", "--output", type=PATH, help="The picture to write.  [default: frontier.png, if matplotlib is there]"
)
@click.option("--no-plot", is_flag=True, help="No picture.")
@click.option("--max-loss", type=click.FloatRange(0, 100), default=1.0, show_default=True, help="Points of accuracy.")
@click.option(
    "--limit",
    type=click.Choice(["low", "high"]),
    default="low",
    show_default=True,
    help="The limit of the change's 95 % interval that --max-loss bounds: low takes what is shown to lose no more, "
    "high what is not shown to lose more.",
)
@click.option("--set", "sets", multiple=True, help="Only this set of questions; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON on stdout.")
@log_options
def frontier(
    eval_reports: tuple[Path, ...],
    bench_report: Path,
    output: Path | None,
    no_plot: bool,
    max_loss: float,
    limit: str,
    sets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put reports of eval and of bench together, and say which method and budget to take.

    \b
    trtprune eval out --data scenes --methods adafv,divprune --keep 192,64
    trtprune bench out --methods adafv,divprune --keep 192,64 --json bench.json
    trtprune frontier out-eval/report.json bench.json -o frontier.png
    """
    from trtprune.frontier import Rule, join, read_report
    from trtprune.frontier.report import render, to_json

    rule = Rule(max_loss, "low" if limit == "low" else "high")
    asked = False if no_plot else True if output else None
    output = output or Path("frontier.png")
    if asked is not False:
        check_writable("-o", output)
    plot = plot_wanted(asked, "-o", output)
    joined = join([read_report(path, "eval") for path in eval_reports], read_report(bench_report, "bench"))
    unknown = [name for name in sets if name not in joined.sets]
    if unknown:
        raise InputError(f"--set {unknown[0]}: none of the sets of questions", hint=f"it has {', '.join(joined.sets)}")
    if sets:
        joined.sets = {name: joined.sets[name] for name in sets}
    if plot:
        from trtprune.frontier.plot import draw_frontier

        draw_frontier(joined, rule, output)
        logger.info("%-9s %s", "plot", output)
    if as_json:
        echo_json(to_json(joined, rule, shlex.join(["trtprune", *sys.argv[1:]])))
    else:
        click.echo(render(joined, rule))
