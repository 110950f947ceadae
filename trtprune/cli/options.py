"""Options of several commands, with one spelling each, and the types of their values; no command, no heavy import.

Earlier spellings are kept as aliases, which help does not list.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trtprune.backends.opening import PROVIDERS
from trtprune.backends.running import Running
from trtprune.cli.flags import OUTPUT, Options, option
from trtprune.engine_dir import VERIFY

__all__ = [
    "CLIP",
    "DIRECTORY",
    "ENGINE_DIRECTORY",
    "JSON",
    "KEEP",
    "KEEP_RATIO",
    "MAX_PIXELS",
    "MODEL",
    "OUTPUT",
    "PATH",
    "PRUNING",
    "RUN",
    "RUNNING",
    "Budgets",
    "KeyValue",
    "Loading",
    "as_dict",
    "keeps_option",
    "methods_option",
    "others_option",
    "plot_options",
]

PATH = click.Path(path_type=Path)
MODEL, PRUNING, RUNNING = "Model", "Pruning", "Running"
"""Headings in help."""


class _EngineDirectory(click.Path):
    """A path, or the hub's ``owner/name``; ``./owner/name`` is a path, but a :class:`Path` loses the difference."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        here = str(value).startswith("./") and not path.exists()
        return Path.cwd() / path if here else path


ENGINE_DIRECTORY = _EngineDirectory()


class Budgets(click.ParamType):
    """``576,192,64``."""

    name = "n,n,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 192,64", param, ctx)


class KeyValue(click.ParamType):
    """``KEY=VALUE``."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, text


def as_dict(ctx: click.Context, param: click.Parameter, value: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """The pairs of a repeatable option as a dict; a key that comes twice has its last value."""
    return dict(value)


JSON = option("--json", "as_json", is_flag=True, group=OUTPUT, help="Print the result as JSON on stdout.")
KEEP = option(
    "--keep",
    type=int,
    metavar="N",
    group=PRUNING,
    help="The number of visual tokens kept per image.  [default: as built]",
)
KEEP_RATIO = option(
    "--keep-ratio",
    type=float,
    metavar="R",
    group=PRUNING,
    help="The share of each image's visual tokens that is kept, above 0 and at most 1; instead of --keep.",
)
MAX_PIXELS = option("--max-pixels", type=int, metavar="N", help="The largest picture that is opened, in pixels.")
CLIP = option(
    "--clip",
    metavar="CHECKPOINT",
    group=MODEL,
    help="The CLIP that the model's vision tower was taken from, such as openai/clip-vit-large-patch14-336; for "
    "methods that read CLIP's text (see `trtprune methods`).",
)


def keeps_option(default: str) -> Any:
    """``--keep 64,16`` or ``--keep 64 --keep 16``: a tuple of budgets; None without the flag.

    Args:
        default: The default in words, for the help.
    """

    def join(ctx: click.Context, param: click.Parameter, value: tuple[tuple[int, ...], ...]) -> Any:
        return tuple(keep for part in value for keep in part) or None

    text = f"Numbers of visual tokens to keep per image, such as 192,64; repeatable.  [default: {default}]"
    return option("--keep", "keeps", type=Budgets(), multiple=True, callback=join, group=PRUNING, help=text)


def others_option(verb: str) -> Any:
    """``--with DIRECTORY``, repeatable: further engine directories that are ``verb``, e.g. "asked"."""
    return option(
        "--with",
        "others",
        type=PATH,
        multiple=True,
        group=PRUNING,
        help=f"An engine directory of another method, {verb} beside OUT; repeatable.",
    )


def methods_option(text: str) -> Any:
    """``--methods A,B`` or ``--methods A --methods B``: one text ``A,B``; None without the flag.

    Args:
        text: Help.
    """

    def join(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> str | None:
        return ",".join(value) if value else None

    return option(
        "--methods",
        aliases=["--method"],
        metavar="A,B:OPTION=VALUE",
        multiple=True,
        callback=join,
        group=PRUNING,
        help=f"{text}  [default: as built]",
    )


class Picture(click.ParamType):
    """A file; True for the flag alone."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value is True else Path(value)


def plot_options(text: str) -> Any:
    """``--plot``, ``--plot FILE`` and ``--no-plot``: ``plot`` is True, a path or False; None without a flag.

    Args:
        text: Help of ``--plot``.
    """

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def wrapped(*args: Any, plot: Any, no_plot: bool, **given: Any) -> Any:
            return command(*args, plot=False if no_plot else plot, **given)

        draw = option("--plot", type=Picture(), bare=True, metavar="FILE", group=OUTPUT, help=text)
        leave = option("--no-plot", is_flag=True, group=OUTPUT, help="Draw no picture.")
        return draw(leave(wrapped))

    return decorate


DIRECTORY = click.argument("directory", type=ENGINE_DIRECTORY, metavar="OUT")
"""The engine directory that a command is about."""

RUN: Options = (
    option(
        "--provider",
        type=click.Choice(PROVIDERS),
        group=RUNNING,
        help="What runs the graphs: ONNX Runtime on a CPU or a GPU, or OpenVINO; with TensorRT engines, what runs "
        "the graphs that these were built from.  [default: as built]",
    ),
    option(
        "--provider-option",
        "provider_options",
        type=KeyValue(),
        multiple=True,
        callback=as_dict,
        group=RUNNING,
        help="A setting of the provider: activations=int8|float32 (cpu, openvino), precision=float32|bf16, "
        "kv_cache=full|u8 and tower=full|int8 (openvino); of TensorRT: device_id=N, cuda_graph=on|off, "
        "runtime_cache=FILE; repeatable.",
    ),
    option(
        "--threads",
        type=click.IntRange(1),
        metavar="N",
        group=RUNNING,
        help="The number of CPU threads the provider uses.  [default: all cores]",
    ),
    option(
        "--verify",
        type=click.Choice(VERIFY),
        default="auto",
        show_default=True,
        group=RUNNING,
        help="How much of the directory is checked before use.",
    ),
)
"""The fields of :class:`trtprune.backends.running.Running`."""


@dataclass(frozen=True)
class Loading:
    """How an engine directory is loaded, and how pictures are read.

    Attributes:
        running: Provider, threads and checks.
        max_pixels: The largest picture that is opened, in pixels; None: the default of ``load``.
        strict_images: Whether animations are refused.
        urls: Whether pictures may be addresses; on the command line they may.
    """

    running: Running
    max_pixels: int | None = None
    strict_images: bool = False
    urls: bool = True
