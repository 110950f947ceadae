"""From a name to a checkpoint: a directory, an alias, a demo, or a repository on the hub.

checkpoint = resolve("llava-hf/llava-1.5-7b-hf")
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from trtprune.arguments import arg
from trtprune.checkpoint.aliases import ALIASES, DEMOS
from trtprune.checkpoint.checkpoint import Check, Checkpoint, open_checkpoint, read_config
from trtprune.checkpoint.shards import INDEX, SINGLE, file_names, no_config, no_weights
from trtprune.errors import CheckpointError

__all__ = ["resolve"]


def resolve(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    offline: bool | None = None,
    progress: Callable[[str], None] | None = None,
    aliases: Mapping[str, str] | None = None,
    check: Check | None = None,
    argument: str = "model",
) -> Checkpoint:
    """Finds a checkpoint, and downloads it if necessary.

    Args:
        model: A directory; else an alias; else ``"demo"`` or ``"demo-signs"``; else a hub id ``owner/name``.  Alias
            and hub id may carry ``@revision``.
        revision: Branch, tag or commit on the hub.
        cache_dir: Folder of downloads; the hub's own default otherwise (``HF_HOME``).
        token: Access token; the logged-in one otherwise.
        offline: Use only what is cached; ``None`` follows ``HF_HUB_OFFLINE``.
        progress: Receiver of a download's lines and bars (:mod:`trtprune.reports.downloads`); by default bars in a
            terminal or notebook.
        aliases: Short names to hub ids; those of :mod:`trtprune.checkpoint.aliases` by default.
        check: As in :func:`open_checkpoint`; for a model on the hub it is called before the weights are fetched.
        argument: Name of ``model`` in errors.

    Raises:
        CheckpointError: one line that names the fault, with a hint.
    """
    text = os.fspath(model)
    if not text.strip():
        raise CheckpointError(f"{arg(argument)} is empty", hint="a directory, an alias, a hub id, or demo")
    if "\0" in text or "\n" in text:
        raise CheckpointError(f"{arg(argument, text)}: not a name", hint="a directory, a hub id or an alias")
    if not isinstance(model, str) or _is_path(text):
        if revision is not None:
            raise CheckpointError(
                f"{arg('revision', revision)}: {text} is a directory, it has no revisions",
                hint=f"leave {arg('revision')} out",
            )
        return open_checkpoint(text, check=check)
    aliases = ALIASES if aliases is None else aliases
    name, at, tag = text.partition("@")
    if at and (not tag or revision not in (None, tag)):
        raise CheckpointError(f"{arg(argument, text)}: the revision is unclear", hint="write owner/name@revision")
    revision = tag if at else revision
    if name not in aliases and name in DEMOS:
        if revision is not None:
            raise CheckpointError(f"{arg(argument, name)} has no revisions", hint=f"leave {arg('revision')} out")
        from trtprune.demo.assemble import assemble

        return open_checkpoint(assemble(name=name, progress=progress), id=name, check=check)
    hub_id = _hub_id(text, name, aliases, argument)
    from trtprune.checkpoint.hub import download

    path, commit = download(
        hub_id,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        offline=offline,
        progress=progress,
        look=partial(_look, hub_id, arg(argument, text), check),
        argument=argument,
    )
    return open_checkpoint(path, id=hub_id, revision=commit)


def _hub_id(text: str, name: str, aliases: Mapping[str, str], argument: str) -> str:
    """The hub id of a name without its revision; raises CheckpointError for an invalid name."""
    hub_id = aliases.get(name, name)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", hub_id, flags=re.ASCII) is not None:
        return hub_id
    if "/" in name:
        raise CheckpointError(
            f"{arg(argument, text)}: no such directory, and not a hub id", hint="a hub id is owner/name[@revision]"
        )
    known = list(dict.fromkeys((*DEMOS, *aliases)))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise CheckpointError(
        f"{arg(argument, name)}: no such alias or directory",
        hint=f"{hint}known: {', '.join(known)}; or a directory, or a hub id owner/name",
    )


def _look(
    hub_id: str, where: str, check: Check | None, path: Path, commit: str | None, names: Sequence[str] | None
) -> None:
    """Checks the small files of a repository, and the names of the others.

    Args:
        hub_id: The repository.
        where: Its name in errors.
        check: As in :func:`resolve`.
        path: The folder with the small files.
        commit: The commit.
        names: All files of the repository; None: those in ``path``.
    """
    if "config.json" not in (file_names(path) if names is None else names):
        raise no_config(where, list(names or ()))
    lacking = names is not None and not {SINGLE, INDEX} & set(names)
    if check is not None:
        check(Checkpoint(path, read_config(path), {}, (), hub_id, commit, remote=not lacking))
    if lacking:
        raise no_weights(where, sorted(names or ()))


def _is_path(text: str) -> bool:
    # "owner/name" has a slash, too: it is a path only if it exists or begins like one.
    return text.startswith((".", "~", os.sep)) or os.path.exists(text) or text.count("/") > 1
