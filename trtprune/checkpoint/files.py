"""Files of a checkpoint directory: their allowed names, the allowed targets of links, and size limits.

A checkpoint is untrusted, and its text files are copied into every build of it. A link out of the directory would copy
its target, possibly the user's own files. Only the Hugging Face cache needs links, and those lead into the ``blobs``
beside its snapshots.

Weight files may be links to anywhere: people keep shards on other disks. They must be valid safetensors files.
"""

from __future__ import annotations

import re
from pathlib import Path

from trtprune.errors import CheckpointError, shown
from trtprune.files.reading import read_bounded

__all__ = ["plain_name", "read_text", "text_path", "weight_path"]

LONGEST_NAME = 255
"""The longest file name in bytes, as file systems allow it."""


def plain_name(name: str, root: Path) -> str:
    """``name``, if it is a plain file name, without a folder.

    Raises:
        CheckpointError: for a path, a drive, or an impossible file name.
    """
    bad = not name or name in (".", "..") or any(c in name for c in "/\\\0") or re.match(r"^[A-Za-z]:", name)
    if bad or len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        raise CheckpointError(
            f"{root}: file name {shown(name)} leaves the checkpoint", hint="a plain file name is wanted"
        )
    return name


def text_path(root: Path, name: str) -> Path:
    """The path of a text file of the checkpoint: in ``root``, or in the blobs of the cache that contains ``root``.

    Raises:
        CheckpointError: if it is a link that leads elsewhere.
    """
    path = root / plain_name(name, root)
    if not path.is_symlink():
        return path
    base, real = root.resolve(), _resolved(path)
    within = [base]
    if base.parent.name == "snapshots":
        within.append(base.parent.parent / "blobs")
    if not any(real.is_relative_to(folder) for folder in within):
        raise CheckpointError(
            f"{path}: a symbolic link that leaves the checkpoint, to {real}",
            hint="if the file is meant, copy it into the checkpoint in place of the link",
        )
    return real


def weight_path(path: Path) -> Path:
    """The regular file behind a weight file, wherever a link leads.

    Raises:
        CheckpointError: if there is no such file.
    """
    real = _resolved(path)
    if not real.is_file():
        what = "a symbolic link to nothing" if path.is_symlink() and not real.exists() else "missing"
        raise CheckpointError(
            f"{path}: {'not a regular file' if real.exists() else what}", hint="download the checkpoint again"
        )
    return real


def read_text(root: Path, name: str, limit: int) -> bytes | None:
    """The bytes of a text file of the checkpoint, ``None`` if there is no such file.

    Raises:
        CheckpointError: for a file of more than ``limit`` bytes, one that is not regular or not readable, or a link out
            of the checkpoint.
    """
    path = text_path(root, name)
    try:
        data = read_bounded(path, limit)
        if data is None and (root / name).is_symlink():
            raise OSError(0, "a symbolic link to nothing")
        return data
    except OSError as error:
        raise CheckpointError(
            f"{root / name}: cannot be read: {error.strerror or error}", hint="check the file, or download it again"
        ) from None


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a circle of links; which error, depends on the version of Python
        raise CheckpointError(f"{path}: a symbolic link in a circle", hint="remove it") from None
