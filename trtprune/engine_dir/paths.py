"""Paths in ``config.json``: relative, and inside the engine directory."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from trtprune.errors import EngineDirError

__all__ = ["CONFIG_NAME", "inside"]

CONFIG_NAME = "config.json"


def inside(root: Path, relative: str) -> Path:
    """The path of the file ``relative`` in the engine directory ``root``.

    Raises:
        EngineDirError: if it leaves the directory, by its text or by a symbolic link, or is no path.
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
        bad = bad or not path.resolve().is_relative_to(root.resolve())
        path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, not encodable, a circle of links
        bad = True
    if bad:
        raise EngineDirError(
            f"{root / CONFIG_NAME}: path {relative!r:.200} leaves the engine directory or is no path",
            hint="build it again",
        )
    return path
