"""Checks of the output of a build: the place must be empty, or an engine directory without other files.

trtprune never deletes others' files: only files in its own ``config.json`` are replaced.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from trtprune.compiler.staging import LEFT_INSIDE, check_writable, recover
from trtprune.engine_dir import CONFIG_NAME
from trtprune.engine_dir.reading import MAX_CONFIG_BYTES
from trtprune.errors import BuildError
from trtprune.files.reading import parse_object, read_bounded

__all__ = ["check_source", "find_target", "old_files"]

ELSEWHERE = "choose another -o/--output"
DIGEST = re.compile(r"[0-9a-f]{64}")
# A folder that file systems put into each of their roots.
OF_THE_DISK = ("lost+found",)


def find_target(output: str | os.PathLike[str], force: bool) -> Path:
    """The directory of ``-o``, with symbolic links resolved and all checks that need no model.

    Raises:
        BuildError: if it cannot be written, or has files that must not be replaced.
    """
    given = os.fspath(output)
    if "\0" in given:
        raise BuildError(f"-o {given!r}: is no path", hint=ELSEWHERE)
    try:
        target = Path(os.path.realpath(given))
    except FileNotFoundError:  # the current folder
        raise BuildError(
            f"-o {given}: the current folder does not exist any more",
            hint="cd to one that does, or give an absolute path",
        ) from None
    # A link that remains after resolution is part of a circle.
    if os.path.islink(target):
        raise BuildError(f"-o {given}: is a circle of links", hint=ELSEWHERE)
    check_writable(target)
    recover(target)
    if not _entries(target):
        return target
    if _own_config(target) is None:
        raise BuildError(
            f"{target}: exists and is not an engine directory",
            hint="choose another -o; trtprune never deletes others' files",
        )
    if force:
        old_files(target)
    return target


def old_files(target: Path) -> list[str]:
    """The files of the engine directory at ``target``, relative to it; empty without one.

    Raises:
        BuildError: if there are others, or it is not an engine directory.
    """
    if not _entries(target):
        return []
    config = _own_config(target)
    if config is None:
        raise BuildError(f"{target}: is not an engine directory any more", hint=ELSEWHERE)
    listed = {CONFIG_NAME, *config["files"]}
    found = sorted(
        path.relative_to(target).as_posix()
        for path in _walk(target)
        if not LEFT_INSIDE.fullmatch(path.relative_to(target).parts[0])
    )
    others = [name for name in found if name not in listed]
    if others:
        what = "a file that is" if len(others) == 1 else f"{len(others)} files that are"
        named = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
        raise BuildError(
            f"{target}: holds {what} not of the build: {named}",
            hint="move them elsewhere, or choose another -o; trtprune never deletes others' files",
        )
    return found


def check_source(target: Path, source: Path) -> None:
    """Refuses to build from an engine directory into a folder inside it.

    Raises:
        BuildError: if ``target`` lies inside ``source``.
    """
    source = source.resolve()
    if target != source and target.is_relative_to(source):
        raise BuildError(
            f"{target}: lies inside the engine directory it is built from, {source}", hint="choose another -o"
        )


def _entries(target: Path) -> list[str]:
    if not target.is_dir():
        return []
    try:
        names = os.listdir(target)
    except OSError as error:
        raise BuildError(f"{target}: cannot be read: {error.strerror}", hint=ELSEWHERE) from None
    return [name for name in names if not LEFT_INSIDE.fullmatch(name) and name not in OF_THE_DISK]


def _walk(target: Path) -> list[Path]:
    """All paths except folders; links are not followed."""
    found = []
    for folder, folders, files in os.walk(target):
        if Path(folder) == target:
            folders[:] = [name for name in folders if name not in OF_THE_DISK]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [Path(folder) / name for name in (*files, *links)]
    return found


def _own_config(target: Path) -> dict[str, Any] | None:
    """``config.json`` of an engine directory of any version; None if it is not one."""
    try:
        text = read_bounded(target / CONFIG_NAME, MAX_CONFIG_BYTES)
        data = parse_object(text) if text is not None else {}
    except (OSError, ValueError):
        return None
    schema, digest, files = data.get("schema_version"), data.get("build_digest"), data.get("files")
    ours = isinstance(schema, int) and isinstance(digest, str) and DIGEST.fullmatch(digest) and isinstance(files, dict)
    return data if ours else None
