"""Finding an engine directory: at a path, or in a repository on the Hugging Face hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable
from pathlib import Path

from trtprune.engine_dir.paths import CONFIG_NAME
from trtprune.engine_dir.reading import read_config
from trtprune.errors import CheckpointError, EngineDirError
from trtprune.files.hub import Repository
from trtprune.files.reading import SMALL_JSON_BYTES, parse_object, read_bounded
from trtprune.reports.downloads import Progress

__all__ = ["download_build", "find_engine_dir"]

# A text with a second slash, or with a dot or tilde in front, is a path.
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)


def find_engine_dir(given: str | os.PathLike[str]) -> Path:
    """The directory at a path, or else the downloaded one of ``owner/name[@revision]`` on the hub.

    An existing path is never looked for on the hub.  Only the files in the repository's ``config.json`` are fetched.

    Raises:
        EngineDirError: if there is neither, or the repository is not an engine directory.
    """
    path, text = Path(given), os.fspath(given)
    named = HUB_ID.fullmatch(text)
    if named is None or os.path.lexists(path):
        return path
    try:
        return download_build(named[1], revision=named[2])
    except CheckpointError as error:
        raise EngineDirError(error.marked_message, hint=error.marked_hint) from None


def download_build(hub_id: str, *, revision: str | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """Downloads an engine directory from the hub into the cache: the files in its ``config.json``.

    Args:
        hub_id: ``owner/name``.
        revision: Branch, tag or commit; the default branch otherwise.
        progress: A function of one line, or :class:`trtprune.reports.downloads.Progress`.

    Raises:
        CheckpointError: one line and a hint for every failure.
        EngineDirError: if the repository's ``config.json`` is not that of an engine directory.
    """
    repository, say = Repository.open(hub_id, revision), Progress.of(progress)
    with repository.errors():
        if not repository.offline:
            say(f"{repository.name}: no such directory here, looking it up on the hub")
        path = repository.fetch([CONFIG_NAME])
        _refuse_others(path / CONFIG_NAME, repository.name)
        files = [glob.escape(name) for name in read_config(path).files]
        commit = path.name if path.parent.name == "snapshots" else None
        sizes = repository.sizes(commit) if commit is not None else None
        missing = repository.missing(sizes or {}, commit, files)
        with say.transfer(repository.name, sum(missing.values()) or None) as transfer:
            repository.fetch(files, commit, transfer)
    return path


def _refuse_others(config: Path, where: str) -> None:
    """Refuses a repository with a model instead of a build, with a hint how to build it."""
    try:
        data = parse_object(read_bounded(config, SMALL_JSON_BYTES) or b"{}")
    except (OSError, ValueError):
        return  # larger than any checkpoint's; read_config reports the fault
    if "schema_version" not in data:
        raise CheckpointError(
            f"{where}: holds no engine directory" + (", but a checkpoint" if "model_type" in data else ""),
            hint=f"build one from it: trtprune build --model {where} -o OUT",
        )
