"""The answers to a request file on disk, one line each in its order, so that hours of work survive any interruption.

Lines are only appended.  Each line identifies its settings and build (``run``), so that answers of others are never
mixed in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trtprune.errors import InputError
from trtprune.files.json_lines import Entry, JsonLines
from trtprune.files.reading import lock

__all__ = ["AnswerFile", "fingerprint"]

SYNC_SECONDS = 5.0
FORM = "a file that an earlier `trtprune run -o` wrote"


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that identify the facts behind the answers."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


class AnswerFile:
    """The file of ``-o``; a context manager that holds its lock.

    Args:
        path: The file; created if it does not exist.
        run: The result of :func:`fingerprint`.
        resume: Whether to continue behind existing answers.
        force: Whether to discard existing answers.

    Raises:
        InputError: if it cannot be written, another process writes it, or it has other content.
    """

    def __init__(self, path: Path, run: str, *, resume: bool = False, force: bool = False) -> None:
        self.path, self._run = path, run
        self._synced = time.monotonic()
        self._lines: JsonLines | None = None
        self._known: Iterator[Entry] = iter(())
        self._made = not path.exists()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise InputError(f"-o {path}: cannot be written: {error.strerror}", hint="choose another -o") from None
        try:
            self._open(resume, force)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.__exit__()
        # Some file systems cannot sync; the kernel has the answers in any case.
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        empty = os.fstat(self._file).st_size == 0
        os.close(self._file)
        if empty and self._made:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def has(self, key: Any) -> bool:
        """Whether the next row, with the id ``key``, has an answer already.

        Raises:
            InputError: if the answer in its place belongs to another row.
        """
        known = next(self._known, None)
        if known is None:
            return False
        number, line = known
        if not isinstance(line, dict) or "id" not in line:
            raise InputError(f"{self.path}:{number}: is no answer", hint=f"-o is {FORM}; --force starts anew")
        if line["id"] != key:
            raise InputError(
                f"{self.path}:{number}: answers {line['id']!r:.100}, and the request in its place is {key!r:.100}",
                hint="the request file is another one, or was changed; --force starts anew",
            )
        if line.get("run") != self._run:
            raise InputError(
                f"{self.path}:{number}: was answered with other settings, or another build",
                hint="repeat the settings, choose another -o, or --force to start anew",
            )
        return True

    def add(self, answer: Mapping[str, Any]) -> None:
        """Writes a line; afterwards it survives the end of this process.

        Raises:
            InputError: if the disk is full.
        """
        text = json.dumps({**answer, "run": self._run}, ensure_ascii=False)
        data = text.encode("utf-8", "backslashreplace") + b"\n"
        try:
            # One call per line: a killed process leaves whole lines, and at most one incomplete one.
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            hint = "what was answered is kept; --resume goes on"
            raise InputError(f"-o {self.path}: cannot be written: {error.strerror}", hint=hint) from None
        if time.monotonic() - self._synced > SYNC_SECONDS:
            with contextlib.suppress(OSError):
                os.fsync(self._file)
            self._synced = time.monotonic()

    def _open(self, resume: bool, force: bool) -> None:
        if not lock(self._file):
            hint = "wait for it, or choose another -o"
            raise InputError(f"-o {self.path}: another process is writing answers there", hint=hint)
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            hint = "leave -o out and add --json for standard output"
            raise InputError(f"-o {self.path}: is no regular file", hint=hint)
        size = status.st_size
        if not size:
            return
        # A file with other content is never truncated or overwritten.
        start = os.pread(self._file, 6, 0)
        if not b'{"id":'.startswith(start):
            raise InputError(f"-o {self.path}: is not a file of answers", hint="choose another -o")
        if force:
            os.ftruncate(self._file, 0)
        elif resume:
            os.ftruncate(self._file, _whole_lines(self._file, size))
            self._lines = JsonLines(self.path, flag="-o", hint=FORM)
            self._known = iter(self._lines)
        else:
            raise InputError(
                f"-o {self.path}: holds answers already", hint="--resume goes on behind them, --force starts anew"
            )


def _whole_lines(file: int, size: int) -> int:
    """Number of bytes up to the end of the last complete line."""
    place = size
    while place > 0:
        start = max(0, place - (1 << 16))
        found = os.pread(file, place - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        place = start
    return 0
