"""What the commands share: logging to stderr, results to stdout, errors as one line and a hint."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from trtprune.errors import TrtpruneError

__all__ = ["Group", "Reporter", "echo_json", "fail", "log_options", "logger", "progress"]

logger = logging.getLogger("trtprune")

BUILD_PACKAGES = ("onnx", "onnx_ir", "onnxscript", "huggingface_hub")
"""What an installation that only runs engine directories may lack, such as the runtime image's."""


class Group(click.Group):
    """A click group whose commands end in exit code 1 and one clear line on an expected failure."""

    def invoke(self, ctx: click.Context) -> Any:
        main_thread = threading.current_thread() is threading.main_thread()
        previous = signal.signal(signal.SIGTERM, _terminate) if main_thread else None
        try:
            return super().invoke(ctx)
        except TrtpruneError as error:
            fail(error)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in BUILD_PACKAGES:
                raise
            hint = f"pip install {package.replace('_', '-')}; in a container, use the builder image"
            fail(TrtpruneError(f"{package} is not installed, and this command needs it", hint=hint))
        except KeyboardInterrupt:
            click.echo("trtprune: interrupted; nothing was left half-written", err=True)
            sys.exit(130)
        except BrokenPipeError:
            # The reader of our output (head, less) has gone; that is its right.
            sys.stderr.close()
            sys.exit(0)
        finally:
            if main_thread:
                signal.signal(signal.SIGTERM, previous)


def _terminate(signum: int, frame: Any) -> NoReturn:
    # As an exception, so that staging directories and locks are cleaned up on the way out.
    raise SystemExit(128 + signum)


def fail(error: TrtpruneError) -> NoReturn:
    """Prints the error and its hint on stderr and exits with 1."""
    logger.debug("traceback of the error below", exc_info=error)
    click.echo(f"{click.style('error:', fg='red', bold=True)} {error.message}", err=True)
    if error.hint:
        click.echo(f"{click.style('hint:', fg='cyan')}  {error.hint}", err=True)
    sys.exit(1)


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``-v/-q`` (counted) and ``--log-file`` to a command and sets logging up before it runs."""

    def configure(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        ctx.meta[f"trtprune.{param.name}"] = value
        if {"trtprune.verbose", "trtprune.quiet", "trtprune.log_file"} <= ctx.meta.keys():
            _configure(ctx.meta["trtprune.verbose"] - ctx.meta["trtprune.quiet"], ctx.meta["trtprune.log_file"])
        return value

    options = [
        click.option("-v", "--verbose", count=True, expose_value=False, callback=configure, help="More log lines."),
        click.option("-q", "--quiet", count=True, expose_value=False, callback=configure, help="Fewer log lines."),
        click.option(
            "--log-file",
            type=click.Path(dir_okay=False, path_type=Path),
            expose_value=False,
            callback=configure,
            help="Write all log lines, with times, to this file too.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _configure(level: int, log_file: Path | None) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(message)s"))
    console.setLevel({0: logging.INFO, 1: logging.DEBUG}.get(level, logging.DEBUG if level > 0 else logging.WARNING))
    logger.addHandler(console)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    if log_file is not None:
        try:
            handler = logging.FileHandler(log_file, encoding="utf-8")
        except OSError as error:
            raise TrtpruneError(f"--log-file {log_file}: {error.strerror}", hint="choose another file") from None
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s"))
        logger.addHandler(handler)


class Reporter:
    """``report(component, message)`` logs a line; ``report.live(text)`` changes the text behind the spinner."""

    def __init__(self, title: str, status: Any = None) -> None:
        self._title, self._status = title, status
        self._shown = 0.0

    @property
    def moving(self) -> bool:
        """Whether there is a line on a terminal that :meth:`live` changes."""
        return self._status is not None

    def __call__(self, component: str, message: str) -> None:
        logger.info("%-9s %s", component, message)

    def live(self, text: str) -> None:
        """Says what is being done now; often called, seldom shown."""
        if self._status is not None and time.perf_counter() - self._shown > 0.1:
            self._shown = time.perf_counter()
            self._status.update(f"{self._title}  {text}"[:100])


@contextlib.contextmanager
def progress(title: str) -> Iterator[Reporter]:
    """Yields ``report(component, message)``: a line a component, behind a live spinner on a terminal."""
    start = time.perf_counter()
    quiet = any(h.level >= logging.WARNING for h in logger.handlers if type(h) is logging.StreamHandler)
    if sys.stderr.isatty() and not quiet:
        from rich.console import Console

        with Console(stderr=True, markup=False).status(title) as status:
            yield Reporter(title, status)
    else:
        yield Reporter(title)
    logger.info("%-9s %s in %.1f s", "done", title, time.perf_counter() - start)


def echo_json(data: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(data, ensure_ascii=False))
