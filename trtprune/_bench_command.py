"""The command ``trtprune bench``: what every method and budget takes, and how fast that makes it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from trtprune._console import logger, progress
from trtprune._options import CLIP, PATH, run_options
from trtprune.errors import InputError

__all__ = ["bench", "check_writable"]


class Budgets(click.ParamType):
    """``576,192,64``."""

    name = "n,n,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 192,64", param, ctx)


def check_writable(flag: str, path: Path | None) -> None:
    """Refuses a file that could not be written, before there is anything to write.

    Raises:
        InputError: naming the flag.
    """
    if path is None or str(path) == "-":
        return
    if not path.parent.is_dir():
        raise InputError(f"{flag} {path}: there is no directory {path.parent}", hint="make it first")
    if path.is_dir():
        raise InputError(f"{flag} {path}: is a directory", hint="name a file")


@click.command()
@click.option("--keep", "keeps", type=Budgets(), help="Budgets, such as 192,64.  [default: N/3, N/9 and as built]")
@click.option(
    "--methods",
    metavar="A,B:OPTION=VALUE",
    help="Methods; all, and what follows it besides; unpruned is always measured too.  [default: as built]",
)
@click.option(
    "--against", type=click.Choice(["transformers", "openvino"]), multiple=True,
    help="A peer in the same run, unpruned; repeatable.",
)  # fmt: skip
@click.option("--checkpoint", "--model", help="For transformers: directory, alias or hub id.  [default: as recorded]")
@click.option(
    "--with", "others", type=PATH, multiple=True, help="A directory of engines of another method; repeatable."
)
@CLIP
@click.option("--image", help="The picture.  [default: a generated scene]")
@click.option("--prompt", help="The question.")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Of all cells in turn.")
@click.option("--warmup", type=click.IntRange(1), default=2, show_default=True, help="Rounds before that do not count.")
@click.option("--max-new-tokens", "tokens", type=click.IntRange(2), default=16, show_default=True, help="Of an answer.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of each round.")
@click.option(
    "--memory/--no-memory", default=True, help="Run each cell once more in a process of its own for its peak."
)
@click.option("--json", "json_file", type=PATH, help="Write all numbers here; - is stdout, instead of the table.")
@click.option("--plot", type=PATH, help="Draw the stages of each cell here.")
@run_options
def bench(directory: Path, json_file: Path | None, plot: Path | None, others: tuple[Path, ...], **given: Any) -> None:
    """Measure time, memory and work to the first token and behind it, beside unpruned and a peer.

    \b
    trtprune bench out
    trtprune bench out --keep 192,64 --methods adafv,divprune:center=true --against transformers
    trtprune bench out --methods all --json bench.json --plot bench.png
    """
    from trtprune._plots import require_matplotlib
    from trtprune.bench.plot import draw_stages
    from trtprune.bench.report import render, to_json, write_json
    from trtprune.bench.running import PROMPT, Settings, run_bench

    for flag, path in (("--json", json_file), ("--plot", plot)):
        check_writable(flag, path)
    if plot is not None:
        require_matplotlib("--plot", plot)
    command = shlex.join(["trtprune", *sys.argv[1:]])
    names = ("keeps", "methods", "against", "image", "rounds", "warmup", "tokens", "seed", "memory")
    settings = Settings(**{name: given[name] for name in names}, prompt=given["prompt"] or PROMPT)
    with progress("bench") as report:
        run = run_bench(
            directory,
            settings,
            provider=given["provider"],
            threads=given["threads"],
            provider_options=dict(given["provider_options"]),
            verify=given["verify"],
            checkpoint=given["checkpoint"],
            others=others,
            build_options={"clip": given["clip"]} if given["clip"] else None,
            report=report,
        )
    result = to_json(run, command)
    if json_file is not None:
        write_json(result, json_file)
    if plot is not None:
        draw_stages(result, plot)
        logger.info("%-9s %s", "plot", plot)
    if json_file is None or str(json_file) != "-":
        click.echo(render(result))
