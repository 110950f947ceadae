"""Tiny checkpoints whose images are several crops, and builds of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trtprune
from tests.kit import tiny
from tests.kit.tiny_files import add_text_files

POINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
FAMILIES = {
    "llava-next": tiny.Tiny(
        family="llava-next", max_positions=1024, feature_layer=-2, more={"image_grid_pinpoints": POINTS}
    ),
    "llava-onevision": tiny.Tiny(
        family="llava-onevision",
        tower="siglip",
        decoder="qwen2",
        seed=4,
        max_positions=1024,
        feature_layer=-1,
        strategy="full",
        more={"image_grid_pinpoints": POINTS, "vision_aspect_ratio": "anyres_max_2"},
    ),
    "internvl": tiny.Tiny(
        family="internvl",
        tower="internvl",
        decoder="qwen2",
        seed=5,
        max_positions=1024,
        feature_layer=-1,
        vision={"use_qk_norm": True, "use_mean_pooling": False},
    ),
    "smolvlm": tiny.Tiny(
        family="smolvlm", tower="smolvlm", seed=6, max_positions=1024, feature_layer=4, more={"scale_factor": 1}
    ),
}
"""One checkpoint a family: crops of 56 × 56 pixels, 4 × 4 patches; of InternVL a visual token is 2 × 2 of them."""


def few_tokens(family: str) -> tuple[int, int]:
    """(width, height) of an image of few visual tokens; SmolVLM enlarges every image, and thin ones are few tiles."""
    return (1, 90) if family == "smolvlm" else (1, 1)


def checkpoint(path: Path, family: str) -> Path:
    """A whole tiny checkpoint of a family."""
    path.mkdir(parents=True, exist_ok=True)
    tiny.make(path, FAMILIES[family])
    add_text_files(path, FAMILIES[family])
    return path


def build(path: Path, out: Path, **settings: Any) -> Path:
    """An engine directory of :func:`checkpoint`, by the default method unless ``settings`` say another."""
    trtprune.build(str(path), out, **{"keep": 12, **settings})
    return out
