"""Options of a running batch, of the commands that serve one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from trtprune.cli.flags import Options, option

__all__ = ["BATCH"]

GROUP = "Batch"
SIZE, MIB = click.IntRange(1, 1024), click.IntRange(0, 1 << 20)


def _number(name: str, default: int, kind: click.ParamType, text: str) -> Callable[[Any], Any]:
    return option(name, type=kind, default=default, show_default=True, metavar="N", group=GROUP, help=text)


BATCH: Options = (
    _number("--max-batch-size", 8, SIZE, "Requests that are answered at once."),
    _number("--max-queued-requests", 64, click.IntRange(0, 1 << 20), "Requests that may wait for their turn."),
    _number(
        "--prefill-chunk",
        256,
        click.IntRange(16, 1 << 20),
        "Tokens of prompts, or of images, in one run while other requests wait for their next token.",
    ),
    _number("--image-cache-mb", 256, MIB, "Memory for features of earlier images, in MiB; 0 is off."),
    _number("--prefix-cache-mb", 512, MIB, "Memory for the KV cache of earlier prompts and answers, in MiB; 0 is off."),
)
"""The fields of :class:`trtprune.serving.sizes.BatchSizes`."""
