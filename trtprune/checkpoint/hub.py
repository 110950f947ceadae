"""A checkpoint from the Hugging Face hub: its text files first, its weights last."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from trtprune.files.hub import Repository
from trtprune.reports.downloads import Progress

__all__ = ["IGNORE", "TEXTS", "WEIGHTS", "Look", "download"]

# All files but the weights: enough to judge a model.
TEXTS = ["*.json", "*.jinja"]
# Never *.bin or *.pt: pickles can run code when opened.
WEIGHTS = ["*.safetensors"]
# Sub-directories hold other formats, consolidated.safetensors a second copy of all weights in another layout.
IGNORE = ["*/*", "consolidated*.safetensors", "adapter_*", "*.fp16.safetensors", "*.bin", "*.pt", "*.pth"]
Look = Callable[[Path, "str | None", "Sequence[str] | None"], None]


def download(
    hub_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    offline: bool | None = None,
    progress: Callable[[str], None] | None = None,
    look: Look | None = None,
    argument: str = "model",
) -> tuple[Path, str | None]:
    """Downloads a hub repository's config, tokenizer and safetensors into the cache, the weights last.

    Args:
        hub_id: ``owner/name``.
        revision: Branch, tag or commit; the default branch otherwise.
        cache_dir: Folder of the cache; the hub's own default otherwise.
        token: Access token; the logged-in one otherwise.
        offline: Use only what is cached; ``None`` follows ``HF_HUB_OFFLINE``.
        progress: Receiver of lines and bars (:mod:`trtprune.reports.downloads`); by default bars in a terminal or
            notebook.
        look: Called with the directory, the commit and the names of all files of the repository (None if
            unknown) before the first byte of the weights is requested. An exception in it ends the download.
        argument: Name of ``hub_id`` in errors.

    Returns:
        The directory, and its commit.

    Raises:
        CheckpointError: one line and a hint for every failure.
    """
    repository = Repository.open(
        hub_id, revision, cache=cache_dir, token=token, offline=offline, ignore=IGNORE, argument=argument
    )
    say = Progress.of(progress)
    with repository.errors():
        if not repository.offline:
            say(f"{repository.name}: looking it up on the hub")
        path = repository.fetch(TEXTS)
        # snapshots/COMMIT is the cache's layout; anything else would not be a commit worth recording.
        commit = path.name if path.parent.name == "snapshots" else None
        sizes = repository.sizes(commit) if commit is not None else None
        if look is not None:
            look(path, commit, None if sizes is None else sorted(sizes))
        missing = repository.missing(sizes or {}, commit, WEIGHTS)
        with say.transfer(repository.name, sum(missing.values()) or None) as transfer:
            repository.fetch(WEIGHTS, commit, transfer)
    return path, commit
