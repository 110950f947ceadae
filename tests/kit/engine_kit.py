"""Tiny checkpoints, and builds of them with TensorRT-RTX through trtprune's public functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner

import trtprune
from tests.kit.tiny import Tiny
from trtprune import EngineOptions
from trtprune.cli import main
from trtprune.engine_dir import EngineDir

ALL = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
FAMILIES = {
    "clip-llama": Tiny(),
    "dinov2-qwen2": Tiny(
        seed=1,
        tower="dinov2",
        decoder="qwen2",
        tied=True,
        dtype="bfloat16",
        text={"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "siglip-mistral": Tiny(seed=2, tower="siglip", decoder="mistral", strategy="full", text={"sliding_window": 16}),
}


def command(*arguments: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def build(checkpoint: Path, out: Path, *targets: str, **more: Any) -> EngineDir:
    options = EngineOptions(compute_capability=targets or ("sm89",), **more.pop("engine", {}))
    return trtprune.build(checkpoint, out, backend="tensorrt-rtx", engine=options, **more)
