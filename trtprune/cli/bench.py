"""The command ``trtprune bench``: time, memory and work of every method and budget."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from trtprune.backends.running import Running
from trtprune.bench.settings import PEERS, PROMPT, BenchSettings
from trtprune.cli.console import log_options, logger, progress
from trtprune.cli.flags import Command, Gathered, Options, option
from trtprune.cli.options import (
    CLIP,
    DIRECTORY,
    OUTPUT,
    PATH,
    RUN,
    keeps_option,
    methods_option,
    others_option,
    plot_options,
)
from trtprune.errors import BackendError, InputError
from trtprune.reports.tables import terminal_width

__all__ = ["bench", "check_writable"]

AGAINST, MEASURING = "Peers", "Measuring"


def check_writable(flag: str, path: Path | None) -> None:
    """Refuses a file that cannot be written, before any work.

    Raises:
        InputError: naming the flag.
    """
    if path is None or str(path) == "-":
        return
    if not path.parent.is_dir():
        raise InputError(f"{flag} {path}: there is no directory {path.parent}", hint="make it first")
    if path.is_dir():
        raise InputError(f"{flag} {path}: is a directory", hint="name a file")


_SETTINGS: Options = (
    keeps_option("a third and a ninth of all, and as built"),
    methods_option("Pruning methods, or all; unpruned is always measured, too."),
    others_option("measured"),
    CLIP,
    option(
        "--against",
        type=click.Choice(PEERS),
        multiple=True,
        group=AGAINST,
        help="Another program that is measured in the same run, unpruned; repeatable.",
    ),
    option(
        "--checkpoint",
        aliases=["--model"],
        group=AGAINST,
        help="The checkpoint for transformers: a directory, alias or hub id.  [default: as recorded at build]",
    ),
    option("--image", metavar="PICTURE", group=MEASURING, help="The picture.  [default: a generated scene]"),
    option("--prompt", default=PROMPT, group=MEASURING, help="The question.  [default: one about the generated scene]"),
    option(
        "--rounds",
        type=click.IntRange(1),
        metavar="N",
        default=10,
        show_default=True,
        group=MEASURING,
        help="The number of rounds; in each round everything is run once, in random order.",
    ),
    option(
        "--warmup",
        type=click.IntRange(1),
        metavar="N",
        default=2,
        show_default=True,
        group=MEASURING,
        help="The number of rounds before those, which are not counted.",
    ),
    option(
        "--max-new-tokens",
        "tokens",
        type=click.IntRange(2),
        metavar="N",
        default=16,
        show_default=True,
        group=MEASURING,
        help="The length of every answer in tokens.",
    ),
    option(
        "--seed", type=int, default=0, show_default=True, group=MEASURING, help="The seed of the order in each round."
    ),
    option(
        "--memory/--no-memory",
        default=True,
        group=MEASURING,
        help="Whether each is run once more in a process of its own, for its peak of memory.  [default: memory]",
    ),
    option(
        "--json",
        "json_file",
        type=PATH,
        bare="-",
        metavar="FILE",
        group=OUTPUT,
        help="Print all numbers as JSON on stdout instead of the table; with FILE write them there, beside the table.",
    ),
    option(
        "--report",
        "report_file",
        type=PATH,
        metavar="FILE",
        group=OUTPUT,
        help="Write all numbers to this file as JSON.",
    ),
    plot_options("Draw the stages of each cell, to FILE or bench.png."),
    Gathered("running", Running, RUN),
)


@click.command(cls=Command, short_help="Measure time, memory and work with and without pruning.")
@DIRECTORY
@Gathered("settings", BenchSettings, _SETTINGS, apart=("json_file", "report_file", "plot"))
@log_options
def bench(
    directory: Path, settings: BenchSettings, json_file: Path | None, report_file: Path | None, plot: Any
) -> None:
    """Measure time, memory and work up to the first token and after it, beside unpruned and a peer.

    \b
    trtprune bench out
    trtprune bench out --keep 192,64 --methods adafv,divprune:center=true
    trtprune bench out --keep 64 --against transformers
    trtprune bench out --methods all --report bench.json --plot bench.png
    """
    from trtprune.bench.plot import draw_stages
    from trtprune.bench.report import render, to_json, write_json
    from trtprune.bench.running import run_bench
    from trtprune.reports.figures import require_matplotlib

    picture = Path("bench.png") if plot is True else plot or None
    for flag, path in (("--json", json_file), ("--report", report_file), ("--plot", picture)):
        check_writable(flag, path)
    if picture is not None:
        require_matplotlib("--plot", picture)
    command = shlex.join(["trtprune", *sys.argv[1:]])
    with progress("bench") as report:
        run = run_bench(directory, settings, report)
    result = to_json(run, command)
    for path in (json_file, report_file):
        if path is not None:
            write_json(result, path)
    if picture is not None:
        draw_stages(result, picture)
        logger.info("%-9s %s", "plot", picture)
    if json_file is None or str(json_file) != "-":
        click.echo(render(result, terminal_width()))
    if result["findings"]:
        # The report is there, and is not to be believed.
        raise BackendError(
            f"{len(result['findings'])} times are below their floors: {result['findings'][0]}",
            hint="run it again while nothing else runs; if it comes again, report it as an error of the bench",
        )
