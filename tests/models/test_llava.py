"""The LLaVA family: what it reads from a checkpoint, what it refuses, which tensors it asks for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.kit import tiny
from tests.kit.runner import Chain
from trtprune.checkpoint import open_checkpoint
from trtprune.components import dinov2
from trtprune.components.config import Section
from trtprune.components.rope import Rope
from trtprune.errors import CheckpointError
from trtprune.graph import Lowering
from trtprune.models import ALIASES, get_family, open_model, supported
from trtprune.models.weights import canonical_tensors

LOWERING = Lowering.for_backend("onnxruntime")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP + Llama checkpoint; copy before changing it."""
    path = tmp_path_factory.mktemp("plain")
    tiny.make(path, tiny.Tiny())
    return path


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "copy"))


def model_of(path: Path):
    checkpoint = open_checkpoint(path)
    return open_model(checkpoint), checkpoint


def check(path: Path, **options) -> list[str]:
    model, _ = model_of(path)
    assert model.spec
    return model.check_weights(**options)


# -- what is read -------------------------------------------------------------------------------------------


def test_spec(plain: Path) -> None:
    model, _ = model_of(plain)
    spec = model.spec
    assert (spec.family, spec.vision_tower, spec.decoder) == ("llava", "clip_vision_model", "llama")
    assert (spec.image_size, spec.patch_grid, spec.visual_tokens) == ((56, 56), (4, 4), 16)
    assert (spec.has_cls, spec.keeps_cls_feature, spec.first_patch) == (True, False, 0)
    assert (spec.hidden_size, spec.vocab_size, spec.max_positions) == (64, 160, 512)
    assert (spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim) == (3, 4, 2, 16)
    assert (spec.image_token, spec.image_token_id, spec.eos_token_ids) == ("<image>", 5, (2,))
    assert (spec.feature_layers, spec.select_strategy, spec.sliding_window) == ((3,), "default", None)


@pytest.mark.parametrize(
    ("tower", "strategy", "layer", "tokens", "first", "has_cls", "keeps"),
    [
        ("clip", "full", -2, 17, -1, True, True),
        ("clip", "default", [0], 16, 0, False, False),
        ("siglip", "full", -1, 16, 0, False, False),
        ("siglip", "default", -1, 15, 1, False, False),
        ("dinov2", "default", [1, -1], 16, 0, True, False),
    ],
)
def test_token_layout(tmp_path, tower, strategy, layer, tokens, first, has_cls, keeps) -> None:
    tiny.make(tmp_path, tiny.Tiny(tower=tower, strategy=strategy, feature_layer=layer, layers=1))
    model, _ = model_of(tmp_path)
    spec = model.spec
    assert (spec.visual_tokens, spec.first_patch) == (tokens, first)
    assert (spec.has_cls, spec.keeps_cls_feature) == (has_cls, keeps)


def test_eos_and_image_token(copy: Path) -> None:
    def spec():
        model, _ = model_of(copy)
        return model.spec

    (copy / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    (copy / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"5": {"content": "<img>"}}}')
    assert (spec().eos_token_ids, spec().image_token) == ((7, 9), "<img>")
    (copy / "generation_config.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    (copy / "tokenizer.json").write_text('{"added_tokens": [{"id": 5, "content": "<pic>"}]}')
    tiny.edit_config(copy, text_config__eos_token_id=3)
    assert (spec().eos_token_ids, spec().image_token) == ((3,), "<pic>")
    tiny.edit_config(copy, text_config__eos_token_id=None)
    assert spec().eos_token_ids == ()


def test_minimal_config_takes_transformers_defaults(tmp_path: Path) -> None:
    """config.json of the checkpoints on the hub leaves out what equals a default."""
    from trtprune.checkpoint import Checkpoint

    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(path=tmp_path, config=config, tensors={}, files=(), id="x")
    spec = open_model(checkpoint).spec
    assert (spec.image_size, spec.visual_tokens, spec.hidden_size, spec.num_layers) == ((336, 336), 576, 4096, 32)
    # Without generation_config.json transformers ends an answer at no token that config.json does not write down.
    assert (spec.num_kv_heads, spec.head_dim, spec.image_token_id, spec.eos_token_ids) == (32, 128, 32000, ())
    for decoder, kv_heads, window in (("mistral", 8, 4096), ("qwen2", 32, None)):
        config["text_config"]["model_type"] = decoder
        spec = open_model(checkpoint).spec
        assert (spec.num_kv_heads, spec.sliding_window) == (kv_heads, window)


def test_siglip_qwen2_config_of_the_hub(tmp_path: Path) -> None:
    """What matters of llava-interleave-qwen-0.5b-hf: 384 is no multiple of 14, tying is set in text_config only."""
    from trtprune.checkpoint import Checkpoint

    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": 151646,
        "text_config": {
            "model_type": "qwen2",
            "eos_token_id": 151645,
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "num_key_value_heads": 16,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "vocab_size": 152000,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "image_size": 384,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 26,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    checkpoint = Checkpoint(path=tmp_path, config=config, tensors={}, files=(), id="x")
    model = open_model(checkpoint)
    spec = model.spec
    assert (spec.patch_grid, spec.visual_tokens, spec.feature_layers) == ((27, 27), 729, (26,))
    assert (spec.eos_token_ids, spec.sliding_window, spec.has_cls) == ((151645,), None, False)
    assert "lm_head.weight" not in model.required_weights()


def test_old_rope_spelling_equals_new() -> None:
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}
    old = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5000.0}
    a, b = (Rope.from_config(Section(c, "text_config"), 16, 64) for c in (new, old))
    np.testing.assert_array_equal(a.inv_freq, b.inv_freq)
    assert (a.kind, a.theta) == (b.kind, b.theta) == ("linear", 5000.0)


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "yarn", "yarn-mscale", "llama3", "longrope"])
def test_rope_parameters_equal_transformers(kind: str) -> None:
    """Bit-near inverse frequencies and the same factor, for sizes of real models."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    factors = {"short_factor": [1 + i / 9 for i in range(64)], "long_factor": [2 + i / 3 for i in range(64)]}
    extra = {
        "default": {},
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 2.0},
        "yarn": {"factor": 8.0, "original_max_position_embeddings": 4096, "beta_fast": 24, "truncate": False},
        "yarn-mscale": {
            "factor": 8.0,
            "original_max_position_embeddings": 4096,
            "mscale": 0.7,
            "mscale_all_dim": 1.0,
        },
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "longrope": {"original_max_position_embeddings": 4096, **factors},
    }[kind]
    name = kind.partition("-")[0]
    values = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": name, "rope_theta": 500000.0, **extra},
    }
    rope = Rope.from_config(Section(values, "text_config"), 128, 32768)
    config = LlamaConfig(**json.loads(json.dumps(values)))
    init = LlamaRotaryEmbedding.compute_default_rope_parameters if name == "default" else ROPE_INIT_FUNCTIONS[name]
    expected, factor = init(config)
    np.testing.assert_allclose(rope.inv_freq, expected.numpy(), rtol=3e-7, atol=0)
    assert rope.scaling == pytest.approx(factor, rel=1e-12)
    if name == "longrope":
        expected, _ = init(config, seq_len=5000)
        np.testing.assert_allclose(rope.long_inv_freq, expected.numpy(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("size", [(84, 84), (28, 70)])
def test_dinov2_takes_the_preprocessors_size(tmp_path: Path, size: tuple[int, int]) -> None:
    """The position table is interpolated in the graph as transformers does at run time."""
    t = tiny.Tiny(tower="dinov2")
    model = tiny.make(tmp_path, t)
    values = {"do_center_crop": True, "crop_size": {"height": size[0], "width": size[1]}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    chain = Chain(tmp_path)
    assert (chain.spec.image_size, chain.spec.patch_grid) == (size, (size[0] // 14, size[1] // 14))
    pixel_values = tiny.pixels(t, size=size)
    with torch.no_grad():
        expected = torch.stack(list(model.get_image_features(torch.from_numpy(pixel_values)).pooler_output)).numpy()
    out = chain.vision(pixel_values)
    np.testing.assert_allclose(out["image_features"], expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(out["cls_attention"].sum(-1), 1, atol=0.9)


def test_size_in_the_processors_file(tmp_path: Path) -> None:
    tiny.make(tmp_path, tiny.Tiny(tower="dinov2", layers=1))
    values = {"image_processor": {"do_center_crop": False, "size": {"height": 70, "width": 70}, "crop_size": {}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(values))
    model, _ = model_of(tmp_path)
    assert model.spec.image_size == (70, 70)


# -- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "t",
    [
        tiny.Tiny(),
        tiny.Tiny(tower="dinov2", decoder="qwen2", tied=True, vision={"use_swiglu_ffn": True}),
        tiny.Tiny(tower="dinov2", old_names=False, vision={"use_swiglu_ffn": True, "qkv_bias": False}),
        tiny.Tiny(tower="siglip", decoder="mistral", projector_bias=False, feature_layer=[0, 2]),
        tiny.Tiny(text={"attention_bias": True, "mlp_bias": True}, feature_layer=-1),
    ],
    ids=["clip", "dinov2-tied", "dinov2-new", "siglip", "biases"],
)
def test_required_weights_are_those_the_graphs_use(tmp_path: Path, t: tiny.Tiny) -> None:
    tiny.make(tmp_path, t)
    model, checkpoint = model_of(tmp_path)
    assert model.check_weights() == []
    graphs = model.build_components(dtype="float32", lowering=LOWERING)
    used = set()
    for g in graphs.values():
        proto = onnx.load_model_from_string(g.to_bytes())
        used |= {i.name for i in proto.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL}
    canonical = canonical_tensors(checkpoint.tensors, dinov2.RENAMES if t.tower == "dinov2" else ())
    required = model.required_weights()
    assert {key for key, info in canonical.items() if info.name in used} == set(required)
    for key, shape in required.items():
        assert tuple(canonical[key].shape) == shape


def test_deeper_vision_layers_are_not_built(plain: Path) -> None:
    model, _ = model_of(plain)
    required = model.required_weights()
    layers = {int(k.split("layers.")[1].split(".")[0]) for k in required if "vision_tower" in k and "layers." in k}
    assert layers == {0, 1, 2}  # four layers, hidden state -2
    assert not any("post_layernorm" in k for k in required)


def rewrite(path: Path, change) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_missing_tensor(copy: Path) -> None:
    rewrite(copy, lambda t: [t.pop(k) for k in list(t) if "layers.1.mlp.up_proj" in k])
    with pytest.raises(CheckpointError, match=r"lacks tensor 'language_model.model.layers.1.mlp.up_proj.weight' \("):
        check(copy)
    rewrite(copy, lambda t: [t.pop(k) for k in list(t) if "layers.0.mlp" in k])
    with pytest.raises(CheckpointError, match=r"lacks tensor .* \(and \d+ more\)"):
        check(copy)


def test_misshapen_tensor(copy: Path) -> None:
    rewrite(copy, lambda t: t.update({"language_model.model.norm.weight": np.ones(63, np.float32)}))
    with pytest.raises(CheckpointError, match=r"'language_model.model.norm.weight' has shape \[63\], config.json asks"):
        check(copy)


def test_unknown_tensor(copy: Path) -> None:
    name = "vision_tower.vision_model.encoder.layers.3.self_attn.lora_A"
    rewrite(copy, lambda t: t.update({name: np.ones(3, np.float32)}))
    with pytest.raises(CheckpointError, match="lora_A' is not part of this architecture") as e:
        check(copy)
    assert "--allow-extra-tensors" in (e.value.flag_hint or "")
    (warning,) = check(copy, allow_extra=True)
    assert "lora_A" in warning
    assert "ignored" in warning


def test_thousands_of_unknown_tensors_take_no_minutes(copy: Path) -> None:
    """Names of a tower's unused layers are looked up, not tried one after the other: 100,000 times 16,000 of them."""
    tiny.edit_config(copy, vision_config__num_hidden_layers=1000, vision_feature_layer=3)
    found = open_checkpoint(copy)
    info = next(iter(found.tensors.values()))
    names = [f"vision_tower.vision_model.encoder.layers.999.self_attn.{100 + i}_proj.weight" for i in range(100_000)]
    many = replace(found, tensors={**found.tensors, **dict.fromkeys(names, info)})
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"is not part of this architecture \(and 99999 more\)"):
        open_model(many).check_weights()
    assert time.process_time() - start < 4


def test_same_weight_under_two_names(copy: Path) -> None:
    rewrite(copy, lambda t: t.update({"lm_head.weight": t["language_model.lm_head.weight"] + 0}))
    with pytest.raises(CheckpointError, match="the same weight under two names"):
        check(copy)


def test_buffers_and_unused_layers_are_no_extra_tensors(copy: Path) -> None:
    def change(t: dict[str, np.ndarray]) -> None:
        t["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
        t["vision_tower.vision_model.embeddings.position_ids"] = np.arange(17)[None]

    rewrite(copy, change)
    assert check(copy) == []


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("language_model.model.norm.weight", "model.language_model.norm.weight"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_tower.vision_model.pre_layrnorm.bias", "model.vision_tower.pre_layrnorm.bias"),
        ("model.vision_tower.vision_model.head.probe", "model.vision_tower.head.probe"),
        ("model.vision_tower.layernorm.bias", "model.vision_tower.layernorm.bias"),
        ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("something.else", "something.else"),
    ],
)
def test_canonical_names(name: str, canonical: str) -> None:
    assert list(canonical_tensors({name: None})) == [canonical]  # type: ignore[dict-item]


# -- what is refused ----------------------------------------------------------------------------------------

BAD_CONFIGS = {
    "vision_config__model_type=pixtral": "supported: clip_vision_model, dinov2, siglip_vision_model",
    "text_config__model_type=gemma2": "supported: llama, mistral, qwen2, qwen3",
    "text_config__hidden_act=mish": "supported: gelu, gelu_new",
    "vision_config__hidden_act=laplace": "supported: gelu, gelu_new",
    "projector_hidden_act=mish": "supported: gelu, gelu_new",
    "vision_feature_select_strategy=cls_patch": "supported: default, full",
    "vision_feature_layer=-6": "expected integers from -5 to 4",
    "vision_feature_layer=[]": "lists 0 layers",
    "vision_feature_layer=x": "expected integers from -5 to 4",
    'text_config__rope_parameters={"rope_type": "proportional"}': "supported: default, dynamic, linear, llama3",
    'text_config__rope_parameters={"rope_type": "linear"}': "text_config.rope_parameters.factor is missing",
    'text_config__rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}': "supported: 1.0",
    'text_config__rope_parameters={"full_attention": {"rope_type": "default"}}': "one rope for all layers",
    "text_config__num_attention_heads=0": "expected an integer of at least 1",
    "text_config__num_hidden_layers=2000000000": "expected at most 1000",
    "vision_config__num_hidden_layers=1001": "expected at most 1000",
    "text_config__num_attention_heads=true": "expected an integer of at least 1",
    "text_config__num_key_value_heads=3": "does not divide 4 heads",
    "text_config__rms_norm_eps=x": "expected a positive, finite number",
    "vision_config__image_size=[56]": r"expected an integer from 1 to 16384, or \[height, width\]",
    "vision_config__image_size=16380": "more than 65536 patches",
    "vision_config__image_size=1073741824": "expected an integer from 1 to 16384",
    "vision_config__image_size=7": "smaller than a patch",
    "vision_config=7": "vision_config is 7, expected an object",
    'vision_config__model_type=["clip_vision_model"]': "supported: clip_vision_model, dinov2, siglip_vision_model",
    'vision_config__hidden_act={"gelu": 1}': "supported: gelu, gelu_new",
    "projector_hidden_act=[[]]": "supported: gelu, gelu_new",
    "text_config__head_dim=1073741824": "head_dim is 1073741824, expected at most 4096",
    "text_config__rms_norm_eps=Infinity": "rms_norm_eps is Infinity, expected a positive, finite number",
    "vision_config__layer_norm_eps=NaN": "layer_norm_eps is NaN, expected a positive, finite number",
    f"vision_config__layer_norm_eps=1{'0' * 4000}": "expected a positive, finite number",
    'text_config__rope_parameters={"rope_theta": Infinity}': "rope_theta is Infinity, expected a positive, finite",
    'text_config__rope_parameters={"rope_theta": 1e39}': "rope_theta is 1e.39, expected a positive, finite number",
    'text_config__rope_parameters={"rope_type": "linear", "factor": Infinity}': "rope_parameters.factor is Infinity",
    'text_config__rope_parameters={"rope_type": "linear", "factor": 1e-300}': "rope_parameters: .* no finite",
    'text_config__rope_parameters={"rope_type": "longrope", "short_factor": [1, 1, 1, 1, 1, 1, 1, "x"]}': (
        r"rope_parameters.short_factor\[7\] is 'x', expected a positive, finite number"
    ),
    'text_config__rope_parameters={"rope_type": "longrope", "short_factor": 5}': (
        "rope_parameters.short_factor is 5, expected a list of 8 numbers"
    ),
    'text_config__rope_parameters={"rope_type": "yarn", "factor": 2.0, "beta_fast": "x"}': "beta_fast is 'x'",
    'text_config__rope_parameters={"rope_type": "yarn", "rope_theta": 1.0}': "rope_parameters: .* no finite",
    'text_config__rope_parameters={"rope_type": ["linear"]}': "supported: default, dynamic, linear, llama3",
    'quantization_config={"bits": 4}': "quantised checkpoints of this kind are not supported",
    "image_token_index=-1": "expected an integer of at least 0",
}


@pytest.mark.parametrize("change", BAD_CONFIGS)
def test_unsupported_config_names_key_and_choices(copy: Path, change: str) -> None:
    name, _, text = change.partition("=")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    tiny.edit_config(copy, **{name: value})
    with pytest.raises(CheckpointError, match=BAD_CONFIGS[change]) as e:
        check(copy)
    assert name.replace("__", ".").split(".")[-1] in str(e.value) or "patches" in str(e.value)
    assert "\n" not in str(e.value)
    assert e.value.hint


def test_qwen2_layer_types(tmp_path: Path) -> None:
    tiny.make(tmp_path, tiny.Tiny(decoder="qwen2"))
    tiny.edit_config(tmp_path, text_config__layer_types=["full_attention", "chunked_attention", "full_attention"])
    with pytest.raises(CheckpointError, match=r"chunked_attention.*full_attention, sliding_attention"):
        check(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava"},
        {"architectures": ["Qwen2AudioForConditionalGeneration"]},
        {"model_type": "llava_next_video"},
        {},
    ],
    ids=str,
)
def test_unsupported_architecture(config: dict) -> None:
    with pytest.raises(CheckpointError, match="which trtprune does not support") as e:
        get_family(config)
    assert e.value.hint.endswith("supported: " + ", ".join(row["family"] for row in supported()))


@pytest.mark.parametrize(
    "value", ["LlavaForConditionalGeneration", 5, {"LlavaForConditionalGeneration": 1}, [["x"]], "", [5]], ids=str
)
def test_architectures_is_a_list_of_names(value: object) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: architectures is .*, expected a list of names") as e:
        get_family({"architectures": value, "model_type": "llava"})
    assert e.value.hint


def test_clip_refuses_another_picture_size(copy: Path) -> None:
    (copy / "preprocessor_config.json").write_text('{"crop_size": {"height": 70, "width": 70}}')
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json makes 70×70 pictures"):
        check(copy)


def test_supported_and_aliases() -> None:
    rows = supported()
    architectures = [row["architecture"] for row in rows]
    assert architectures[0] == "LlavaForConditionalGeneration"
    assert len({*architectures}) == len({row["family"] for row in rows}) == len(rows)
    assert json.loads(json.dumps(rows)) == rows
    assert ALIASES["llava-1.5-7b"] == "llava-hf/llava-1.5-7b-hf"


def test_no_torch_is_imported() -> None:
    code = "import sys, trtprune.models.llava; print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]
