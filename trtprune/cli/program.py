"""The command line. Commands only: parsing, and printing of the library's results.

Slow imports are inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtprune._version import __version__
from trtprune.cli.bench import bench
from trtprune.cli.build_options import build_request, export_request
from trtprune.cli.chat import chat
from trtprune.cli.compare import compare
from trtprune.cli.console import Group, echo_json, log_options, logger, progress
from trtprune.cli.eval import evaluate
from trtprune.cli.flags import option
from trtprune.cli.frontier import frontier
from trtprune.cli.options import ENGINE_DIRECTORY, JSON
from trtprune.cli.prepack import prepack
from trtprune.cli.run import run
from trtprune.cli.serve import serve
from trtprune.cli.show import show
from trtprune.cli.triton import triton
from trtprune.engine_dir import VERIFY

if TYPE_CHECKING:
    from trtprune.compiler.request import BuildRequest

__all__ = ["main"]

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(__version__, "-V", "--version", prog_name="trtprune")
def main() -> None:
    """Vision-language models with visual-token pruning, compiled into engines.

    \b
    trtprune build --model demo --keep 64 -o out
    trtprune run out --image cat.jpg --prompt "What is on the table?"
    """


@main.command(short_help="Compile a checkpoint with a pruning method.")
@build_request
@JSON
@log_options
def build(request: BuildRequest, as_json: bool) -> None:
    """Compile a checkpoint with a pruning method into an engine directory.

    \b
    trtprune build --model demo --keep 64 -o out
    trtprune build --model llava-1.5-7b --method divprune --keep 128 -o out
    trtprune build --model ./my-llava --weight-dtype int8 -o out
    trtprune build --model llava-1.5-7b --backend tensorrt-rtx \\
        --compute-capability sm89,sm120 -o out
    """
    _build(request, as_json)


@main.command(short_help="Write the ONNX graphs alone, without engines.")
@export_request
@JSON
@log_options
def export(request: BuildRequest, as_json: bool) -> None:
    """Write the ONNX graphs of a checkpoint and a pruning method, and no engines.

    \b
    trtprune export --model demo --keep 64 -o out
    trtprune export --model llava-1.5-7b --backend tensorrt --dtype float16 -o out
    """
    _build(request, as_json)


def _build(request: BuildRequest, as_json: bool) -> None:
    from trtprune.compiler.budget import describe_build, describe_served
    from trtprune.compiler.building import build as run_build

    with progress("export" if request.export_only else "build") as report:
        directory = run_build(request, report=report)
    budget, served = describe_build(directory), describe_served(directory)
    more = f", {served} at run time" if served else ""
    logger.info("%-9s %s: %s%s", "pruner", directory.pruning.method, budget, more)
    if as_json:
        echo_json({"output": str(directory.root), **json.loads(directory.to_json())})
    else:
        click.echo(str(directory.root))


@main.command(short_help="Say what an engine directory holds, and check it.")
@click.argument("directory", type=ENGINE_DIRECTORY, metavar="OUT")
@option(
    "--verify",
    type=click.Choice([level for level in VERIFY if level != "auto"]),
    default="full",
    show_default=True,
    help="How much is checked: nothing, sizes, or every byte against its digest.",
)
@JSON
@log_options
def inspect(directory: Path, verify: str, as_json: bool) -> None:
    """Say what an engine directory holds, and check it.

    \b
    trtprune inspect out
    trtprune inspect out --verify none --json
    """
    from trtprune.cli.inspect import describe, render
    from trtprune.engine_dir import open_engine_dir

    facts = describe(open_engine_dir(directory, verify=verify))
    if as_json:
        echo_json(facts)
    else:
        click.echo(render(facts))


@main.command(short_help="List the pruning methods and their options.")
@JSON
@log_options
def methods(as_json: bool) -> None:
    """List the pruning methods, what each needs, costs and returns, and its options.

    \b
    trtprune methods
    trtprune methods --json
    """
    from trtprune.cli.methods import describe_methods, render_methods
    from trtprune.reports.tables import terminal_width

    if as_json:
        echo_json(describe_methods())
    else:
        click.echo(render_methods(terminal_width()))


@main.command(short_help="List the models that can be built.")
@JSON
@log_options
def models(as_json: bool) -> None:
    """List the aliases and architectures that can be built.

    \b
    trtprune models
    trtprune models --json
    """
    from trtprune.checkpoint.aliases import DEMOS
    from trtprune.models import ALIASES, supported

    if as_json:
        echo_json({"demos": DEMOS, "aliases": ALIASES, "supported": supported()})
        return
    click.echo("aliases")
    names = {**DEMOS, **ALIASES}
    for alias, target in names.items():
        click.echo(f"  {alias:<{max(map(len, names))}} {target}")
    click.echo("architectures")
    for family in supported():
        for key, value in family.items():
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            click.echo(f"  {key:<20} {text}")


@main.command(short_help="Say what is installed, and what is missing.")
@JSON
@log_options
def doctor(as_json: bool) -> None:
    """Say what is installed here, what it can do, and what to install for the rest.

    \b
    trtprune doctor
    trtprune doctor --json
    """
    from trtprune.doctor import examine
    from trtprune.reports.tables import terminal_width

    report = examine()
    if as_json:
        echo_json(report.to_json())
    else:
        click.echo(report.render(terminal_width()))
    if not report.ok:
        sys.exit(1)


main.add_command(run)
main.add_command(chat)
main.add_command(show)
main.add_command(compare)
main.add_command(bench)
main.add_command(evaluate)
main.add_command(frontier)
main.add_command(serve)
main.add_command(triton)
main.add_command(prepack)

if __name__ == "__main__":
    main()
