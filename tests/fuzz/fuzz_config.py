"""Configs of a checkpoint: ``config.json`` and the small files that decide with it, up to the graphs."""

from __future__ import annotations

import copy
import functools
import json
import math
import random
from pathlib import Path
from typing import Any

SHORT = 15
FAMILY = "family.txt"
"""Beside the checkpoint's files: the family whose tensors it gets."""
PRELOAD = ("numpy", "trtprune.checkpoint", "trtprune.compiler.plan", "trtprune.models.llava")

CONFIG: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "image_token_index": 5,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
    "tie_word_embeddings": False,
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "num_channels": 3,
        "layer_norm_eps": 1e-5,
        "hidden_act": "quick_gelu",
    },
    "text_config": {
        "model_type": "llama",
        "vocab_size": 160,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
TILED = {
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
}
"""Further families by ``model_type``: an image is several crops."""
INTERNVL_TOKENS = ("context_image_token", "start_image_token", "end_image_token")
PINPOINTS = [[28, 56], [56, 28], [56, 56]]
# Further keys that are read where they are there.
KEYS = {
    "": (
        "quantization_config",
        "auto_map",
        "image_token_id",
        "eos_token_id",
        "build_digest",
        "schema_version",
        "downsample_ratio",
    ),
    "vision_config": (
        "mlp_ratio",
        "use_swiglu_ffn",
        "qkv_bias",
        "vision_use_head",
        "use_qk_norm",
        "norm_type",
        "use_mean_pooling",
        "attention_bias",
    ),
    "text_config": (
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "mlp_bias",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        "quantization_config",
    ),
    "rope_parameters": (
        "type",
        "factor",
        "attention_factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "short_factor",
        "long_factor",
        "truncate",
    ),
}
ROPES = ("default", "dynamic", "linear", "llama3", "longrope", "yarn", "su")
SMALL: dict[str, dict[str, Any]] = {
    "preprocessor_config.json": {
        "do_center_crop": True,
        "crop_size": {"height": 28, "width": 28},
        "size": {"shortest_edge": 28},
    },
    "processor_config.json": {"image_token": "<image>", "image_processor": {"size": {"height": 28, "width": 28}}},
    "tokenizer_config.json": {"added_tokens_decoder": {"5": {"content": "<image>"}}},
    "generation_config.json": {"eos_token_id": [2, 3]},
    "tokenizer.json": {"added_tokens": [{"id": 5, "content": "<image>"}]},
}


def hostile(rng: random.Random) -> Any:
    """A JSON value that somebody hopes nobody checks."""
    sign = rng.choice((1, -1))
    return rng.choice(
        (
            lambda: sign * rng.choice((0, 1, 2, 3, 7, 255, 4096, 2**16, 2**30, 2**31, 2**63, 2**64, 10**400)),
            lambda: sign * rng.choice((0.0, 1e-320, 1e-30, 0.5, 1.0, 1e9, 1e39, 1e308, math.inf)),
            lambda: math.nan,
            lambda: rng.choice((None, True, False)),
            lambda: rng.choice(("", "x", "llama", "dinov2", "siglip_vision_model", "qwen2", "mistral", "full", *ROPES)),
            lambda: rng.choice(("\x1b[2J\x07", "\u202e", "a\nerror: b", "x" * 100_000, "\ud83d\ude00")),
            lambda: [hostile(rng) for _ in range(rng.randrange(4))],
            lambda: [rng.choice((0, 1, -1, 1.0, "x"))] * rng.choice((4, 100, 200_000)),
            lambda: {rng.choice(("", "a", "height", "rope_type", "5")): hostile(rng) for _ in range(rng.randrange(3))},
            lambda: functools.reduce(lambda inner, _: [inner], range(rng.choice((5, 200))), 1),
        )
    )()


def spoil(rng: random.Random, values: dict[str, Any], name: str = "") -> None:
    """Changes one entry somewhere below ``values``."""
    if name == "rope_parameters" and rng.random() < 0.5:
        values["rope_type"] = rng.choice(ROPES)
        values.setdefault("factor", 2.0)
    inner = [key for key, value in values.items() if isinstance(value, dict)]
    if inner and rng.random() < 0.7:
        key = rng.choice(inner)
        spoil(rng, values[key], key)
        return
    key = rng.choice([*values, *KEYS.get(name, ())] or ["a"])
    if rng.random() < 0.1:
        values.pop(key, None)
    else:
        values[key] = hostile(rng)


def make_case(rng: random.Random) -> dict[str, bytes]:
    """Files by name."""
    family = rng.choice(("llava", "llava", *TILED))
    config = _config(family)
    small = copy.deepcopy(SMALL)
    if family == "internvl":
        small["preprocessor_config.json"] = {"size": {"height": 28, "width": 28}, "max_patches": rng.randrange(1, 13)}
        small["tokenizer_config.json"] |= dict(zip(INTERNVL_TOKENS, ("<image>", "<img>", "</img>"), strict=True))
        small["tokenizer.json"]["added_tokens"] += [{"id": 6, "content": "<img>"}, {"id": 7, "content": "</img>"}]
    elif family != "llava":
        name = "".join(part.capitalize() for part in family.split("_"))
        small["preprocessor_config.json"] |= {
            "image_processor_type": f"{name}ImageProcessor",
            "image_grid_pinpoints": rng.choice((PINPOINTS, PINPOINTS[:1])),
        }
    if rng.random() < 0.3:
        config["vision_config"]["model_type"] = rng.choice(("dinov2", "siglip_vision_model"))
    if rng.random() < 0.3:
        config["text_config"]["model_type"] = rng.choice(("mistral", "qwen2"))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        spoil(rng, config)
    files = {"config.json": json.dumps(config).encode("utf-8", "surrogatepass"), FAMILY: family.encode()}
    for name, values in small.items():
        if rng.random() < 0.3:
            continue
        if rng.random() < 0.3:
            spoil(rng, values)
        files[name] = json.dumps(values).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        files[rng.choice(sorted(files.keys() - {FAMILY}))] = raw(rng)
    return files


def _config(family: str) -> dict[str, Any]:
    """The config of a family, with nothing wrong."""
    config = copy.deepcopy(CONFIG)
    if family != "llava":
        config |= {"model_type": family, "architectures": [TILED[family]], "image_grid_pinpoints": PINPOINTS}
    if family == "internvl":
        config |= {"image_token_id": config.pop("image_token_index"), "vision_feature_layer": -1}
        config["vision_config"]["model_type"] = "internvl_vision"
    if family == "llava_onevision":
        config["vision_aspect_ratio"] = "anyres_max_2"
    return config


def raw(rng: random.Random) -> bytes:
    """What is no JSON, or a lot of it."""
    unit = rng.choice((b"{},", b"[],", b'"ab",', b"1e5,", b'{"":0},', b"[", b'{"a":', b"\xff", b" ", b"9"))
    return b'{"a":[' + unit * rng.choice((1, 1000, 3_900_000 // len(unit), 20_000_000 // len(unit))) + b"0]}"


@functools.cache
def _weights(family: str) -> bytes:
    """A safetensors file with the tensors of :func:`_config`, all zeros."""
    import numpy as np
    from safetensors.numpy import save

    from trtprune.checkpoint import Checkpoint
    from trtprune.models import open_model

    shapes = open_model(Checkpoint(Path("/nowhere"), _config(family), {}, (), "x")).required_weights()
    return save({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


def attempt(case: dict[str, bytes], folder: Path) -> None:
    """The checkpoint opened, judged and written as graphs."""
    from trtprune import pruning
    from trtprune.checkpoint import open_checkpoint
    from trtprune.compiler.budget import resolve_budget, resolve_positions
    from trtprune.graph import Lowering
    from trtprune.models import open_model

    for name, data in case.items():
        (folder / name).write_bytes(data)
    (folder / "model.safetensors").write_bytes(_weights(case.get(FAMILY, b"llava").decode()))
    checkpoint = open_checkpoint(folder, check=lambda found: open_model(found).spec and None)
    model = open_model(checkpoint)
    spec = model.spec
    model.check_weights()
    method = pruning.get("adafv" if spec.has_cls else "random")
    options = method.validate_options({})
    resolve_budget(method, spec, keep=None, keep_range=None, options=options)
    resolve_positions(method, spec, None, options)
    checkpoint.digest()
    least, most = model.processor.tokens_range
    for height, width in ((28, 28), (1, 500), (300, 200)):
        assert least <= model.processor.plan(height, width).tokens <= most
    lowering = Lowering.for_backend("onnxruntime")
    for graph in model.build_components(dtype="float32", lowering=lowering).values():
        graph.to_bytes()
