"""``trtprune prepack``: an engine directory that opens sooner on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from trtprune.cli.console import echo_json, log_options, logger
from trtprune.cli.flags import Command, option
from trtprune.cli.options import DIRECTORY, JSON, KeyValue, as_dict

__all__ = ["prepack"]


@click.command(cls=Command, short_help="Make an engine directory open sooner on this machine.")
@DIRECTORY
@option(
    "--provider-option",
    "provider_options",
    multiple=True,
    type=KeyValue(),
    callback=as_dict,
    metavar="KEY=VALUE",
    help="An option that it will be opened with; repeatable.",
)
@option(
    "--limit",
    type=click.FloatRange(0, 1 << 20),
    default=64,
    show_default=True,
    metavar="GB",
    help="The most room on disk for all prepacked graphs; the least recently used ones of other directories go first.",
)
@option("--remove", is_flag=True, help="Remove what is saved of the directory.")
@JSON
@log_options
def prepack(directory: Path, provider_options: dict[str, str], limit: float, remove: bool, as_json: bool) -> None:
    """Save the graphs of an engine directory as ONNX Runtime's CPU provider packs them for this machine.

    Every later start maps the saved weights instead of packing its own: it is shorter, and processes share the memory.
    The files lie in ~/.cache/trtprune/sessions ($TRTPRUNE_CACHE), take two times the weights in float32, and are used
    only with the same ONNX Runtime, processor and weights.

    \b
    trtprune prepack out
    trtprune prepack out --remove
    """
    from trtprune.reports.downloads import size
    from trtprune.runtime import prepacking

    if remove:
        freed = prepacking.unpack(directory)
        logger.info("removed %s", size(freed))
        if as_json:
            echo_json({"removed_bytes": freed})
        return
    made = prepacking.prepack(
        directory, provider_options=provider_options, limit=round(limit * 2**30), progress=logger.info
    )
    for path in made.removed:
        logger.info("removed what was saved of %s", path)
    if as_json:
        echo_json({"folder": str(made.folder), "bytes": dict(made.sizes), "removed": list(made.removed)})
    else:
        click.echo(f"{made.folder}: {size(sum(made.sizes.values()))} more")
