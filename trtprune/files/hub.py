"""A repository on the Hugging Face hub: its files in the local cache, and each failure as one clear line.

The transfer itself is ``huggingface_hub``'s: it honours ``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE`` and the
logged-in token, keeps every finished file, and continues a file whose connection is cut where it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtprune.arguments import arg
from trtprune.errors import CheckpointError, TrtpruneError
from trtprune.reports.downloads import Transfer, size

__all__ = ["Repository"]


@dataclass(frozen=True)
class Repository:
    """A repository on the hub, and the cache of its files.

    Attributes:
        hub_id: ``owner/name``.
        revision: Branch, tag or commit; None: the default branch.
        cache: The hub's cache folder.
        token: Access token; None: the logged-in one.
        offline: Whether only cached files are used.
        ignore: Patterns of files that are never fetched.
        argument: The Python name of the argument that errors name; None: the id alone.
    """

    hub_id: str
    revision: str | None
    cache: Path
    token: str | None
    offline: bool
    ignore: Sequence[str] = ()
    argument: str | None = None

    @classmethod
    def open(
        cls,
        hub_id: str,
        revision: str | None = None,
        *,
        cache: str | os.PathLike[str] | None = None,
        token: str | None = None,
        offline: bool | None = None,
        ignore: Sequence[str] = (),
        argument: str | None = None,
    ) -> Repository:
        """A repository; the hub's environment variables decide for arguments that are None."""
        from huggingface_hub import constants

        offline = bool(constants.HF_HUB_OFFLINE) if offline is None else offline
        return cls(hub_id, revision, Path(cache or constants.HF_HUB_CACHE), token, offline, ignore, argument)

    @property
    def name(self) -> str:
        """``owner/name`` or ``owner/name@revision``."""
        return f"{self.hub_id}@{self.revision}" if self.revision else self.hub_id

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """A block whose failures become one line and a hint.

        Raises:
            CheckpointError: for every failure of the transfer; typed errors pass.
        """
        from huggingface_hub import constants

        try:
            with warnings.catch_warnings():
                # "Not enough free disk space": the failing write has its own error, with our hint.
                warnings.simplefilter("ignore")
                yield
        except TrtpruneError:
            raise
        except Exception as error:
            raise _explain(error, self.name, self.offline, constants.ENDPOINT, self.cache, self.argument) from error

    def fetch(self, allow: Sequence[str], revision: str | None = None, transfer: Transfer | None = None) -> Path:
        """The directory with the files of these patterns, at ``revision`` or else at the repository's own."""
        from huggingface_hub import snapshot_download

        online: dict[str, Any] = {"local_files_only": True} if self.offline else {"tqdm_class": _meter(transfer)}
        path = snapshot_download(
            self.hub_id,
            revision=revision or self.revision,
            cache_dir=self.cache,
            token=self.token,
            allow_patterns=list(allow),
            ignore_patterns=list(self.ignore),
            library_name="trtprune",
            max_workers=4,
            **online,
        )
        return Path(path)

    def sizes(self, commit: str) -> dict[str, int] | None:
        """Bytes by name of all files of the repository, 0 if unknown; None without the hub's answer."""
        from huggingface_hub import HfApi

        if self.offline:
            return None
        try:
            info = HfApi(token=self.token).model_info(self.hub_id, revision=commit, files_metadata=True)
        except Exception:
            # Only for earlier errors and better figures: with everything in the cache the hub is not needed.
            return None
        return {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}

    def missing(self, sizes: Mapping[str, int], commit: str | None, patterns: Sequence[str]) -> dict[str, int]:
        """Bytes by name of the files of these patterns that are not in the cache yet.

        Raises:
            CheckpointError: if the disk has no room for them.
        """
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.utils import filter_repo_objects

        names = filter_repo_objects(sizes, allow_patterns=list(patterns), ignore_patterns=list(self.ignore))
        found = {
            name: sizes[name]
            for name in names
            if not isinstance(try_to_load_from_cache(self.hub_id, name, self.cache, commit), str)
        }
        with contextlib.suppress(OSError):  # no folder yet, or no answer from the file system
            needed, free = sum(found.values()) - self._begun(), shutil.disk_usage(self.cache).free
            if needed > free:
                raise CheckpointError(
                    f"{self.hub_id}: its weights take {size(needed)} more, {self.cache} has {size(free)} left",
                    hint="free some space, or set HF_HOME to a larger disk",
                )
        return found

    def _begun(self) -> int:
        """Bytes of files whose transfer was cut, and will continue."""
        blobs = self.cache / f"models--{self.hub_id.replace('/', '--')}" / "blobs"
        return sum(path.stat().st_size for path in blobs.glob("*.incomplete"))


def _meter(transfer: Transfer | None) -> type:
    """A progress bar class for huggingface_hub that counts into ``transfer`` instead of drawing."""
    from huggingface_hub.utils import tqdm

    known = transfer is not None and transfer.total is not None

    class Meter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            name = str(kwargs.get("name") or "")
            self._counts = kwargs.get("unit") == "B" and not name.endswith(".transfer")
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)
            self.total = kwargs.get("total")

        def update(self, n: float | None = 1) -> None:
            if transfer is None or not self._counts:
                return
            if not known:  # the sum of the files that have begun
                transfer.total = self.total or None
            transfer.advance(int(n or 0))

    return Meter


def _explain(
    error: Exception, where: str, offline: bool, endpoint: str, cache: Any, argument: str | None = None
) -> CheckpointError:
    """The one line for a failure.  Order matters: the hub's exceptions inherit from each other."""
    from huggingface_hub import errors

    def say(message: str, hint: str) -> CheckpointError:
        return CheckpointError(f"{arg(argument, where) if argument else where}: {message}", hint=hint)

    manual = f"or download the directory elsewhere and give its path{f' to {arg(argument)}' if argument else ''}"

    chain = list(_chain(error))
    full = next((e for e in chain if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)), None)
    if full is not None:
        return say(f"the disk is full ({cache})", "free some space, or set HF_HOME to a larger disk")
    if any(isinstance(e, errors.GatedRepoError) for e in chain):
        return say(
            "access is restricted by its owner",
            f"ask for access at {endpoint}/{where.partition('@')[0]}, then log in: hf auth login (or set HF_TOKEN)",
        )
    if any(isinstance(e, errors.RepositoryNotFoundError) for e in chain):
        return say(
            f"no such directory, and not found on {endpoint} (or private)",
            "check the spelling; for a private model log in: hf auth login (or set HF_TOKEN)",
        )
    if any(isinstance(e, errors.RevisionNotFoundError) for e in chain):
        how = f"with {arg('revision')}" if argument else "behind the @"
        return say("no such revision on the hub", f"give a branch, a tag or a full commit id {how}")
    if any(isinstance(e, errors.HFValidationError) for e in chain):
        return say("not a valid hub id", "a hub id is owner/name")
    # Not every release of huggingface_hub has it.
    incomplete = getattr(errors, "IncompleteSnapshotError", None)
    partial = incomplete is not None and any(isinstance(e, incomplete) for e in chain)
    absent = offline and any(isinstance(e, errors.LocalEntryNotFoundError) for e in chain)
    if absent or (partial and offline) or any(isinstance(e, errors.OfflineModeIsEnabled) for e in chain):
        cached = "only a part of it is in the cache" if partial else "not in the cache"
        return say(f"offline mode is on and {cached} ({cache})", f"unset HF_HUB_OFFLINE, {manual}")
    status = next((s for e in chain if (s := getattr(getattr(e, "response", None), "status_code", None))), None)
    if status == 401:
        return say(f"{endpoint} refused access (401)", "log in: hf auth login (or set HF_TOKEN)")
    if status == 403:
        return say(f"{endpoint} denied access (403)", "the token lacks the permission to read this model")
    if status is not None and status >= 400:
        return say(f"{endpoint} answered with HTTP {status}", f"try again later, {manual}")
    if any(_is_network(e) for e in chain):
        return say(f"cannot reach {endpoint}, and it is not in the cache", f"check the network, {manual}")
    reason = " ".join(f"{type(chain[-1]).__name__}: {chain[-1]}".split())[:300]
    if isinstance(chain[-1], PermissionError):
        return say(f"cannot write to the cache: {reason}", "set HF_HOME to a directory you may write to")
    return say(f"download failed: {reason}", f"run the command again, finished files are kept; {manual}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_network(error: BaseException) -> bool:
    # httpx, httpx2 or requests, by release of huggingface_hub: recognised by module, as none is our dependency.
    library = type(error).__module__.partition(".")[0]
    names = {base.__name__ for base in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or (
        library in ("httpx", "httpx2", "httpcore", "requests", "urllib3")
        and bool(names & {"TransportError", "ConnectionError", "Timeout", "HTTPError", "NetworkError"})
    )
