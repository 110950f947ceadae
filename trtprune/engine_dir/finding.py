"""Where an engine directory is: a path, or a repository on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from trtprune.errors import CheckpointError, EngineDirError

__all__ = ["find_engine_dir"]

# A second slash, or a dot or tilde in front, makes a path of it.
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)


def find_engine_dir(given: str | os.PathLike[str]) -> Path:
    """The directory that a path names, or else one that ``owner/name[@revision]`` names on the hub, downloaded.

    What exists as a path is never looked for on the hub.  Of a repository, the files that its ``config.json`` lists are
    fetched, and no others.

    Raises:
        EngineDirError: if there is neither, or the repository holds no engine directory.
    """
    path, text = Path(given), os.fspath(given)
    named = HUB_ID.fullmatch(text)
    if named is None or os.path.lexists(path):
        return path
    from trtprune.checkpoint.hub import download_build

    try:
        return download_build(named[1], revision=named[2])
    except CheckpointError as error:
        raise EngineDirError(error.marked_message, hint=error.marked_hint) from None
