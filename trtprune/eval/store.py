"""Answers on disk, one line each, so that hours of work survive any interruption.

Lines are only appended.  The first line identifies the questions and the build; a file with another one is refused.  An
incomplete last line after a crash is dropped when the file is opened again, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from trtprune.errors import InputError
from trtprune.files.reading import lock

__all__ = ["Key", "Record", "Store", "refuse_if_written"]

SCHEMA = 1
KIND = "trtprune eval answers"
SYNC_SECONDS = 5.0

Key = tuple[str, str, int, str]
"""Row id, method label, budget, control (empty for the question's own picture)."""


@dataclass(frozen=True)
class Record:
    """One answer.

    Attributes:
        id: Id of the row.
        method: Label of the variant.
        keep: The budget of the image.
        answer: The model's answer.
        score: The answer's mark, in [0, 1].
        kept: Visual tokens per decoder layer, on average over the layers.
        visual: Visual tokens of the image.
        finish: ``stop`` or ``length``.
        control: ``wrong`` or ``grey``, if the question was asked about another image; else empty.
    """

    id: str
    method: str
    keep: int
    answer: str
    score: float
    kept: float
    visual: int
    finish: str = "stop"
    control: str = ""

    @property
    def key(self) -> Key:
        """The key of the answered question."""
        return self.id, self.method, self.keep, self.control

    def to_json(self) -> dict[str, Any]:
        """The line; a control is named only if there is one."""
        line = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if not self.control:
            del line["control"]
        return line


class Store:
    """The answers in a file; a context manager that holds the file's lock.

    Args:
        path: The file; created if it does not exist.
        fingerprint: Facts that must be equal for answers to belong together; JSON values by name.
        force: Whether to discard the file's answers; a foreign file is refused all the same.
        beside: Further files of answers: read once, never written; another process may write them.  If several files
            answer a question, the first one counts, ``path`` before the others.

    Raises:
        InputError: if another process writes the file, a file belongs to other questions or cannot be read, or the file
            cannot be written.
    """

    def __init__(
        self, path: Path, fingerprint: Mapping[str, Any], *, force: bool = False, beside: Sequence[Path] = ()
    ) -> None:
        self.path = path
        self.fingerprint = dict(fingerprint)
        self.dropped = 0
        """Number of bytes of a dropped incomplete last line."""
        self._records: dict[Key, Record] = {}
        self._synced = time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}", hint="choose another -o") from None
        try:
            self._lock()
            self._open(force)
            for other in beside:
                self._read_beside(other)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, key: Key) -> bool:
        return key in self._records

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: Key) -> Record | None:
        """The answer to ``key``, if there is one."""
        return self._records.get(key)

    def records(self) -> list[Record]:
        """All answers, in their order of arrival."""
        return list(self._records.values())

    def add(self, record: Record) -> None:
        """Writes an answer; afterwards it survives the end of this process.

        Raises:
            ValueError: if the question has an answer already.
            InputError: if the disk is full.
        """
        if record.key in self._records:
            raise ValueError(f"{record.key} was answered before")
        self._write(record.to_json())
        self._records[record.key] = record
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()

    def close(self) -> None:
        """Writes everything to the disk and closes the file."""
        if self._file < 0:
            return
        try:
            self._sync()
        finally:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> None:
        if not lock(self._file):
            raise _written(self.path)

    def _open(self, force: bool) -> None:
        data = _all(self._file)
        if not data.startswith(KIND_LINE) and not KIND_LINE.startswith(data):
            raise InputError(f"{self.path}: is not a file of answers", hint="choose another -o")
        if force:
            os.ftruncate(self._file, 0)
        else:
            self._read(data)
        if os.fstat(self._file).st_size == 0:
            self._write({"kind": KIND, "schema": SCHEMA, "fingerprint": self.fingerprint})
            self._sync()

    def _read(self, data: bytes) -> None:
        """Reads the file's answers and removes an incomplete last line."""
        lines = _whole_lines(data)
        whole = sum(len(line) + 1 for line in lines)
        if len(lines) == 1 and self._differing(self.path, lines[0]):
            # From a run that failed before its first answer: nothing can be mixed up or lost.
            os.ftruncate(self._file, 0)
            return
        self._records = self._answers(self.path, lines)
        self.dropped = len(data) - whole
        if self.dropped:
            os.ftruncate(self._file, whole)

    def _read_beside(self, path: Path) -> None:
        try:
            lines = _whole_lines(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}", hint="choose another -o") from None
        if len(lines) > 1:
            self._records = self._answers(path, lines) | self._records

    def _answers(self, path: Path, lines: Sequence[bytes]) -> dict[Key, Record]:
        """The answers in a file's lines, if its first line fits."""
        found: dict[Key, Record] = {}
        if not lines:
            return found
        if names := self._differing(path, lines[0]):
            raise self._foreign(path, f"its answers were given with another {', '.join(names)}")
        for number, line in enumerate(lines[1:], 2):
            record = _record(_parse(line))
            if record is None:
                raise self._foreign(path, f"line {number} is damaged")
            if record.key in found:
                raise self._foreign(path, f"line {number} repeats the answer to {record.id!r}")
            found[record.key] = record
        return found

    def _differing(self, path: Path, line: bytes) -> list[str]:
        """The differing names of the fingerprint in a file's first line."""
        header = _parse(line)
        if not isinstance(header, dict):
            raise self._foreign(path, "line 1 is damaged")
        if header.get("schema") != SCHEMA:
            raise self._foreign(path, f"it is of schema {header.get('schema')}, this is {SCHEMA}")
        theirs = header.get("fingerprint")
        theirs = theirs if isinstance(theirs, dict) else {}
        ours = json.loads(json.dumps(self.fingerprint))
        return sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))

    def _foreign(self, path: Path, why: str) -> InputError:
        way = "--force to start anew there" if path == self.path else "remove that file"
        return InputError(f"{path}: {why}", hint=f"choose another -o, or {way}")

    def _write(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            # One call per line: a killed process leaves whole lines, and at most one incomplete one.
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written: {error.strerror}", hint="what was answered is kept; go on later"
            ) from None

    def _sync(self) -> None:
        # Some file systems cannot sync; the kernel has the answers in any case.
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        self._synced = time.monotonic()


KIND_LINE = json.dumps({"kind": KIND})[:-1].encode()
"""The beginning of a file of answers."""


def refuse_if_written(path: Path) -> None:
    """Raises :class:`InputError` if another process writes answers to the file."""
    try:
        # Network file systems lock a file exclusively only if it is open for writing.
        file = os.open(path, os.O_RDWR)
    except OSError:
        return
    try:
        if not lock(file):
            raise _written(path)
    finally:
        os.close(file)


def _written(path: Path) -> InputError:
    return InputError(f"{path}: another process is writing answers there", hint="wait for it, or choose another -o")


def _all(file: int) -> bytes:
    """The whole file; an answer has some hundred bytes, so even a million of them fit in memory."""
    parts, place = [], 0
    while part := os.pread(file, 1 << 24, place):
        parts.append(part)
        place += len(part)
    return b"".join(parts)


def _whole_lines(data: bytes) -> list[bytes]:
    """The lines without their ends, and without a last one that is incomplete or being written."""
    return data.split(b"\n")[:-1]


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _record(line: Any) -> Record | None:
    """The answer in a line; None without one."""
    if not isinstance(line, dict):
        return None
    try:
        record = Record(**line)
    except TypeError:
        return None
    texts = (record.id, record.method, record.answer, record.finish, record.control)
    numbers = (record.keep, record.visual, record.score, record.kept)
    if not all(isinstance(text, str) for text in texts):
        return None
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return None
    return record
