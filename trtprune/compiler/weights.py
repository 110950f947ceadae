"""The weight files of a build: shared with the checkpoint if possible, copied, or linked.

ONNX tools take weights from regular files below the graph's folder; ``onnx`` itself (1.21 and newer) refuses files with
several hard links.  A reflink is a separate file whose blocks are shared until one of the two is written to; only
some file systems have them (Btrfs, XFS, bcachefs).  A copy works everywhere, and a hard link takes no room.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from trtprune.errors import BuildError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["AUTO_COPY_BYTES", "WAYS", "check_way", "place_weights"]

WAYS = ("auto", "copy", "link")
AUTO_COPY_BYTES = 4_000_000_000
"""The largest total size in bytes that ``auto`` copies without reflinks."""
SPARE_BYTES = 64_000_000
"""Room that a copy leaves on the disk, in bytes."""
_FICLONE = 0x40049409


def check_way(how: str) -> None:
    """Raises BuildError if ``how`` is not one of :data:`WAYS`."""
    if how not in WAYS:
        raise BuildError(f"--weights {how}: unknown", hint="auto, copy or link")


def place_weights(sources: Mapping[str, Path], folder: Path, how: str) -> str:
    """Puts weight files into a folder.

    Args:
        sources: Name in the folder → the file, which may be a symbolic link.
        folder: Folder on the file system of the build.
        how: ``"copy"`` (or reflinks), ``"link"`` (hard links, or copies where there can be none), or ``"auto"``:
            reflinks, else copies of up to :data:`AUTO_COPY_BYTES` in total if there is room, else hard links.

    Returns:
        The outcome in words; empty if there was nothing to do.

    Raises:
        BuildError: if copies are requested or needed, and do not fit on the disk.
    """
    check_way(how)
    real = {name: source.resolve() for name, source in sources.items()}
    total = sum(path.stat().st_size for path in real.values())
    if not real:
        return ""
    if how == "link":
        return _linked(real, folder, "")
    if _reflinked(real, folder):
        return "shared with the checkpoint until one of the two is written to (reflinks)"
    limit = f"{AUTO_COPY_BYTES / 1e9:.0f} GB"
    if how == "auto" and total > AUTO_COPY_BYTES:
        return _linked(real, folder, f"above {limit}")
    if how == "auto" and total + SPARE_BYTES > shutil.disk_usage(folder).free:
        return _linked(real, folder, "there is no room for copies")
    _copy(real, folder)
    return f"copied; above {limit} they are linked, with --weights link always" if how == "auto" else "copied"


def _linked(real: Mapping[str, Path], folder: Path, why: str) -> str:
    """Hard links if the file system allows; ``why`` is the reason against copies, if those would be better."""
    refused: dict[str, Path] = {}
    for name, path in real.items():
        try:
            os.link(path, folder / name)
        except OSError as error:
            # Another file system, links not supported or not permitted: a copy is equal. A full disk is an error.
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            refused[name] = path
    if not refused:
        told = "linked: a write into one reaches the checkpoint"
        return f"{told} ({why}; `onnx` refuses linked weights: --weights copy copies them)" if why else told
    if not _reflinked(refused, folder):
        _copy(refused, folder)
    return "copied, as hard links cannot be made here" if len(refused) == len(real) else "copied and linked"


def _copy(real: Mapping[str, Path], folder: Path) -> None:
    total, free = sum(path.stat().st_size for path in real.values()), shutil.disk_usage(folder).free
    if total + SPARE_BYTES > free:
        raise BuildError(
            f"{folder}: no room for {total / 1e6:,.0f} MB of weights, {free / 1e6:,.0f} MB are free",
            hint="free some, choose another -o/--output, or --weights link on the checkpoint's own disk",
        )
    for name, path in real.items():
        shutil.copyfile(path, folder / name)


def _reflinked(real: Mapping[str, Path], folder: Path) -> bool:
    """Whether all files were cloned; otherwise none is left."""
    done: list[Path] = []
    for name, path in real.items():
        if not _clone(path, folder / name):
            for made in done:
                made.unlink()
            return False
        done.append(folder / name)
    return True


def _clone(source: Path, target: Path) -> bool:
    if fcntl is None or not hasattr(fcntl, "ioctl"):
        return False
    try:
        with source.open("rb") as read, target.open("xb") as write:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True
