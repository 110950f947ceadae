"""Graphs as ONNX Runtime has optimised and packed them for this machine, in the user's own cache.

Opening a graph costs ONNX Runtime a rewriting of the graph and a copy of all weights in the order of its kernels.  Both
can be saved: a saved graph opens in a fraction of the time, and its weights are mapped from the file, shared by all
processes, in place of private memory.

What is saved holds only for the same graph, weights, ONNX Runtime and processor, so all of them are in its key.  It
lies in the user's cache and never in an engine directory: the kernels trust what they are given, and directories come
from others.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trtprune._version import __version__
from trtprune.files.cache import cache_root
from trtprune.files.reading import SMALL_JSON_BYTES, parse_object, read_bounded

__all__ = ["DATA", "GRAPH", "Entry", "SavedGraph", "entries", "find", "identify", "new_entry", "remove", "shrink"]

FORMAT = "1"
"""A part of every key: raise it whenever the same graph would be saved in another form."""
GRAPH, DATA, FACTS = "graph.onnx", "graph.onnx.data", "entry.json"
WEIGHTS = "weights"
STAGING = ".staging-"
DAY = 86400.0
logger = logging.getLogger("trtprune")


@dataclass(frozen=True)
class SavedGraph:
    """The identity of a graph in the cache.

    Attributes:
        onnx: The graph's own file.
        place: Key of that path.
        content: Key of the graph's bytes, its weight files, ONNX Runtime, the processor and the settings.
    """

    onnx: Path
    place: str
    content: str

    @property
    def name(self) -> str:
        """The entry's folder in the cache."""
        return f"{self.place}-{self.content}"


@dataclass(frozen=True)
class Entry:
    """A saved graph on disk.

    Attributes:
        path: Its folder.
        onnx: The graph's own file, as noted when it was saved.
        size: Its bytes on disk.
        used: The time of its last use, in seconds since the epoch.
    """

    path: Path
    onnx: str
    size: int
    used: float


def identify(graph: bytes, onnx: Path, version: str, settings: Mapping[str, str]) -> SavedGraph:
    """The identity of a graph for this machine.

    Args:
        graph: The serialised graph.
        onnx: Its file; its weights are those of the folder ``weights`` beside it.
        version: ONNX Runtime's version.
        settings: Settings that change what ONNX Runtime makes of the graph.

    Raises:
        OSError: if the weights cannot be listed.
    """
    path = onnx.resolve()
    lines = [f"format {FORMAT}", f"trtprune {__version__}", f"onnxruntime {version}", f"processor {_processor()}"]
    lines += [f"setting {name}={value}" for name, value in sorted(settings.items())]
    lines.append(f"graph {hashlib.sha256(graph).hexdigest()}")
    folder = path.parent / WEIGHTS
    # Of a weight file what build tools compare: hashing gigabytes would take longer than opening the graph.
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        facts = file.stat()
        lines.append(f"weights {file.resolve()} {facts.st_size} {facts.st_mtime_ns}")
    return SavedGraph(path, _place(path), _digest("\n".join(lines))[:32])


def find(onnx: Path, identify: Callable[[], SavedGraph]) -> Path | None:
    """The saved form of a graph's file, or None.

    An entry that another version or machine saved, or that belongs to other weights, is never used; a warning says so.

    Args:
        onnx: The graph's own file.
        identify: Its identity; asked for only where there is an entry of the file.

    Raises:
        OSError: from ``identify``.
    """
    root = _folder()
    if not any(root.glob(f"{_place(onnx.resolve())}-*")) or not _is_private(root):
        return None
    entry = _read(root / identify().name)
    if entry is None:
        logger.warning(
            "%s: prepacked by another version or machine, or with other weights: opened without; "
            "`trtprune prepack` renews it",
            onnx,
        )
        return None
    _touch(entry)
    return entry.path / GRAPH


def entries() -> list[Entry]:
    """The entries of the cache, the least recently used first."""
    root = _folder()
    if not root.is_dir():
        return []
    found = (_read(path) for path in root.iterdir())
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.used)


@contextlib.contextmanager
def new_entry(saved: SavedGraph) -> Iterator[Path]:
    """A folder to write :data:`GRAPH` and :data:`DATA` into, the entry of ``saved`` once the block ends.

    Older entries of the same file are removed then.  On an exception nothing is left.

    Raises:
        OSError: if the cache cannot be written.
    """
    root = _folder()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(root):
        raise PermissionError(0, "others can write to it", str(root))
    _remove_leftovers(root)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=root))
    try:
        yield staging
        sizes = {file.name: file.stat().st_size for file in staging.iterdir()}
        (staging / FACTS).write_text(json.dumps({"onnx": str(saved.onnx), "files": sizes}), encoding="utf-8")
        remove(saved.onnx)
        with contextlib.suppress(FileExistsError):  # another process saved the same in the meantime
            staging.rename(root / saved.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def remove(onnx: Path) -> int:
    """Removes the entries of a graph's file, of every machine and version; returns their bytes."""
    place = _place(onnx.resolve())
    return sum(_remove(path) for path in _folder().glob(f"{place}-*"))


def shrink(limit: int, keep: Collection[Path]) -> list[Entry]:
    """Removes the least recently used entries until the cache has at most ``limit`` bytes; returns the removed.

    Args:
        limit: In bytes.
        keep: Graph files whose entries stay.
    """
    have = entries()
    kept = {str(path.resolve()) for path in keep}
    total, removed = sum(entry.size for entry in have), []
    for entry in have:
        if total > limit and entry.onnx not in kept:
            _remove(entry.path)
            total -= entry.size
            removed.append(entry)
    return removed


# -- files


def _folder() -> Path:
    return cache_root() / "sessions"


def _place(onnx: Path) -> str:
    return _digest(str(onnx))[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _is_private(root: Path) -> bool:
    """Whether only this user writes there; the kernels trust what they read."""
    if os.name != "posix":
        return True
    facts = root.stat()
    private = facts.st_uid == os.getuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not private:
        logger.warning("%s: others can write to it, so no prepacked graph is used; chmod 700 makes it private", root)
    return private


def _read(path: Path) -> Entry | None:
    """The entry of a folder; None if it is none, or incomplete."""
    if path.name.startswith(STAGING):
        return None
    try:
        text = read_bounded(path / FACTS, SMALL_JSON_BYTES)
        if text is None:
            return None
        facts = parse_object(text)
        sizes = {str(name): int(size) for name, size in facts["files"].items()}
        if GRAPH not in sizes or any((path / name).stat().st_size != size for name, size in sizes.items()):
            return None
        return Entry(path, str(facts["onnx"]), sum(sizes.values()), (path / FACTS).stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _touch(entry: Entry) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written is still a cache
        os.utime(entry.path / FACTS)


def _remove(path: Path) -> int:
    size = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else 0
    shutil.rmtree(path, ignore_errors=True)
    return size


def _remove_leftovers(root: Path) -> None:
    """Removes what a killed process began more than a day ago."""
    for path in root.glob(f"{STAGING}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > DAY:
                shutil.rmtree(path, ignore_errors=True)


@functools.cache
def _processor() -> str:
    """What the choice of kernels depends on: the instruction set, as the system tells it."""
    facts = [platform.system(), platform.machine()]
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return " ".join([*facts, platform.processor()])
    first = dict(line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    names = {name.strip(): value.split() for name, value in first.items()}
    known = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU architecture", "CPU part", "flags", "Features")
    return " ".join([*facts, *(" ".join(sorted(names.get(name, ()))) for name in known)])
