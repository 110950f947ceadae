"""``trtprune triton``: an engine directory as a model of Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtprune.backends.opening import PROVIDERS
from trtprune.cli.batch_options import BATCH
from trtprune.cli.console import log_options, logger
from trtprune.cli.flags import OUTPUT, Command, Gathered, option
from trtprune.cli.options import DIRECTORY, PATH

__all__ = ["triton"]

COUNT = click.IntRange(1, 1 << 20)


@click.command(cls=Command, short_help="Write a model repository for Triton Inference Server.")
@DIRECTORY
@option("-o", "--output", type=PATH, required=True, metavar="REPO", group=OUTPUT, help="The model repository.")
@option("--name", metavar="NAME", help="The model's name.  [default: that of OUT]")
@Gathered("batch", dict, BATCH)
@option("--provider", type=click.Choice(PROVIDERS), help="What runs the graphs.  [default: as built]")
@option("--threads", type=COUNT, metavar="N", help="CPU threads.  [default: all cores]")
@log_options
def triton(directory: Path, output: Path, name: str | None, batch: dict[str, int], **given: Any) -> None:
    """Write a model repository for Triton Inference Server (and KServe and Dynamo, which serve one).

    \b
    trtprune triton out -o models
    tritonserver --model-repository models     # its Python: trtprune[cpu,triton]
    """
    from trtprune.engine_dir import open_engine_dir
    from trtprune.serving.sizes import BatchSizes
    from trtprune.serving.triton_repository import TritonSettings, write_repository

    made = open_engine_dir(directory)
    settings = TritonSettings(name or made.root.resolve().name, BatchSizes(**batch), **given)
    path = write_repository(made, output, settings)
    logger.info("a model for Triton's Python backend, which needs this package with its extra [triton]")
    click.echo(str(path))
