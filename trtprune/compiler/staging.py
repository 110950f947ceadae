"""All-or-nothing directories: a lock, a staging directory, and one step that puts it in place.

Independent of models: it moves a finished directory into place, or leaves no trace.  If the target can be renamed,
staging is beside it and the two are exchanged at once.  A mount point, or a directory in an unwritable folder, cannot
be renamed: staging is then inside, and its files move into place one by one, ``config.json`` last.  A process that is
killed in between leaves a list of the remaining steps, and the next process completes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from trtprune.errors import BuildError
from trtprune.files.reading import parse_object

try:
    import fcntl
except ImportError:  # Windows: no advisory locks here; the rename at the end is still atomic.
    fcntl = None  # type: ignore[assignment]

__all__ = ["LAST", "LEFT_INSIDE", "check_writable", "recover", "replacing_directory"]

LEFT_INSIDE = re.compile(r"\.trtprune-staging-\w{8}|\.trtprune\.lock")
"""Names of this module's temporary entries in a target."""
LAST = "config.json"
"""The file that identifies a directory as ours; it moves last."""
_TODO = ".todo.json"
_RANDOM = re.compile(r"[a-z0-9_]{8}")
_ELSEWHERE = "choose another -o/--output"


@contextlib.contextmanager
def replacing_directory(target: Path, old_files: Callable[[], Iterable[str]] = tuple) -> Iterator[Path]:
    """Yields an empty staging directory that becomes ``target`` when the block ends without an exception.

    An older ``target`` is replaced as a whole; on any exception, Ctrl-C included, it is untouched and the staging
    directory is removed. :func:`recover` cleans up after a killed process.

    Args:
        target: An absolute path without symbolic links.
        old_files: Called just before an older ``target`` is replaced; returns its removable files, relative to it.  An
            exception in it ends the replacement.

    Raises:
        BuildError: another process is building ``target``, or the disk is full or not writable.
    """
    staging: Path | None = None
    try:
        with _translated(target, every=True):
            target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target), _translated(target):
            _tidy(target)
            staging = _new_staging(target)
            yield staging
            with _translated(target, every=True):
                _put_in_place(staging, target, old_files)
            staging = None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def check_writable(target: Path) -> None:
    """Refuses a target that cannot be written, before any work; leaves nothing behind.

    Raises:
        BuildError: naming the obstacle.
    """
    with _translated(target, every=True):
        if target.exists() and not target.is_dir():
            raise BuildError(f"{target}: exists and is not a directory", hint=_ELSEWHERE)
        folder = target if _in_place(target) else target.parent
        while not folder.exists():
            folder = folder.parent
        probe = tempfile.mkdtemp(
            prefix=".trtprune-staging-" if folder == target else f".{target.name}.staging-", dir=folder
        )
        with contextlib.suppress(FileNotFoundError):  # another build of the target has cleaned up
            os.rmdir(probe)


def recover(target: Path) -> None:
    """Completes the work of a process that was killed while it moved a directory into place.

    Raises:
        BuildError: if the target cannot be written.
    """
    if not any(True for _ in _leftovers(target)):
        return
    with contextlib.suppress(_Busy), _locked(target), _translated(target, every=True):
        _tidy(target)


# -- staging


def _new_staging(target: Path) -> Path:
    if _in_place(target):
        staging = Path(tempfile.mkdtemp(prefix=".trtprune-staging-", dir=target))
    else:
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.staging-", dir=target.parent))
    # mkdtemp makes it private; an engine directory has the permissions of the user's umask.
    umask = os.umask(0)
    os.umask(umask)
    staging.chmod(0o777 & ~umask)
    return staging


def _leftovers(target: Path) -> Iterator[Path]:
    """Directories of killed processes, inside the target and beside it."""
    beside = re.compile(re.escape(f".{target.name}.staging-") + f"(old-)?{_RANDOM.pattern}")
    for folder, pattern in ((target, LEFT_INSIDE), (target.parent, beside)):
        with contextlib.suppress(OSError):
            yield from (path for path in list(folder.iterdir()) if pattern.fullmatch(path.name) and path.is_dir())


def _tidy(target: Path) -> None:
    for path in _leftovers(target):
        if (path / _TODO).is_file():
            _finish(path, target)
        elif (path / "old").is_dir() and not target.exists():
            (path / "old").rename(target)
        shutil.rmtree(path, ignore_errors=True)


# -- into place


def _put_in_place(staging: Path, target: Path, old_files: Callable[[], Iterable[str]]) -> None:
    old = list(old_files()) if target.exists() else []
    if staging.parent == target:
        _move_files(staging, target, old)
        return
    try:
        _swap(staging, target)
    except OSError as error:
        # An undetected mount point, or a directory of a lower layer of an overlay.
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        _move_files(staging, target, old)


def _swap(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    if _exchange(staging, target):
        shutil.rmtree(staging, ignore_errors=True)
        return
    # Two renames: after a kill between them the next process finds the old directory (_tidy).
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.staging-old-", dir=target.parent))
    try:
        target.rename(old / "old")
        try:
            staging.rename(target)
        except BaseException:
            (old / "old").rename(target)
            raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, two: Path) -> bool:
    """Exchanges two directories in one step; False if the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(one), here, os.fsencode(two), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number))


def _move_files(staging: Path, target: Path, old: Iterable[str]) -> None:
    """Moves the files of ``staging`` into ``target`` and removes those of ``old`` that have no successor."""
    new = set(_files(staging))
    todo = {"remove": sorted(name for name in old if name not in new)}
    (staging / f"{_TODO}.part").write_text(json.dumps(todo), encoding="utf-8")
    (staging / f"{_TODO}.part").rename(staging / _TODO)
    _finish(staging, target)
    shutil.rmtree(staging, ignore_errors=True)


def _finish(staging: Path, target: Path) -> None:
    """The remaining steps of :func:`_move_files`, from its beginning or from its interruption."""
    todo = parse_object((staging / _TODO).read_bytes())
    for name in sorted(_files(staging), key=lambda name: (name == LAST, name)):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, target / name)
    for name in todo["remove"]:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            continue
        (target / path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            os.rmdir((target / path).parent)


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in (_TODO, f"{_TODO}.part"):
            yield path.relative_to(folder).as_posix()


def _in_place(target: Path) -> bool:
    return target.is_dir() and (_is_mount(target) or not os.access(target.parent, os.W_OK))


def _is_mount(path: Path) -> bool:
    if os.path.ismount(path):
        return True
    try:  # a bind mount from the same disk
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    # Blanks and backslashes in a name are written as three octal digits.
    points = (re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), line.split()[4]) for line in lines)
    return os.fsencode(path) in points


# -- one at a time, and errors


class _Busy(BuildError):
    pass


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    path = target / ".trtprune.lock" if _in_place(target) else target.parent / f".{target.name}.lock"
    while True:
        with _translated(target, every=True):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise _Busy(
                f"{target}: another build is writing this directory", hint="wait for it, or choose another -o"
            ) from None
        # The previous holder unlinks the file at its end: a lock on an unlinked file is void, so take a new one.
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


@contextlib.contextmanager
def _translated(target: Path, *, every: bool = False) -> Iterator[None]:
    """Turns an OSError into one line; ``every``: of any kind, because only the target can be at fault."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free room or choose another -o/--output; nothing was left behind"
            raise BuildError(f"{target}: the disk is full", hint=hint) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG):
            raise BuildError(f"{target}: cannot be written: {error.strerror}", hint=_ELSEWHERE) from None
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP):
            raise BuildError(f"{target}: cannot be a directory: {error.strerror}", hint=_ELSEWHERE) from None
        if every:
            reason = error.strerror or str(error)
            raise BuildError(f"{target}: cannot be written: {reason}", hint=_ELSEWHERE) from None
        raise
