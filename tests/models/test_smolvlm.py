"""SmolVLM and Idefics3: vision, pack and decoder graphs of random checkpoints against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

from tests.kit import tiny
from tests.kit.runner import Chain, link_weights, session
from tests.kit.tiny_files import add_text_files
from tests.kit.vision_maps import expected
from trtprune.checkpoint import open_checkpoint
from trtprune.components.smolvlm_vision import LARGEST_GRID, MISPLACED
from trtprune.errors import CheckpointError
from trtprune.graph import Lowering
from trtprune.models import open_model
from trtprune.pruning.inputs import FROM_CLIP, FROM_VISION


def case(family: str = "smolvlm", side: int = 2, **values: Any) -> tiny.Tiny:
    """A checkpoint of tiles of 4 × 4 patches."""
    layers = values.get("vision_layers", 4)
    return tiny.Tiny(family=family, tower="smolvlm", feature_layer=layers, more={"scale_factor": side}, **values)


CASES = {
    "smolvlm": case(),
    "idefics3": case("idefics3", seed=1, image_size=60, tied=True, vision={"hidden_act": "gelu"}),
    "thirds": case(side=3, seed=2, image_size=96, patch_size=16, shards=True),
    "quarters": case("idefics3", side=4, seed=3, dtype="bfloat16", old_names=False, vision_layers=2),
    "patches": case(side=1, seed=4, kv_heads=4),
}


def make(path: Path, t: tiny.Tiny) -> Any:
    model = tiny.make(path, t)
    add_text_files(path, t)
    return model


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[tiny.Tiny, Any, Path]:
    path, t = tmp_path_factory.mktemp("smolvlm"), CASES[request.param]
    return t, make(path, t), path


def test_visual_tokens(made: tuple[tiny.Tiny, Any, Path]) -> None:
    """Features of crops, and of an image whose crops lie one behind the other."""
    t, model, path = made
    chain = Chain(path)
    pixels = tiny.pixels(t, batch=5)
    with torch.no_grad():
        theirs = np.stack(model.get_image_features(torch.from_numpy(pixels)[:, None]).pooler_output)
    vision = chain.vision(pixels)
    assert theirs.std() > 0.05
    np.testing.assert_allclose(vision["image_features"], theirs, rtol=0, atol=2e-5)
    assert chain.spec.visual_tokens == 10 * theirs.shape[1]
    assert not chain.spec.has_cls
    rows = 5 * theirs.shape[1]
    packed = chain.run("pack", **vision, pack_index=np.arange(rows)[:, None])
    np.testing.assert_array_equal(packed["packed_image_features"], vision["image_features"].reshape(rows, -1))


def test_every_output_of_the_tower(made: tuple[tiny.Tiny, Any, Path]) -> None:
    """What methods read: one value a visual token, the mean over its square of patches."""
    t, model, path = made
    wanted = [name for name in FROM_VISION if name not in FROM_CLIP and not name.startswith("cls_")]
    graph = open_model(open_checkpoint(path)).build_components(
        dtype="float32", lowering=Lowering.for_backend("onnxruntime"), vision_outputs=wanted, shallow_layer=2
    )["vision"]
    link_weights(open_checkpoint(path), path / "engine")
    run = session(graph, path / "engine")
    pixels = tiny.pixels(t, batch=2, seed=3)
    out = dict(zip([o.name for o in run.get_outputs()], run.run(None, {"pixel_values": pixels}), strict=True))
    maps = expected(t, model, pixels, shallow=2)
    assert out.keys() == {*wanted, "image_features"}
    for name in out:
        assert out[name].shape == maps[name].shape, name
        np.testing.assert_allclose(out[name], maps[name], rtol=0, atol=2e-5, err_msg=name)


def test_decoder(made: tuple[tiny.Tiny, Any, Path]) -> None:
    t, model, path = made
    chain = Chain(path)
    ids = np.random.default_rng(t.seed).integers(6, t.vocab, (1, 20))
    embeds = chain.embed(ids)
    with torch.no_grad():
        out = model.model.text_model(inputs_embeds=torch.from_numpy(embeds), use_cache=False)
        theirs = model.lm_head(out.last_hidden_state).numpy()
    np.testing.assert_allclose(chain.decoder(1, 20)(embeds, [0]), theirs, rtol=0, atol=1e-4)


def test_places_in_the_position_table() -> None:
    """For full crops transformers' fractions are 0 … N − 1, but for the grids that are refused."""
    for side in range(1, LARGEST_GRID + 1):
        config = SmolVLMVisionConfig(hidden_size=1, num_attention_heads=1, image_size=side, patch_size=1)
        embeddings = SmolVLMVisionEmbeddings(config)
        with torch.no_grad():
            embeddings.patch_embedding.weight.zero_()
            embeddings.patch_embedding.bias.zero_()
            embeddings.position_embedding.weight.copy_(torch.arange(side * side)[:, None])
            places = embeddings(torch.zeros(1, 3, side, side), torch.ones(1, side, side, dtype=torch.bool))
        plain = places[0, :, 0].tolist() == list(range(side * side))
        assert plain == (side not in MISPLACED), side


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_factor": 5}, r"scale_factor is 5, which trtprune does not support"),
        ({"scale_factor": 3}, r"crops of 4 × 4 patches are no squares of 3 × 3 ones"),
        ({"scale_factor": "2"}, r"scale_factor is '2'"),
        ({"vision_config__image_size": [112, 56]}, r"crops of 112 × 56 pixels are not square"),
        ({"vision_config__image_size": 19 * 14}, r"crops of 19 × 19 patches, whose places"),
        ({"vision_config__image_size": 65 * 14}, r"crops of 65 × 65 patches, whose places"),
        ({"vision_config__hidden_act": "mish"}, r"hidden_act is 'mish'"),
        ({"text_config__model_type": "mistral"}, r"text_config.model_type is 'mistral', which trtprune"),
        (
            {"quantization_config": {"quant_method": "hqq"}},
            r"quantised checkpoints of this kind are not supported \(HQQ",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make(tmp_path, CASES["smolvlm"])
    tiny.edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        _ = open_model(open_checkpoint(tmp_path)).spec


def test_files_of_another_family(tmp_path: Path) -> None:
    make(tmp_path, CASES["smolvlm"])
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    for entry in tokenizer["added_tokens"]:
        entry["content"] = entry["content"].replace("fake_token", "fake")
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"tokenizer.json: has no token '<fake_token_around_image>'"):
        open_model(open_checkpoint(tmp_path))
    add_text_files(tmp_path, CASES["smolvlm"])
    file = tmp_path / "tokenizer_config.json"
    names = json.loads(file.read_text())
    file.write_text(json.dumps(names | {"global_image_token": "<whole>"}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: global_image_token is '<whole>', which"):
        open_model(open_checkpoint(tmp_path))
    file.write_text(json.dumps(names | {"global_image_token": "<global-img>"}))
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    for other in ("CLIPImageProcessor", "GotOcr2ImageProcessorFast"):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"image_processor_type": other}))
        with pytest.raises(CheckpointError, match=f"image processor '{other}' does not fit this model"):
            _ = open_model(open_checkpoint(tmp_path)).processor
