"""Reading files of unknown origin: regular files only, never more bytes than a limit, JSON that is one plain object.

Readers of checkpoints, engine directories and request files use these functions, so none of them waits on a pipe, reads
a device without end, or returns text that cannot be printed.  Failures are plain ``OSError`` and ``ValueError``: the
caller turns them into trtprune's errors and knows what the user can change.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from trtprune.errors import one_line

try:
    import fcntl
except ImportError:  # Windows: no advisory locks here.
    fcntl = None  # type: ignore[assignment]

__all__ = ["SMALL_JSON_BYTES", "lock", "open_regular", "parse_object", "read_bounded"]

SMALL_JSON_BYTES = 4_000_000
"""Limit of configs and token lists in bytes; a tokenizer_config.json with 6,000 added tokens has 1.2 MB."""


def open_regular(name: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """A file descriptor of a regular file; an opener for :func:`open`.

    Raises:
        OSError: with ``strerror`` set; "not a regular file" for pipes, devices and directories.
    """
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return descriptor


def read_bounded(path: Path, limit: int) -> bytes | None:
    """The bytes of a regular file, ``None`` if there is no such file.

    Args:
        path: The file; symbolic links are followed.
        limit: Largest size in bytes that is read.

    Raises:
        OSError: with ``strerror`` set: not a regular file, larger than the limit, or not readable.
    """
    try:
        with open(path, "rb", opener=open_regular) as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(0, "a symbolic link to nothing") from None
        return None
    if data is None:  # a file of /proc that would block its reader
        raise OSError(0, "gives no data")
    if len(data) > limit:
        raise OSError(0, f"larger than {limit} bytes")
    return data


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object in ``text``: UTF-8, without duplicate keys, and printable again.

    Raises:
        ValueError: in one line, for anything else.
    """
    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
        # A lone surrogate passes the parser and would fail in the first message that prints it.
        if b"\\u" in text:
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(one_line(str(error), 200)) from None
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return data


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"'{key[:100]}' occurs twice")
            seen.add(key)
    return data


def lock(file: int) -> bool:
    """Locks an open file until it is closed; False if another process has locked it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
