"""Packed towers: vision graphs of random checkpoints of each family against transformers, and their errors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from tests.kit import tiny
from tests.kit.runtime_kit import picture
from tests.kit.tiny_files import add_text_files
from trtprune.checkpoint import open_checkpoint
from trtprune.errors import BuildError, CheckpointError
from trtprune.graph import Lowering
from trtprune.models import Model, open_model
from trtprune.runtime.images import PixelBounds

SIZES = [(90, 70), (56, 56), (300, 40), (40, 301), (20, 20), (170, 171)]  # (width, height)
CASES = [
    tiny.Tiny(family="qwen2.5-vl", seed=1),
    tiny.Tiny(family="qwen2.5-vl", seed=2, old_names=False, vision={"window_size": 84}),
    tiny.Tiny(family="qwen2.5-vl", seed=3, shards=True, vision_layers=3, vision={"fullatt_block_indexes": [0, 1, 2]}),
    tiny.Tiny(family="qwen2-vl", seed=4),
    tiny.Tiny(family="qwen2-vl", seed=5, tied=True, old_names=False, dtype="bfloat16", vision={"mlp_ratio": 3}),
    tiny.Tiny(family="qwen3-vl", seed=6, patch_size=16, shards=True),
    tiny.Tiny(family="qwen3-vl", seed=7, tied=True, vision={"deepstack_visual_indexes": [3, 0]}),
    tiny.Tiny(family="qwen3-vl", seed=8, old_names=False, vision={"deepstack_visual_indexes": []}),
]
ATTENTION = ("mean_query_attention", "deep_attention", "shallow_attention")
EXTRAS = (*ATTENTION, "vision_features", "vision_keys")


def checkpoint(path: Path, case: tiny.Tiny) -> Any:
    model = tiny.make(path, case)
    add_text_files(path, case)
    return model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to change a copy of."""
    path = tmp_path_factory.mktemp("packed") / "source"
    checkpoint(path, CASES[0])
    return path


def vision_graph(model: Model, path: Path, form: str, shallow: int = 1, dtype: str = "float32") -> ort.InferenceSession:
    lowering = replace(Lowering.for_backend("onnxruntime"), vision_attention=form)
    graphs = model.build_components(dtype=dtype, lowering=lowering, vision_outputs=EXTRAS, shallow_layer=shallow)
    (path / "weights").mkdir(exist_ok=True)
    for file in path.glob("*.safetensors"):
        if not (path / "weights" / file.name).exists():
            (path / "weights" / file.name).hardlink_to(file)
    graphs["vision"].save(path / "vision.onnx")
    return ort.InferenceSession(path / "vision.onnx", providers=["CPUExecutionProvider"])


class Maps:
    """Queries and keys of every layer of transformers' tower, rotated, in window order; and what follows of them."""

    def __init__(self, model: Any, pixels: torch.Tensor, grid: torch.Tensor) -> None:
        tower, calls = model.model.visual, []
        module = __import__(type(tower).__module__, fromlist=["x"])
        eager = module.eager_attention_forward

        def spy(owner: Any, q: torch.Tensor, k: torch.Tensor, *args: Any, **more: Any) -> Any:
            out = eager(owner, q, k, *args, **more)
            calls.append((owner, q.double(), k.double(), out[1].double()))
            return out

        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(module, "eager_attention_forward", spy)
            out = tower(pixels, grid_thw=grid)
        self.features = out.pooler_output.numpy()
        levels = getattr(out, "deepstack_features", None)
        self.levels = torch.cat(levels, -1).numpy() if levels else None
        index = torch.arange(int(grid.prod()) // 4)
        if hasattr(tower, "fullatt_block_indexes"):
            index, _ = module.get_vision_window_index(grid, 2, tower.window_size, tower.patch_size)
        self.order = torch.argsort(index)
        self.patches = 4 * len(index)
        self.last = out.last_hidden_state.double().reshape(-1, 4, out.last_hidden_state.shape[-1])[self.order]
        self.layers = [[c for c in calls if c[0] is block.attn] for block in tower.blocks]

    def received(self, layer: int) -> np.ndarray:
        """Summed over a token's patches, a mean over heads and queries of the whole image."""
        row = torch.cat([weights[0].mean(0).sum(0) for *_, weights in self.layers[layer]]) / self.patches
        return row.reshape(-1, 4).sum(1)[self.order].numpy()

    def mean_query(self, layer: int) -> np.ndarray:
        ((_, q, k, _),) = self.layers[layer]
        scores = q.mean(2, keepdim=True) @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        return scores.softmax(-1).mean(1).reshape(-1, 4).sum(1)[self.order].numpy()

    def keys(self, layer: int) -> np.ndarray:
        ((_, _, k, _),) = self.layers[layer]
        return k[0].mean(0).reshape(-1, 4, k.shape[-1]).mean(1)[self.order].numpy()


@pytest.mark.parametrize("case", CASES, ids=lambda t: f"{t.family}-{t.seed}")
def test_visual_tokens(tmp_path: Path, case: tiny.Tiny) -> None:
    """Features, saliency and keys of images of several shapes, in both forms of attention."""
    reference = checkpoint(tmp_path, case)
    model = open_model(open_checkpoint(tmp_path))
    assert model.check_weights() == []
    full = case.vision.get("fullatt_block_indexes", [*range(1, case.vision_layers, 2)])
    deep = max(full) if case.family == "qwen2.5-vl" else case.vision_layers - 1
    sessions = [vision_graph(model, tmp_path, form) for form in ("op", "primitives")]
    for number, size in enumerate(SIZES):
        prepared = model.processor.prepare(picture(number, size))
        rows, columns = prepared.plan.grid[-1, 1:] + 1
        maps = Maps(reference, torch.from_numpy(prepared.pixel_values), torch.tensor([[1, 2 * rows, 2 * columns]]))
        expected = {
            "image_features": maps.features,
            "mean_query_attention": maps.mean_query(deep),
            "deep_attention": maps.received(deep),
            "shallow_attention": maps.received(0),
            "vision_features": maps.last.mean(1).numpy(),
            "vision_keys": maps.keys(deep),
        }
        if maps.levels is not None:  # behind the numbers of each visual token
            expected["image_features"] = np.concatenate((maps.features, maps.levels), axis=1)
        for session in sessions:
            names = [value.name for value in session.get_outputs()]
            feed = {"pixel_values": prepared.pixel_values, **prepared.arrays}
            found = dict(zip(names, session.run(names, feed), strict=True))
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                np.testing.assert_allclose(found[name][0], array, rtol=0, atol=3e-5, err_msg=name)
            for name in ATTENTION:
                np.testing.assert_allclose(found[name].sum(), 1, rtol=1e-5)


def test_half_precision(tmp_path: Path) -> None:
    """Empty slots of windows stay out where the lowest number is another."""
    case = CASES[0]
    checkpoint(tmp_path, case)
    model = open_model(open_checkpoint(tmp_path))
    prepared = model.processor.prepare(picture(0, (90, 70)))
    feed = {"pixel_values": prepared.pixel_values, **prepared.arrays}
    exact = vision_graph(model, tmp_path, "primitives").run(["image_features"], feed)[0]
    feed["pixel_values"] = feed["pixel_values"].astype(np.float16)
    for form in ("primitives", "primitives-float32"):
        half = vision_graph(model, tmp_path, form, dtype="float16").run(["image_features"], feed)[0]
        np.testing.assert_allclose(half, exact, rtol=0, atol=0.03 * np.abs(exact).max())


def test_names_of_the_hub(tmp_path: Path) -> None:
    """The flat files of transformers 4: no text_config, visual.* and model.layers.*."""
    checkpoint(tmp_path, CASES[0])
    names = {*open_checkpoint(tmp_path).tensors}
    assert "visual.blocks.0.attn.qkv.weight" in names
    assert "model.layers.0.self_attn.q_proj.weight" in names
    config = json.loads((tmp_path / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = {**text, **config, "rope_theta": rope["rope_theta"]}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    nested = open_model(open_checkpoint(tmp_path)).spec
    assert nested.rotary_sections == tuple(rope["mrope_section"])
    assert (nested.hidden_size, nested.max_positions, nested.image_token) == (64, 512, "<|image_pad|>")
    assert nested.video_token == "<|video_pad|>"


def test_bounds_of_a_user(tmp_path: Path) -> None:
    checkpoint(tmp_path, CASES[0])
    source = open_checkpoint(tmp_path)
    assert open_model(source).processor.tokens_range == (4, 154)
    assert open_model(source, bounds=PixelBounds(784, 784 * 20)).spec.visual_tokens < 154
    with pytest.raises(CheckpointError, match="min_pixels 3136 is above max_pixels 784"):
        assert open_model(source, bounds=PixelBounds(most=784)).processor
    tiny.make(tmp_path / "llava")
    with pytest.raises(BuildError, match=r"max.image.pixels.*one size"):
        open_model(open_checkpoint(tmp_path / "llava"), bounds=PixelBounds(most=784))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"text_config__rope_parameters": {"mrope_section": [2, 3, 2]}},
            "is [2, 3, 2], which must add up to",
        ),
        ({"vision_config__fullatt_block_indexes": []}, "fullatt_block_indexes is empty"),
        ({"vision_config__fullatt_block_indexes": [4]}, "fullatt_block_indexes is [4], expected layers from 0 to 3"),
        ({"vision_config__window_size": 13}, "window_size is 13, which makes windows of 0"),
        ({"vision_config__num_heads": 5}, "hidden_size is 48; expected a multiple of 4 for each of 5 heads"),
        ({"vision_config__out_hidden_size": 32}, "makes visual tokens of width 32, and the language model takes 64"),
        ({"vision_config__in_channels": 1}, "in_channels is 1"),
        ({"vision_config__patch_size": [14, 16]}, "patch_size is [14, 16]; expected one number"),
        ({"vision_config__hidden_act": "swoosh"}, "hidden_act is 'swoosh'"),
        ({"vision_start_token_id": 999}, "no added token 999, the vision_start_token_id of config.json"),
        ({"image_token_id": 20}, "no added token 20, the image_token_id of config.json"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantised checkpoints of this kind are not supported (FP8)",
        ),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 3}},
            "quantization_config.bits is 3, which trtprune does not read (GPTQ)",
        ),
        ({"vision_config__patch_size": 16}, "patch_size is 14, and the vision tower's 16"),
    ],
    ids=str,
)
def test_refused(source: Path, tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    tiny.edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError) as error:
        model = open_model(open_checkpoint(tmp_path))
        assert model.spec
    assert fault in str(error.value)
    assert error.value.hint


@pytest.fixture(scope="module")
def levelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with DeepStack levels, to change a copy of."""
    path = tmp_path_factory.mktemp("levelled") / "source"
    checkpoint(path, tiny.Tiny(family="qwen3-vl", seed=9, patch_size=16))
    return path


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"vision_config__deepstack_visual_indexes": [0, 4]}, "is [0, 4], expected layers from 0 to 3"),
        ({"vision_config__deepstack_visual_indexes": [-1]}, "is [-1], expected layers from 0 to 3"),
        ({"vision_config__deepstack_visual_indexes": [1, 1]}, "is [1, 1], which has a layer twice"),
        ({"vision_config__deepstack_visual_indexes": 1}, "deepstack_visual_indexes is 1, expected layers"),
        ({"vision_config__deepstack_visual_indexes": [True]}, "deepstack_visual_indexes is [True], expected"),
        ({"vision_config__deepstack_visual_indexes": ...}, "[8, 16, 24], expected layers from 0 to 3"),
        ({"text_config__num_hidden_layers": 2}, "makes 3 DeepStack levels, and the language model has 2 layers"),
        ({"vision_config__num_position_embeddings": 24}, "num_position_embeddings is 24; expected a square"),
        ({"vision_config__hidden_size": 50}, "hidden_size is 50; expected a multiple of 4 for each of 3 heads"),
        ({"vision_config__rope_parameters": {"rope_type": "linear"}}, "rope_type is 'linear'"),
        ({"text_config__rope_parameters": {"mrope_section": [4, 4, 5]}}, "is [4, 4, 5], which must add up to 12"),
        ({"text_config__rope_parameters": {"mrope_section": [2, 5, 5]}}, "is [2, 5, 5], which cannot be interleaved"),
        ({"text_config__rope_parameters": {"mrope_section": [4, 4, 4], "mrope_interleaved": False}}, "is False"),
        (
            {"text_config__model_type": "qwen3_vl_moe_text"},
            "model_type is 'qwen3_vl_moe_text', which trtprune does not",
        ),
        ({"text_config__model_type": "qwen3_5_text"}, "model_type is 'qwen3_5_text', which trtprune does not support"),
        ({"video_token_id": -1}, "video_token_id is -1"),
        ({"vision_end_token_id": 999}, "no added token 999, the vision_end_token_id of config.json"),
        ({"image_token_id": 20}, "no added token 20, the image_token_id of config.json"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantised checkpoints of this kind are not supported (FP8)",
        ),
        ({"vision_config__patch_size": 14}, "patch_size is 16, and the vision tower's 14"),
        ({"architectures": ["Qwen3VLMoeForConditionalGeneration"]}, "architectures is"),
        ({"architectures": ["Qwen3_5ForConditionalGeneration"]}, "architectures is"),
    ],
    ids=str,
)
def test_refused_of_qwen3_vl(levelled: Path, tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    shutil.copytree(levelled, tmp_path, dirs_exist_ok=True)
    tiny.edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError) as error:
        model = open_model(open_checkpoint(tmp_path))
        assert model.spec
    assert fault in str(error.value)
    assert error.value.hint
    if "architectures" in changes:
        assert "qwen3-vl-8b" in error.value.hint


def test_a_level_that_is_not_stored(levelled: Path, tmp_path: Path) -> None:
    """Levels and mergers are counted against each other."""
    shutil.copytree(levelled, tmp_path, dirs_exist_ok=True)
    tiny.edit_config(tmp_path, vision_config__deepstack_visual_indexes=[0, 1])
    with pytest.raises(CheckpointError, match=r"deepstack_merger_list\.2"):
        open_model(open_checkpoint(tmp_path)).check_weights()


def test_published_config(tmp_path: Path) -> None:
    """The names of the hub's files: rope_scaling beside rope_theta, and the tower's old model_type."""
    case = tiny.Tiny(family="qwen3-vl", seed=9, patch_size=16, tied=True)
    checkpoint(tmp_path, case)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"]["rope_theta"] = 5000000
    config["text_config"]["rope_scaling"] = {"mrope_interleaved": True, "rope_type": "default"}
    config["text_config"]["rope_scaling"]["mrope_section"] = rope["mrope_section"]
    config["vision_config"]["model_type"] = "qwen3_vl"
    config["vision_config"].pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = open_model(open_checkpoint(tmp_path))
    assert model.check_weights() == []
    assert (model.spec.rotary_sections, model.spec.rotary_interleaved) == (tuple(rope["mrope_section"]), True)
    assert (model.spec.decoder, model.spec.vision_tower) == ("qwen3_vl_text", "qwen3_vl")
    assert model.spec.video_token == "<|video_pad|>"
    theirs = tiny.load(tmp_path).config.text_config.rope_parameters
    assert (theirs["rope_theta"], theirs["mrope_section"]) == (5000000, rope["mrope_section"])


def test_a_processor_of_another_family(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}))
    with pytest.raises(CheckpointError, match="'CLIPImageProcessor' does not fit this model"):
        assert open_model(open_checkpoint(tmp_path)).processor
