"""Files of JSON lines, for ``run --requests``, ``compare --requests`` and ``eval --data``.

A file is untrusted: it is read line by line, whatever its length, and an unusable line is returned as the reason why it
is unusable.  Lines end with ``\\n`` only: U+2028 and similar characters are characters of a text.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from trtprune.errors import InputError
from trtprune.files.reading import open_regular

__all__ = ["STDIN", "Entry", "JsonLines", "prompt_of"]

MAX_LINE_BYTES = 16 << 20
"""The longest line in bytes: an image may be in a line, as a ``data:`` address."""
MAX_PIPE_BYTES = 1 << 32
STDIN = Path("-")

Entry: TypeAlias = "tuple[int, dict[str, Any] | str]"
"""The number of a line, from 1; its object, or the reason why it has none."""


class JsonLines:
    """The lines of a file, a pipe or standard input; a context manager, and iterable more than once.

    Args:
        path: The file; ``-`` is standard input.  One that is not a regular file is first copied to a temporary one.
        flag: The flag that names the file, for errors.
        hint: Hint of errors: an example of a line.
        max_line: The longest line in bytes.
        max_bytes: The largest size in bytes; None: no limit for a file, :data:`MAX_PIPE_BYTES` for a pipe.

    Raises:
        InputError: naming flag and file, if it cannot be read.
    """

    def __init__(
        self, path: Path, *, flag: str, hint: str, max_line: int = MAX_LINE_BYTES, max_bytes: int | None = None
    ) -> None:
        self.name = "standard input" if path == STDIN else str(path)
        self.folder = Path() if path == STDIN else path.parent
        self._max_line = max_line
        try:
            if path == STDIN:
                self._stream = _copy(sys.stdin.buffer, max_bytes)
            elif stat.S_ISFIFO(path.stat().st_mode):  # for instance <(command)
                with path.open("rb") as pipe:
                    self._stream = _copy(pipe, max_bytes)
            else:
                self._stream = open(path, "rb", opener=open_regular)  # noqa: SIM115
                if max_bytes is not None and os.fstat(self._stream.fileno()).st_size > max_bytes:
                    self._stream.close()
                    raise OSError(0, f"larger than {max_bytes} bytes")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{flag} {path}: cannot be read: {reason}", hint=hint) from None

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __iter__(self) -> Iterator[Entry]:
        """All lines but the blank ones; blank lines count in the numbers."""
        self._stream.seek(0)
        for number, line in enumerate(self._lines(), 1):
            if line is None:
                yield number, f"longer than {self._max_line} bytes"
            elif line.strip():
                yield number, _parse(line, number)

    def _lines(self) -> Iterator[bytes | None]:
        """Each line; None for a line that is too long."""
        while line := self._stream.readline(self._max_line + 1):
            if len(line) <= self._max_line or line.endswith(b"\n"):
                yield line
                continue
            while line and not line.endswith(b"\n"):
                line = self._stream.readline(1 << 20)
            yield None


def _copy(pipe: IO[bytes], max_bytes: int | None) -> IO[bytes]:
    """A pipe's content in a temporary file, because it is read twice: to check, and to answer."""
    kept: IO[bytes] = tempfile.TemporaryFile(prefix="trtprune-")  # noqa: SIM115
    size, most = 0, MAX_PIPE_BYTES if max_bytes is None else max_bytes
    while part := pipe.read(1 << 20):
        size += len(part)
        if size > most:
            kept.close()
            raise OSError(0, f"larger than {most} bytes")
        kept.write(part)
    return kept


def _parse(line: bytes, number: int) -> dict[str, Any] | str:
    try:
        entry = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        if b"\\u" in line:
            json.dumps(entry, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    except UnicodeEncodeError:
        return "half a surrogate pair: not Unicode text"
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        return "not JSON: nested too deeply"
    except ValueError as error:  # a number of more than 4,300 digits
        return f"not JSON: {error}"
    return entry if isinstance(entry, dict) else "not a JSON object"


def prompt_of(entry: dict[str, Any]) -> str | None:
    """The question, under either of its names; None if there is none, or both are given."""
    found = {value for value in (entry.get("prompt"), entry.get("question")) if isinstance(value, str)}
    return found.pop() if len(found) == 1 else None
