"""All-or-nothing directories: a lock, a staging directory beside the target, one rename at the end.

Knows nothing of models: it moves a finished directory into place, or leaves no trace.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trtprune.errors import BuildError

try:
    import fcntl
except ImportError:  # Windows: no advisory locks here; the rename at the end is still atomic.
    fcntl = None  # type: ignore[assignment]

__all__ = ["replacing_directory"]


@contextlib.contextmanager
def replacing_directory(target: Path) -> Iterator[Path]:
    """Yields an empty staging directory that becomes ``target`` when the block ends without an exception.

    An older ``target`` is replaced as a whole; on any exception, Ctrl-C included, it is untouched and the staging
    directory is removed. What a killed process left behind is removed by the next build of the same target.

    Raises:
        BuildError: another process is building ``target``, or the disk is full or not writable.
    """
    parent = target.parent
    staging: Path | None = None
    try:
        with _translated(target):
            parent.mkdir(parents=True, exist_ok=True)
        with _locked(parent / f".{target.name}.lock", target), _translated(target):
            for stale in parent.glob(f".{_glob_escape(target.name)}.staging-*"):
                shutil.rmtree(stale, ignore_errors=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.staging-", dir=parent))
            # mkdtemp makes it private; an engine directory gets what the user's umask gives any directory.
            umask = os.umask(0)
            os.umask(umask)
            staging.chmod(0o777 & ~umask)
            yield staging
            _swap(staging, target)
            staging = None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _translated(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BuildError(
                f"{target}: the disk is full", hint="free room or choose another -o/--output; nothing was left behind"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG):
            raise BuildError(f"{target}: cannot be written: {error.strerror}", hint="choose another -o") from None
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise BuildError(f"{target}: cannot be a directory: {error.strerror}", hint="choose another -o") from None
        raise


@contextlib.contextmanager
def _locked(path: Path, target: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    while True:
        with _translated(target):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise BuildError(
                f"{target}: another build is writing this directory", hint="wait for it, or choose another -o"
            ) from None
        # The holder before us unlinks the file when done: a lock on an unlinked file guards nothing, take a new one.
        try:
            if os.fstat(handle).st_ino == path.stat().st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _swap(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.staging-old-", dir=target.parent))
    target.rename(old / "old")
    try:
        staging.rename(target)
    except BaseException:
        (old / "old").rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _glob_escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
