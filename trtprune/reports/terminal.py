"""Standard output and standard error: the allowed characters, and errors of writing.

Texts of files and answers of models are untrusted: none of their control characters reaches a terminal.  Colours depend
on the user (``NO_COLOR``, ``TERM=dumb``).  An answer that cannot be written is an error, never lost in silence.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import sys
from typing import Any, TextIO

import click

from trtprune.errors import TrtpruneError, one_line, printable

__all__ = [
    "LineFormatter",
    "StderrHandler",
    "drop_stdout",
    "echo",
    "echo_json",
    "is_quiet",
    "open_standard_streams",
    "output_fault",
    "stderr_console",
    "styled",
]

LINE_LENGTH = 1000
"""Characters of a log line."""

UNPRINTABLE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")
"""Control characters except tab and newline, and those that reorder a line: an answer needs none of them."""

COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")

UNPRINTABLE_JSON = re.compile("[\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
"""Characters that ``json.dumps`` does not escape, but that are unsafe for a terminal or an encoder."""


class StdoutError(OSError):
    """An error in writing standard output, as a type of its own beside errors of other files."""


class _Stdout(io.FileIO):
    """Standard output's file; its errors are :class:`StdoutError`."""

    def write(self, data: Any, /) -> int:
        """Writes as ``io.FileIO`` does."""
        try:
            return super().write(data)
        except OSError as error:
            raise StdoutError(error.errno, error.strerror) from None


class _TerminalText(io.TextIOWrapper):
    """Standard output on a terminal: only colours pass of all control sequences, whatever file a text came from."""

    def write(self, text: str, /) -> int:
        """Writes as a text file does, with other control characters as escapes."""
        if UNPRINTABLE.search(text):
            text = "".join(
                part if COLOUR.fullmatch(part) else UNPRINTABLE.sub(lambda found: printable(found[0]), part)
                for part in COLOUR.split(text)
            )
        return super().write(text)


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current ``sys.stderr``: rich replaces it while it draws a spinner or a bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The current ``sys.stderr``."""
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("the stream is always sys.stderr")


class LineFormatter(logging.Formatter):
    """One printable line of bounded length for each record, whatever file its text came from."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback if the record has one."""
        return printable(super().format(record), keep="\n")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line."""
        text = record.message
        if len(text) > LINE_LENGTH or not text.isprintable():
            # Not one_line alone: it would remove the spaces between the columns of an ordinary line.
            record.message = one_line(text, LINE_LENGTH)
        return super().formatMessage(record)


def is_quiet() -> bool:
    """Whether the user asked for warnings and errors only."""
    handlers = logging.getLogger("trtprune").handlers
    return any(isinstance(h, StderrHandler) and h.level >= logging.WARNING for h in handlers)


def stderr_console() -> Any:
    """The rich console for spinners and bars; its text is never read as markup."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False)


def styled(text: str, **style: Any) -> str:
    """``text`` in colour, unless the user wants none; ``click.echo`` removes colours if stdout is no terminal."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else click.style(text, **style)


def echo(text: str, *, end: bool = True) -> None:
    """Text on stdout, flushed; control characters in it do not reach a terminal.

    Args:
        text: Text of a model or a file.
        end: Whether a newline follows.
    """
    if UNPRINTABLE.search(text) and sys.stdout.isatty():
        text = UNPRINTABLE.sub(lambda found: printable(found[0]), text)
    # color: a file or pipe gets the answer unchanged.
    click.echo(text, nl=end, color=True)


def echo_json(data: Any) -> None:
    """One JSON document on a line of stdout."""
    # JSON can be written in ASCII if stdout takes nothing else.
    unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    text = json.dumps(data, ensure_ascii=not unicode)
    click.echo(UNPRINTABLE_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def open_standard_streams() -> None:
    """Refuses a closed stdout, and opens a closed stdin or stderr on the null device.

    Otherwise the next file would get the number of the closed stream, and a library's messages on stderr would go into
    that file.

    Raises:
        TrtpruneError: if standard output is closed.
    """
    for number, mode in ((0, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        raise TrtpruneError("standard output is closed", hint="leave it open, or write > /dev/null for no output")
    _name_stdout_errors()


def _name_stdout_errors() -> None:
    """Makes ``sys.stdout``, where it is the process's own, raise :class:`StdoutError`."""
    stream = sys.stdout
    if stream is not sys.__stdout__ or not isinstance(stream, io.TextIOWrapper):
        return
    raw = getattr(stream.buffer, "raw", stream.buffer)  # the same with PYTHONUNBUFFERED
    if type(raw) is io.FileIO:
        stream.flush()
        kind = _TerminalText if stream.isatty() else io.TextIOWrapper
        sys.stdout = kind(
            io.BufferedWriter(_Stdout(raw.fileno(), "w", closefd=False)),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering or raw is stream.buffer,
        )


def output_fault(error: OSError | UnicodeEncodeError) -> TrtpruneError | None:
    """The user's error for one of the operating system or of an encoder; None if the reader has closed the pipe."""
    if isinstance(error, UnicodeEncodeError):
        sign = error.object[error.start : error.end][:20]
        return TrtpruneError(
            f"standard output is {error.encoding} and cannot show {sign!a}",
            hint="set PYTHONIOENCODING=utf-8, or take --json, which is ASCII there",
        )
    reason = error.strerror or str(error)
    if isinstance(error, BrokenPipeError) or error.errno == errno.EPIPE:
        return None
    if isinstance(error, StdoutError):
        return TrtpruneError(
            f"standard output cannot be written: {reason}",
            hint="make room or choose another place, and run it again; what was not written is lost",
        )
    named = f"{error.filename}: " if error.filename is not None else ""
    return TrtpruneError(f"{named}{reason}", hint="-v says where it happened")


def drop_stdout() -> None:
    """Discards stdout's buffer, because the interpreter would report an error at its end."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
