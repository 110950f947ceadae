"""An engine directory as the checkpoint it was built from: it has the weights and the model's own config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtprune.arguments import arg
from trtprune.checkpoint.safetensors import Header, parse_json, read_header
from trtprune.errors import CheckpointError, EngineDirError

__all__ = ["CLIP_CONFIG", "CLIP_PREFIX", "CLIP_TOKENIZER", "MODEL_CONFIG", "Origin", "origin_of_build"]

MODEL_CONFIG = "model_config.json"
"""The checkpoint's ``config.json`` in an engine directory."""
CLIP_PREFIX = "clip-"
"""Prefix of the names of a second checkpoint's weight files."""
CLIP_CONFIG, CLIP_TOKENIZER = "clip_config.json", "clip_tokenizer.json"
"""The second checkpoint's ``config.json``, and its ``tokenizer.json`` with segments for long texts."""


@dataclass(frozen=True)
class Origin:
    """The parts of its checkpoint that an engine directory has.

    Attributes:
        config: The checkpoint's ``config.json``.
        headers: Headers of its weight files, by base name.
        weights: Folder of the weight files.
        id, revision, digest: The checkpoint's.
    """

    config: dict[str, Any]
    headers: dict[str, Header]
    weights: Path
    id: str
    revision: str | None
    digest: str


def origin_of_build(root: Path) -> Origin:
    """The checkpoint behind the engine directory ``root``.

    Raises:
        CheckpointError: if the directory is damaged, older than this, or has quantised weights.
    """
    from trtprune.engine_dir import QUANTIZATION, WEIGHTS, open_engine_dir

    where = arg("model", str(root))
    again = f"give the checkpoint itself: {arg('model', 'CHECKPOINT')}"
    try:
        made = open_engine_dir(root, verify="fast")
    except EngineDirError as error:
        raise CheckpointError(f"{where}: {error.marked_message}", hint=error.marked_hint) from None
    scheme = made.built_with.get(QUANTIZATION)
    if scheme is not None:
        raise CheckpointError(
            f"{where}: built from a quantised checkpoint ({scheme}), whose weights it changed", hint=again
        )
    if made.weight_dtype is not None:
        raise CheckpointError(f"{where}: its weights are quantised to {made.weight_dtype}", hint=again)
    if MODEL_CONFIG not in made.files:
        raise CheckpointError(f"{where}: built by a version that did not keep {MODEL_CONFIG}", hint=again)
    config = made.path(MODEL_CONFIG)
    names = sorted(made.weight_files())
    return Origin(
        parse_json(config.read_bytes(), config, "config"),
        {name: read_header(made.path(f"{WEIGHTS}/{name}")) for name in names if not name.startswith(CLIP_PREFIX)},
        root / WEIGHTS,
        made.model.id,
        made.model.revision,
        made.model.digest,
    )
