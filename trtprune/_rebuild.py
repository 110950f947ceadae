"""An engine directory as the checkpoint it was built from: its weights are there, and the model's own config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trtprune._safetensors import parse_json, read_header
from trtprune.errors import CheckpointError, EngineDirError

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint
    from trtprune.engine_dir import EngineDir

__all__ = ["CLIP_CONFIG", "CLIP_PREFIX", "CLIP_TOKENIZER", "MODEL_CONFIG", "checkpoint_of_build"]

MODEL_CONFIG = "model_config.json"
"""The checkpoint's ``config.json`` in an engine directory."""
CLIP_PREFIX = "clip-"
"""How the names of weight files begin that come from a second checkpoint."""
CLIP_CONFIG, CLIP_TOKENIZER = "clip_config.json", "clip_tokenizer.json"
"""The second checkpoint's ``config.json`` and, set to cut long texts, its ``tokenizer.json``."""


def checkpoint_of_build(root: Path, made: EngineDir | None = None) -> Checkpoint:
    """The checkpoint behind the engine directory ``root``.

    Raises:
        CheckpointError: if the directory is damaged, older than this, or has quantised weights.
    """
    from trtprune.checkpoint import Checkpoint
    from trtprune.engine_dir import open_engine_dir

    again = "give the checkpoint itself: --model CHECKPOINT"
    try:
        made = made or open_engine_dir(root, verify="fast")
    except EngineDirError as error:
        raise CheckpointError(f"--model {root}: {error.message}", hint=error.hint) from None
    if made.weight_dtype is not None:
        raise CheckpointError(f"--model {root}: its weights are quantised to {made.weight_dtype}", hint=again)
    if MODEL_CONFIG not in made.files:
        raise CheckpointError(f"--model {root}: built by a version that did not keep {MODEL_CONFIG}", hint=again)
    config = made.path(MODEL_CONFIG)
    names = sorted(name.partition("/")[2] for name in made.files if name.startswith("weights/"))
    headers = {name: read_header(made.path(f"weights/{name}")) for name in names if not name.startswith(CLIP_PREFIX)}
    tensors = {name: info for header in headers.values() for name, info in header.tensors.items()}
    return Checkpoint(
        root,
        parse_json(config.read_bytes(), config, "config"),
        tensors,
        tuple(headers),
        made.model.id,
        made.model.revision,
        weights=root / "weights",
        known_digest=made.model.digest,
        _headers=headers,
    )
