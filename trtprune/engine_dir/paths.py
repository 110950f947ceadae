"""Paths in ``config.json``: relative, and inside the engine directory."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from trtprune.errors import EngineDirError

__all__ = ["CONFIG_NAME", "hub_blobs", "inside"]

CONFIG_NAME = "config.json"


def inside(root: Path, relative: str) -> Path:
    """The path of the file ``relative`` in the engine directory ``root``.

    In the cache of the Hugging Face hub a directory, ``snapshots/COMMIT``, has links into the ``blobs`` of the same
    repository; their targets count as files of the directory.

    Raises:
        EngineDirError: if it leaves the directory, by its text or by a symbolic link, or is not a path.
    """
    pure = PurePosixPath(relative)
    bad = (
        not relative
        or pure.is_absolute()
        or ".." in pure.parts
        or "\\" in relative
        or "\0" in relative
        or re.match(r"^[A-Za-z]:", relative) is not None
    )
    path = root.joinpath(*pure.parts)
    try:
        # A symbolic link may lead outside even where the text of the path does not.
        real, base = path.resolve(), root.resolve()
        bad = bad or not (real.is_relative_to(base) or real.parent == hub_blobs(base))
        path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, not encodable, a circle of links
        bad = True
    if bad:
        raise EngineDirError(
            f"{root / CONFIG_NAME}: path {relative!r:.200} leaves the engine directory or is no path",
            hint="build it again",
        )
    return path


def hub_blobs(root: Path) -> Path | None:
    """The hub cache's folder with the files of ``root`` (resolved); None if ``root`` is not in such a cache."""
    repository = root.parent.parent
    if root.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return None
    blobs = repository / "blobs"
    return None if blobs.is_symlink() else blobs
