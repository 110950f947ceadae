"""Opening an engine directory, with everything checked before anything is used."""

from __future__ import annotations

import os

from trtprune.arguments import arg
from trtprune.engine_dir.finding import find_engine_dir
from trtprune.engine_dir.reading import check_files, read_config
from trtprune.engine_dir.schema import EngineDir
from trtprune.errors import EngineDirError

__all__ = ["open_engine_dir"]


def open_engine_dir(root: str | os.PathLike[str], *, verify: str = "auto", backend: str | None = None) -> EngineDir:
    """Reads and checks an engine directory.

    Args:
        root: The directory of a build, or ``owner/name[@revision]`` of one on the Hugging Face hub.
        verify: ``"none"`` (only that files exist), ``"fast"`` (graphs and small files in full, weights by header
            and size, engines by their first MiB and size), ``"full"`` (every byte that was hashed at build),
            ``"auto"`` (full up to 1 GiB of weights and engines, else fast).
        backend: The required backend of the build; None: any.

    Raises:
        EngineDirError: naming the file or field at fault.
    """
    root = find_engine_dir(root)
    if not root.is_dir():
        raise EngineDirError(
            f"{root}: no such engine directory", hint="make one: trtprune build --model demo --keep 64 -o OUT"
        )
    engine_dir = read_config(root)
    if backend is not None and engine_dir.backend != backend:
        raise EngineDirError(
            f"{root}: built for the {engine_dir.backend} backend, not for {backend}",
            hint=f"build it again with {arg('backend', backend)}",
        )
    check_files(engine_dir, verify)
    return engine_dir
