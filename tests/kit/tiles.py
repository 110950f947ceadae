"""Tiny checkpoints whose images are several crops, and prompts with images of several crop counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture
from tests.models.test_tiles import POINTS
from trtprune import Request

CASES = {
    "next": tiny.Tiny(family="llava-next", seed=7, layers=6),
    "onevision": tiny.Tiny(
        family="llava-onevision", tower="siglip", decoder="qwen2", seed=8, strategy="full", feature_layer=-1, layers=6
    ),
}
METHODS: dict[str, dict[str, Any]] = {
    "adafv": {"method": "adafv", "keep": 9},
    "divprune": {"method": "divprune", "keep": 9, "keep_range": (4, 20)},
    "none": {"method": "none"},
    "sparsevlm": {"method": "sparsevlm", "keep": 30, "options": {"schedule": "auto"}},
    "sparsevlm-rank": {"method": "sparsevlm", "keep": 30, "options": {"ratio": "rank", "scale": 1.7, "bias": 2}},
    "fastv": {"method": "fastv", "keep": 30},
    "pyramiddrop": {"method": "pyramiddrop", "keep": 30, "options": {"first": 1}},
}
REQUESTS = [
    Request([picture(1, (90, 70))], "What is on the table left of it?", max_new_tokens=6),
    Request([picture(2, (400, 380)), picture(3, (7, 500))], "Which?", max_new_tokens=6),
    Request([picture(4, (1, 1))], "Why?", max_new_tokens=6),
    Request([picture(5, (300, 60))], "And there?", max_new_tokens=6),
]


def make_kit(path: Path, case: tiny.Tiny) -> Kit:
    """A checkpoint with the pinpoints of the tests, and one of OneVision that shrinks its small planes, too."""
    more: dict[str, Any] = {"image_grid_pinpoints": POINTS}
    if case.family == "llava-onevision":
        more["vision_aspect_ratio"] = "anyres_max_2"
    return Kit.make(path, replace(case, more=more, max_positions=1024))
