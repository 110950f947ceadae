"""InternVL: vision, pack and decoder graphs of random checkpoints against transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.internvl.modeling_internvl import InternVLModel

from tests.kit import tiny
from tests.kit.runner import Chain, link_weights, session
from tests.kit.tiny_files import add_text_files
from tests.kit.vision_maps import expected
from trtprune.checkpoint import open_checkpoint
from trtprune.components.squares import Squares
from trtprune.errors import CheckpointError
from trtprune.graph import Graph, Lowering
from trtprune.models.internvl import InternVLFamily
from trtprune.pruning.inputs import FROM_CLIP, FROM_VISION

FAMILY = InternVLFamily()
FILE = "preprocessor_config.json"


def case(decoder: str = "qwen2", feature_layer: int = -1, **values: Any) -> tiny.Tiny:
    """A checkpoint of tiles of 56 × 56 pixels, 4 × 4 patches."""
    return tiny.Tiny(family="internvl", tower="internvl", decoder=decoder, feature_layer=feature_layer, **values)


CASES = {
    "plain": case(),
    "norms": case(
        "llama",
        seed=1,
        vision={"use_mean_pooling": False, "use_qk_norm": True, "attention_bias": True, "norm_type": "rms_norm"},
    ),
    "3.5": case("qwen3", seed=6),
    "before-the-norm": case(
        seed=2, feature_layer=-2, vision={"use_mean_pooling": False}, more={"downsample_ratio": 0.25}, tied=True
    ),
    "last-before-the-norm": case(
        seed=3, feature_layer=4, vision={"use_mean_pooling": False}, more={"downsample_ratio": 1.0}, shards=True
    ),
    "half": case(seed=4, old_names=False, dtype="bfloat16", image_size=112, vision={"use_qk_norm": True}),
    "embeddings": case("llama", seed=5, feature_layer=-5, projector_act="gelu_pytorch_tanh"),
}


def make(path: Path, t: tiny.Tiny) -> Any:
    model = tiny.make(path, t)
    add_text_files(path, t)
    return model


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[tiny.Tiny, Any, Path]:
    path, t = tmp_path_factory.mktemp("internvl"), CASES[request.param]
    return t, make(path, t), path


def test_visual_tokens(made: tuple[tiny.Tiny, Any, Path]) -> None:
    """Features of crops, and of an image whose crops lie one behind the other."""
    t, model, path = made
    chain = Chain(path, family=FAMILY)
    pixels = tiny.pixels(t, batch=5)
    with torch.no_grad():
        theirs = model.get_image_features(torch.from_numpy(pixels)).pooler_output.numpy()
    vision = chain.vision(pixels)
    assert theirs.std() > 0.05
    np.testing.assert_allclose(vision["image_features"], theirs, rtol=0, atol=2e-5)
    assert chain.spec.visual_tokens == 13 * theirs.shape[1]
    assert ("cls_attention" in vision) == chain.spec.has_cls == (t.feature_layer != -5)
    rows = 5 * theirs.shape[1]
    packed = chain.run("pack", **vision, pack_index=np.arange(rows)[:, None])
    np.testing.assert_array_equal(packed["packed_image_features"], vision["image_features"].reshape(rows, -1))


def test_every_output_of_the_tower(made: tuple[tiny.Tiny, Any, Path]) -> None:
    """What methods read: one value a visual token, the mean over its square of patches."""
    t, model, path = made
    if t.feature_layer == -5:
        return
    opened = FAMILY.open(open_checkpoint(path))
    wanted = [name for name in FROM_VISION if name not in (*FROM_CLIP, "cls_feature", "cls_attention")]
    graph = opened.build_components(
        dtype="float32", lowering=Lowering.for_backend("onnxruntime"), vision_outputs=wanted, shallow_layer=2
    )["vision"]
    link_weights(open_checkpoint(path), path / "engine")
    run = session(graph, path / "engine")
    pixels = tiny.pixels(t, batch=2, seed=3)
    out = dict(zip([o.name for o in run.get_outputs()], run.run(None, {"pixel_values": pixels}), strict=True))
    maps = expected(t, model, pixels, shallow=2)
    assert out.keys() == {*wanted, "image_features", "cls_attention"}
    for name in out:
        assert out[name].shape == maps[name].shape, name
        np.testing.assert_allclose(out[name], maps[name], rtol=0, atol=2e-5, err_msg=name)


def test_decoder(made: tuple[tiny.Tiny, Any, Path]) -> None:
    t, model, path = made
    chain = Chain(path, family=FAMILY)
    ids = np.random.default_rng(t.seed).integers(6, t.vocab, (1, 20))
    embeds = chain.embed(ids)
    with torch.no_grad():
        out = model.model.language_model(inputs_embeds=torch.from_numpy(embeds), use_cache=False)
        theirs = model.lm_head(out.last_hidden_state).numpy()
    np.testing.assert_allclose(chain.decoder(1, 20)(embeds, [0]), theirs, rtol=0, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(side=st.sampled_from([1, 2, 4]), squares=st.integers(1, 4), width=st.integers(1, 5), batch=st.integers(1, 3))
def test_squares(side: int, squares: int, width: int, batch: int) -> None:
    """The order of patches in a square is transformers', and a mean is that of its members."""
    rows = side * squares
    features = np.random.default_rng(0).normal(size=(batch, rows * rows, width)).astype(np.float32)
    graph = Graph("squares", dtype="float32", lowering=Lowering.for_backend("onnxruntime"))
    layout = Squares(rows, rows, side)
    x = graph.input("x", "float32", ["batch", rows * rows, width])
    graph.output(layout.rows_of(graph, x, width), "rows", "float32", ["batch", layout.count, side * side * width])
    graph.output(layout.means(graph, x, width), "means", "float32", ["batch", layout.count, width])
    single = graph.op.Squeeze(graph.op.Slice(x, graph.ints(0), graph.ints(1), graph.ints(2)), graph.ints(2))
    graph.output(layout.means(graph, single), "single", "float32", ["batch", layout.count])
    found, means, first = session(graph).run(None, {"x": features})
    square = torch.from_numpy(features.reshape(batch, rows, rows, width))
    theirs = InternVLModel.pixel_shuffle(None, square, scale_factor=1 / side)
    np.testing.assert_array_equal(found, theirs.reshape(batch, squares * squares, -1).numpy())
    parts = theirs.reshape(batch, squares * squares, side * side, width).numpy()
    np.testing.assert_allclose(means, parts.mean(axis=2), rtol=0, atol=1e-6)
    np.testing.assert_allclose(first, parts.mean(axis=2)[..., 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsample_ratio": 0.3}, r"downsample_ratio is 0.3, which trtprune does not support"),
        ({"downsample_ratio": 0}, r"downsample_ratio is 0, expected a positive, finite number"),
        ({"vision_config__image_size": [42, 42]}, r"tiles of 3 × 3 patches are no square of 2 × 2 ones"),
        ({"vision_config__image_size": [112, 56]}, r"tiles of 8 × 4 patches are no square of 2 × 2 ones"),
        ({"vision_config__norm_type": "batch_norm"}, r"norm_type is 'batch_norm', which trtprune does not support"),
        ({"vision_config__model_type": "clip_vision_model"}, r"vision_config.model_type is 'clip_vision_model', which"),
        ({"vision_config__use_absolute_position_embeddings": False}, r"use_absolute_position_embeddings is False"),
        ({"vision_feature_layer": [-1, 2]}, r"vision_feature_layer is \[-1, 2\], which trtprune does not support"),
        ({"vision_feature_layer": 9}, r"vision_feature_layer is 9"),
        ({"vision_feature_select_strategy": "full"}, r"vision_feature_select_strategy is 'full', which trtprune"),
        ({"text_config__model_type": "mistral"}, r"text_config.model_type is 'mistral', which trtprune"),
        (
            {"quantization_config": {"quant_method": "hqq"}},
            r"quantised checkpoints of this kind are not supported \(HQQ",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    t = case()
    make(tmp_path, t)
    if "vision_config__image_size" in changes:
        (tmp_path / FILE).unlink()
    tiny.edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        FAMILY.open(open_checkpoint(tmp_path))


def test_a_file_of_other_tiles(tmp_path: Path) -> None:
    make(tmp_path, case())
    (tmp_path / FILE).write_text(json.dumps({"size": {"height": 28, "width": 28}}))
    with pytest.raises(CheckpointError, match=r"makes 28×28 pictures, .*image_size says 56×56"):
        FAMILY.open(open_checkpoint(tmp_path))


def test_what_the_config_leaves_out(tmp_path: Path) -> None:
    """Defaults are transformers': the same graphs of a config without them."""
    t = case(tied=True)
    make(tmp_path, t)
    whole = FAMILY.open(open_checkpoint(tmp_path))
    gone = ["downsample_ratio", "projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy"]
    gone += ["tie_word_embeddings", "vision_config__model_type", "vision_config__norm_type"]
    gone += ["vision_config__use_mean_pooling", "vision_config__hidden_act", "text_config__model_type"]
    tiny.edit_config(tmp_path, **dict.fromkeys(gone, ...))
    assert FAMILY.open(open_checkpoint(tmp_path)).required_weights() == whole.required_weights()
    assert FAMILY.open(open_checkpoint(tmp_path)).spec == whole.spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_image_token": None}, "tokenizer_config.json names no start_image_token, which this model's prompts"),
        (
            {"end_image_token": "</image>"},
            "tokenizer.json has no token '</image>', the end_image_token of token",
        ),
        (
            {"context_image_token": "<img>"},
            "context_image_token is '<img>', and image_token_id of config.json is",
        ),
        ({"end_image_token": "<IMG_CONTEXT>"}, "'<IMG_CONTEXT>' is context_image_token and stands beside itself"),
        ({"end_image_token": 5}, "tokenizer_config.json has no text as end_image_token"),
    ],
)
def test_special_tokens_that_are_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make(tmp_path, case())
    path = tmp_path / "tokenizer_config.json"
    values = json.loads(path.read_text())
    values["extra_special_tokens"] |= changes
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        _ = FAMILY.open(open_checkpoint(tmp_path)).processor


def test_a_processor_of_other_tiles(tmp_path: Path) -> None:
    make(tmp_path, case())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_seq_length": 256}))
    with pytest.raises(CheckpointError, match="image_seq_length is 256, and a tile has 4 visual tokens"):
        _ = FAMILY.open(open_checkpoint(tmp_path)).processor
