"""The checkpoint that an engine directory was built from."""

from __future__ import annotations

from trtprune.checkpoint.aliases import DEMOS
from trtprune.checkpoint.checkpoint import Checkpoint, open_checkpoint
from trtprune.checkpoint.resolving import resolve
from trtprune.demo.assemble import assemble
from trtprune.engine_dir import EngineDir
from trtprune.errors import CheckpointError, InputError

__all__ = ["find_checkpoint"]


def find_checkpoint(build: EngineDir, given: str | None, *, allow_other: bool = False) -> Checkpoint:
    """The checkpoint a directory was built from.

    Args:
        build: The directory.
        given: ``--checkpoint``; None: the id recorded in the directory.
        allow_other: Whether one with other weights is accepted.

    Raises:
        InputError: if it cannot be found, or is another one.
    """
    # With its revision an id cannot be taken for a directory of that name.
    source = given or "@".join(part for part in (build.model.id, build.model.revision) if part)
    try:
        if given is None and source in DEMOS:
            checkpoint = open_checkpoint(assemble(name=source), id=source)
        else:
            checkpoint = resolve(source)
    except CheckpointError as error:
        if given is not None:
            raise
        raise InputError(
            f"{build.root}: the checkpoint '{source}' it was built from is not found: {error.marked_message}",
            hint="--checkpoint DIR",
        ) from None
    if not allow_other and checkpoint.digest() != build.model.digest:
        raise InputError(
            f"--checkpoint {source}: is not the one {build.root} was built from (digests differ)",
            hint="--allow-other-weights compares all the same",
        )
    return checkpoint
