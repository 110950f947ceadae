"""LLaVA-NeXT and LLaVA-OneVision: vision, pack and decoder graphs of random checkpoints against transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kit import tiny
from tests.kit.runner import Chain
from trtprune.checkpoint import open_checkpoint
from trtprune.errors import CheckpointError
from trtprune.models.llava_next import LlavaNextFamily
from trtprune.models.llava_onevision import LlavaOnevisionFamily
from trtprune.runtime.images import CropShape, processor_from_files

FAMILIES = {"llava-next": LlavaNextFamily(), "llava-onevision": LlavaOnevisionFamily()}
PROCESSORS = {"llava-next": "llava_next", "llava-onevision": "llava_onevision"}
POINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
FILE = "preprocessor_config.json"
SHAPE = CropShape(56, 56, (14, 14))
SIZES = [(56, 56), (90, 70), (300, 40), (40, 300), (1, 1), (7, 500), (200, 201)]  # (height, width)
CASES = [
    tiny.Tiny(family="llava-next", tower="clip", decoder="llama", old_names=True),
    tiny.Tiny(family="llava-next", tower="clip", decoder="mistral", seed=1, old_names=False, dtype="bfloat16"),
    tiny.Tiny(family="llava-next", tower="siglip", decoder="qwen2", seed=2, strategy="full", feature_layer=-1),
    tiny.Tiny(family="llava-next", tower="clip", decoder="llama", seed=3, feature_layer=[-2, 1], shards=True),
    tiny.Tiny(family="llava-onevision", tower="siglip", decoder="qwen2", seed=4, strategy="full", feature_layer=-1),
    tiny.Tiny(family="llava-onevision", tower="siglip", decoder="qwen2", seed=5, strategy="full", tied=True),
]


def made(path: Path, case: tiny.Tiny) -> Any:
    more: dict[str, Any] = {"image_grid_pinpoints": POINTS}
    if case.family == "llava-onevision":
        more["vision_aspect_ratio"] = "anyres_max_2"  # so that these small planes are shrunk, too
    model = tiny.make(path, replace(case, more=more))
    size: dict[str, Any] = {"size": {"height": 56, "width": 56}}
    if case.family == "llava-next":
        size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    (path / FILE).write_text(json.dumps(size | {"image_grid_pinpoints": POINTS}))
    return model


def processor(case: tiny.Tiny, path: Path) -> Any:
    files = {FILE: (path / FILE).read_text()}
    return processor_from_files(files, SHAPE, open_checkpoint(path).config, [PROCESSORS[case.family]])


@pytest.mark.parametrize("case", CASES, ids=lambda t: f"{t.family}-{t.tower}-{t.decoder}-{t.seed}")
def test_visual_tokens(tmp_path: Path, case: tiny.Tiny) -> None:
    model = made(tmp_path, case)
    chain = Chain(tmp_path, family=FAMILIES[case.family])
    prepare = processor(case, tmp_path)
    for number, (height, width) in enumerate(SIZES):
        plan = prepare.plan(height, width)
        pixels = tiny.pixels(case, batch=plan.crops, seed=number)
        vision = chain.vision(pixels)
        inputs = {"image_features": vision["image_features"], "pack_index": plan.pack_index.astype(np.int64)}
        if prepare.taps > 1:
            inputs["pack_weight"] = plan.pack_weight
        if "cls_attention" in vision:
            inputs["cls_attention"] = vision["cls_attention"]
        out = chain.run("pack", **inputs)
        with torch.no_grad():
            (theirs,) = model.get_image_features(
                torch.from_numpy(pixels)[None], torch.tensor([[height, width]])
            ).pooler_output
        np.testing.assert_allclose(out["packed_image_features"], theirs.numpy(), rtol=0, atol=2e-5)
        if "cls_attention" in vision:
            flat = np.append(vision["cls_attention"].ravel(), np.float32(0))
            np.testing.assert_array_equal(out["packed_cls_attention"], flat[plan.pack_index[:, 0]])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    made(tmp_path, CASES[0])
    weights = load_file(tmp_path / "model.safetensors")
    (name,) = [key for key in weights if key.endswith("image_newline")]
    row = weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks tensor .*image_newline"):
        LlavaNextFamily().open(open_checkpoint(tmp_path)).check_weights()
    save_file(weights | {name: np.append(row, row)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"image_newline' has shape \[128\], config.json asks for \[64\]"):
        LlavaNextFamily().open(open_checkpoint(tmp_path)).check_weights()
