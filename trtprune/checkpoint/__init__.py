"""Checkpoints in transformers' layout: on disk, on the hub, or inside a build; files, tensors, names and advice."""

from __future__ import annotations

from trtprune.checkpoint.checkpoint import SIDE_FILES, Checkpoint, TensorInfo, open_checkpoint
from trtprune.checkpoint.resolving import resolve

__all__ = ["SIDE_FILES", "Checkpoint", "TensorInfo", "open_checkpoint", "resolve"]
