"""Sixteen random checkpoints of each tiled family: the answers of transformers to random questions on odd images."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture
from tests.runtime.test_tiles import rows_left

TOKENS = 32
SIZES = [(1, 1), (4000, 3000), (1000, 10), (10, 1000), (56, 56), (113, 57), (640, 480), (31, 300), (3, 2)]
"""(width, height)."""


def draw(family: str, seed: int) -> tiny.Tiny:
    """A random checkpoint: tower, decoder, ties, shards, dtype, layers, pinpoints."""
    r = random.Random(f"{family} {seed}")
    tower = r.choice(["clip", "siglip"]) if family == "llava-next" else "siglip"
    patch = r.choice([8, 14])
    side = patch * r.choice([3, 4])
    shapes = [(h, w) for h in (1, 2, 3) for w in (1, 2, 3) if h * w > 1]
    points = [[h * side, w * side] for h, w in r.sample(shapes, r.randint(2, len(shapes)))]
    more: dict[str, Any] = {"image_grid_pinpoints": points}
    if family == "llava-onevision":
        more["vision_aspect_ratio"] = f"anyres_max_{r.choice([2, 4, 9])}"
    return tiny.Tiny(
        family=family,
        tower=tower,
        decoder=r.choice(tiny.DECODERS),
        seed=seed,
        layers=r.choice([2, 3]),
        image_size=side,
        patch_size=patch,
        tied=r.random() < 0.3,
        dtype=r.choice(["float32", "float32", "bfloat16"]),
        shards=r.random() < 0.3,
        old_names=r.random() < 0.5,
        feature_layer=r.choice([-1, -2, [-2, 1]]),
        strategy="default" if tower == "clip" else "full",
        projector_bias=r.random() < 0.8,
        max_positions=1024,
        more=more,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("family", ["llava-next", "llava-onevision"])
def test_answers(tmp_path: Path, family: str, seed: int) -> None:
    kit = Kit.make(tmp_path / "model", draw(family, seed))
    r = random.Random(seed)
    whole, pruned = kit.load("none", method="none"), kit.load("random", method="random", keep=r.randint(1, 12))
    for count in (1, 1, 2):
        sizes = [r.choice(SIZES) for _ in range(count)]
        images = [picture(r.randrange(99), size) for size in sizes]
        inputs = kit.inputs(images, "Which?")
        assert whole.generate(images, "Which?", max_new_tokens=TOKENS).token_ids == kit.generate(TOKENS, **inputs)[0]
        result = pruned.generate(images, "Which?", max_new_tokens=TOKENS, seed=seed)
        totals = [pruned.pipeline.processor.plan(h, w, count).tokens for w, h in sizes]
        rows = rows_left(inputs["input_ids"][0].numpy(), result.kept_indices, totals)
        embeds = kit.embeds(inputs)[:, rows]
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        assert result.token_ids == kit.generate(TOKENS, inputs_embeds=embeds, attention_mask=mask)[0], sizes
