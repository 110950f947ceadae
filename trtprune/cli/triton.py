"""``trtprune triton``: an engine directory as a model of Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtprune.backends.opening import PROVIDERS
from trtprune.cli.console import log_options, logger
from trtprune.cli.flags import OUTPUT, Command, option
from trtprune.cli.options import DIRECTORY, PATH

__all__ = ["triton"]

COUNT = click.IntRange(1, 1 << 20)
SIZE = click.IntRange(0, 1 << 20)


@click.command(cls=Command, short_help="Write a model repository for Triton Inference Server.")
@DIRECTORY
@option("-o", "--output", type=PATH, required=True, metavar="REPO", group=OUTPUT, help="The model repository.")
@option("--name", metavar="NAME", help="The model's name.  [default: that of OUT]")
@option("--max-batch-size", type=COUNT, default=8, show_default=True, metavar="N", help="Requests at once.")
@option("--max-queued-requests", type=COUNT, default=64, show_default=True, metavar="N", help="Requests that may wait.")
@option("--prefill-chunk", type=COUNT, default=256, show_default=True, metavar="N", help="Tokens of a prompt at once.")
@option("--image-cache-mb", type=SIZE, default=256, show_default=True, metavar="N", help="Memory for features, MiB.")
@option("--prefix-cache-mb", type=SIZE, default=512, show_default=True, metavar="N", help="For earlier prompts, MiB.")
@option("--provider", type=click.Choice(PROVIDERS), help="What runs the graphs.  [default: as built]")
@option("--threads", type=COUNT, metavar="N", help="CPU threads.  [default: all cores]")
@log_options
def triton(directory: Path, output: Path, name: str | None, **given: Any) -> None:
    """Write a model repository for Triton Inference Server (and KServe and Dynamo, which serve one).

    \b
    trtprune triton out -o models
    tritonserver --model-repository models     # its Python: trtprune[cpu,triton]
    """
    from trtprune.engine_dir import open_engine_dir
    from trtprune.serving.triton_repository import TritonSettings, write_repository

    made = open_engine_dir(directory)
    path = write_repository(made, output, TritonSettings(name or made.root.resolve().name, **given))
    logger.info("a model for Triton's Python backend, which needs this package with its extra [triton]")
    click.echo(str(path))
