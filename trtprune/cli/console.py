"""The common part of the commands: logging to stderr, results to stdout, errors as one line and a hint."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from trtprune.cli.flags import LOGGING, Command, option
from trtprune.errors import TrtpruneError, one_line
from trtprune.log import logger
from trtprune.reports.installer import to_install
from trtprune.reports.terminal import (
    LineFormatter,
    StderrHandler,
    drop_stdout,
    echo,
    echo_json,
    is_quiet,
    open_standard_streams,
    output_fault,
    stderr_console,
    styled,
)

__all__ = [
    "Group",
    "TerminalReporter",
    "echo",
    "echo_json",
    "fail",
    "log_options",
    "logger",
    "progress",
    "show_error",
    "spinner",
]

INTERRUPTED = "trtprune: interrupted; nothing was left half-written"

BUILD_PACKAGES = ("onnx", "onnx_ir", "onnxscript", "huggingface_hub", "gguf")
"""Packages that an installation for running only, such as the runtime image's, may lack."""
PACKAGES = {name: name.replace("_", "-") for name in BUILD_PACKAGES} | {
    "numpy": "numpy",
    "PIL": "Pillow",
    "jinja2": "jinja2",
    "ml_dtypes": "ml-dtypes",
    "rich": "rich",
    "tokenizers": "tokenizers",
    "onnxruntime": "trtprune[cpu]",
    "openvino": "trtprune[openvino]",
    "matplotlib": "trtprune[plot]",
    "polygraphy": "trtprune[compare]",
    "torch": "trtprune[torch]",
    "transformers": "trtprune[torch]",
    "cuda": "trtprune[tensorrt]",
    "tensorrt": "trtprune[tensorrt]",
    "tensorrt_rtx": "trtprune[tensorrt-rtx]",
    "lmms_eval": "trtprune[lmms]",
}
"""Module → the package that brings it, or an extra of this one."""


class Group(click.Group):
    """A click group whose commands end an expected failure with one clear line and exit code 1.

    Errors of usage look like all others, and exit with 2.
    """

    command_class = Command

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """As in click, with our errors."""
        with _usage_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        main_thread = threading.current_thread() is threading.main_thread()
        previous = signal.signal(signal.SIGTERM, _terminate) if main_thread else None
        try:
            open_standard_streams()
            with _usage_errors():
                result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except TrtpruneError as error:
            fail(error)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in PACKAGES:
                raise
            hint = to_install(PACKAGES[package])
            if package in BUILD_PACKAGES:
                hint += "; in a container, use the builder image"
            fail(TrtpruneError(f"{package} is not installed, and this command needs it", hint=hint))
        except KeyboardInterrupt:
            click.echo(INTERRUPTED, err=True)
            sys.exit(130)
        except (OSError, UnicodeEncodeError) as error:
            fault = output_fault(error)
            drop_stdout()
            if fault is None:  # The reader of our output (head, less) has closed the pipe, which is fine.
                sys.exit(1)
            fail(fault, error)
        finally:
            if main_thread:
                signal.signal(signal.SIGTERM, previous)


class _Usage(click.UsageError):
    """An error of usage, printed like our errors."""

    def __init__(self, error: click.UsageError, command: click.Context | None) -> None:
        context = error.ctx or command
        super().__init__(error.message, context)
        possible = list(getattr(error, "possibilities", None) or [])
        self._message = (error.message if possible else error.format_message()).rstrip(".")
        asked = f"{context.command_path} --help" if context else "trtprune --help"
        elsewhere = _commands_with(getattr(error, "option_name", ""), context)
        if elsewhere:
            self._hint = f"{error.option_name} is for {elsewhere}; see {asked}"  # type: ignore[attr-defined]
        else:
            self._hint = f"did you mean {' or '.join(possible)}?  See {asked}" if possible else asked

    def format_message(self) -> str:
        """The message without click's suggestions, which are in the hint."""
        return self._message

    def show(self, file: Any = None) -> None:
        """Prints error, hint and usage on stderr."""
        _print_error(self._message[:1].lower() + self._message[1:], self._hint)
        if self.ctx is not None:
            click.echo(" ".join(self.ctx.get_usage().split()), err=True)


def _commands_with(flag: str, context: click.Context | None) -> str:
    """The other commands with a flag, for instance ``trtprune build or export`` for ``--method``."""
    if not flag or context is None:
        return ""
    root = context.find_root()
    commands = getattr(root.command, "commands", {})
    names = [name for name, command in commands.items() if any(flag in found.opts for found in command.params)]
    return f"{root.info_name} {' or '.join(sorted(names))}" if names else ""


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except _Usage:
        raise
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # Not an error: the help, without arguments.
            raise
        raise _Usage(error, click.get_current_context(silent=True)) from None


def _terminate(signum: int, frame: Any) -> NoReturn:
    # As an exception, so that staging directories and locks are cleaned up.
    raise SystemExit(128 + signum)


def fail(error: TrtpruneError, cause: BaseException | None = None) -> NoReturn:
    """Prints the error and its hint on stderr and exits with 1."""
    logger.debug("traceback of the error below", exc_info=cause or error)
    show_error(error)
    sys.exit(1)


def show_error(error: TrtpruneError) -> None:
    """Prints the error and its hint on stderr."""
    _print_error(error.flag_message, error.flag_hint)


def _print_error(message: str, hint: str | None) -> None:
    click.echo(f"{styled('error:', fg='red', bold=True)} {one_line(message)}", err=True)
    if hint:
        click.echo(f"{styled('hint:', fg='cyan')}  {one_line(hint)}", err=True)


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``-v/-q`` (counted) and ``--log-file`` to a command and sets logging up before it runs."""

    def configure(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        ctx.meta[f"trtprune.{param.name}"] = value
        if {"trtprune.verbose", "trtprune.quiet", "trtprune.log_file"} <= ctx.meta.keys():
            _configure(ctx.meta["trtprune.verbose"] - ctx.meta["trtprune.quiet"], ctx.meta["trtprune.log_file"])
        return value

    options = [
        option(
            "-v",
            "--verbose",
            count=True,
            expose_value=False,
            callback=configure,
            group=LOGGING,
            help="Write more log lines; repeatable.",
        ),
        option(
            "-q",
            "--quiet",
            count=True,
            expose_value=False,
            callback=configure,
            group=LOGGING,
            help="Write warnings and errors only.",
        ),
        option(
            "--log-file",
            type=click.Path(dir_okay=False, path_type=Path),
            expose_value=False,
            callback=configure,
            group=LOGGING,
            help="A file for all log lines, with times.",
        ),
    ]
    for each in reversed(options):
        command = each(command)
    return command


def _configure(level: int, log_file: Path | None) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    console = StderrHandler()
    console.setFormatter(LineFormatter("%(message)s"))
    console.setLevel({0: logging.INFO, 1: logging.DEBUG}.get(level, logging.DEBUG if level > 0 else logging.WARNING))
    logger.addHandler(console)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    if log_file is not None:
        try:
            handler = logging.FileHandler(log_file, encoding="utf-8")
        except OSError as error:
            raise TrtpruneError(f"--log-file {log_file}: {error.strerror}", hint="choose another file") from None
        handler.setFormatter(LineFormatter("%(asctime)s %(levelname).1s %(message)s"))
        logger.addHandler(handler)


class TerminalReporter:
    """``report(component, message)`` logs a line; ``report.live(text)`` changes the text beside the spinner."""

    def __init__(self, title: str, status: Any = None) -> None:
        self._title, self._status = title, status
        self._shown = 0.0

    @property
    def moving(self) -> bool:
        """Whether :meth:`live` has a line on a terminal."""
        return self._status is not None

    def __call__(self, component: str, message: str) -> None:
        logger.info("%-9s %s", component, message)

    def live(self, text: str) -> None:
        """Shows the current step; often called, seldom shown. An empty text leaves the title."""
        if self._status is not None and (not text or time.perf_counter() - self._shown > 0.1):
            self._shown = time.perf_counter()
            self._status.update(one_line(f"{self._title}: {text}" if text else self._title, 100))


@contextlib.contextmanager
def progress(title: str) -> Iterator[TerminalReporter]:
    """Yields ``report(component, message)``: one line per component, with a live spinner on a terminal."""
    start = time.perf_counter()
    with spinner(title) as reporter:
        yield reporter
    logger.info("%-9s %s in %.1f s", "done", title, time.perf_counter() - start)


@contextlib.contextmanager
def spinner(title: str) -> Iterator[TerminalReporter]:
    """A spinner on a terminal during slow work, and nothing elsewhere or with ``--quiet``."""
    if sys.stderr.isatty() and not is_quiet():
        with stderr_console().status(title) as status:
            yield TerminalReporter(title, status)
    else:
        yield TerminalReporter(title)
