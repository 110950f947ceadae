"""Qwen3-VL checkpoints of the published shapes with made-up weights, written without torch.

``qwen3-small`` has the tower and decoder in small, for runs on two cores; ``qwen3-tiny`` is for tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _checkpoints import BOS, EOS, write_weights
from _packed_checkpoints import VOCAB, write_texts


def _vision(hidden: int, inner: int, depth: int, heads: int, out: int, levels: list[int]) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": inner, "depth": depth, "num_heads": heads, "out_hidden_size": out,
        "deepstack_visual_indexes": levels, "num_position_embeddings": 2304, "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "hidden_act": "gelu_pytorch_tanh", "model_type": "qwen3_vl",
    }  # fmt: skip


def _text(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, dim: int, vocab: int) -> dict[str, Any]:
    rows = dim // 2 * 5 // 16
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": dim, "vocab_size": vocab, "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6, "rope_theta": 5e6, "model_type": "qwen3_vl_text",
        "rope_scaling": {
            "mrope_interleaved": True, "mrope_section": [dim // 2 - 2 * rows, rows, rows], "rope_type": "default",
        },
    }  # fmt: skip


QWEN3: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "qwen3-vl-8b": (
        _vision(1152, 4304, 27, 16, 4096, [8, 16, 24]),
        _text(4096, 12288, 36, 32, 8, 128, 151936),
        False,
    ),
    "qwen3-vl-4b": (_vision(1024, 4096, 24, 16, 2560, [5, 11, 17]), _text(2560, 9728, 36, 32, 8, 128, 151936), True),
    "qwen3-vl-2b": (_vision(1024, 4096, 24, 16, 2048, [5, 11, 17]), _text(2048, 6144, 28, 16, 8, 128, 151936), True),
    "qwen3-small": (_vision(256, 1024, 8, 8, 768, [1, 3, 5]), _text(768, 2048, 12, 12, 4, 64, 8064), False),
    "qwen3-tiny": (_vision(64, 96, 4, 4, 128, [0, 2]), _text(128, 96, 2, 4, 2, 32, 164), False),
}
"""Name → vision and text section of ``config.json``, and whether the word embeddings are tied."""


def config(shape: str) -> dict[str, Any]:
    """``config.json`` of a checkpoint."""
    vision, text, tied = QWEN3[shape]
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "vision_config": vision,
        "text_config": {**text, "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": tied},
        "image_token_id": VOCAB["image"], "video_token_id": VOCAB["video"], "vision_start_token_id": VOCAB["start"],
        "vision_end_token_id": VOCAB["end"], "torch_dtype": "float16", "tie_word_embeddings": tied,
    }  # fmt: skip


def tensors(shape: str) -> dict[str, list[int]]:
    """Names and shapes as Qwen's repositories store them."""
    vision, text, tied = QWEN3[shape]
    width, inner, hidden = vision["hidden_size"], vision["intermediate_size"], text["hidden_size"]
    tower, patch = "model.visual.", vision["patch_size"]
    shapes: dict[str, list[int]] = {
        f"{tower}patch_embed.proj.weight": [width, 3, 2, patch, patch],
        f"{tower}patch_embed.proj.bias": [width],
        f"{tower}pos_embed.weight": [vision["num_position_embeddings"], width],
    }

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{tower}{name}.weight"], shapes[f"{tower}{name}.bias"] = [rows, columns], [rows]

    def norm(name: str, size: int) -> None:
        shapes.update({f"{tower}{name}.{part}": [size] for part in ("weight", "bias")})

    for i in range(vision["depth"]):
        block = f"blocks.{i}."
        norm(f"{block}norm1", width)
        norm(f"{block}norm2", width)
        linear(f"{block}attn.qkv", 3 * width, width)
        linear(f"{block}attn.proj", width, width)
        linear(f"{block}mlp.linear_fc1", inner, width)
        linear(f"{block}mlp.linear_fc2", width, inner)
    levels = range(len(vision["deepstack_visual_indexes"]))
    for name, size in {"merger": width, **{f"deepstack_merger_list.{i}": 4 * width for i in levels}}.items():
        norm(f"{name}.norm", size)
        linear(f"{name}.linear_fc1", 4 * width, 4 * width)
        linear(f"{name}.linear_fc2", hidden, 4 * width)
    return shapes | _decoder(text) | ({} if tied else {"lm_head.weight": [text["vocab_size"], hidden]})


def _decoder(text: dict[str, Any]) -> dict[str, list[int]]:
    hidden, inner, dim = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    queries, cached = text["num_attention_heads"] * dim, text["num_key_value_heads"] * dim
    model = "model.language_model."
    shapes: dict[str, list[int]] = {}
    for i in range(text["num_hidden_layers"]):
        layer = f"{model}layers.{i}."
        for name, rows in (("q", queries), ("k", cached), ("v", cached)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = [rows, hidden]
        shapes[f"{layer}self_attn.o_proj.weight"] = [hidden, queries]
        shapes |= {f"{layer}self_attn.{name}_norm.weight": [dim] for name in "qk"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": [inner, hidden] for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = [hidden, inner]
        shapes |= {f"{layer}{norm}.weight": [hidden] for norm in ("input_layernorm", "post_attention_layernorm")}
    return shapes | {f"{model}embed_tokens.weight": [text["vocab_size"], hidden], f"{model}norm.weight": [hidden]}


def write_qwen3(folder: Path, shape: str, *, seed: int | None = None) -> int:
    """A checkpoint; arguments and result as of ``write_checkpoint``."""
    total = write_weights(folder, tensors(shape), seed=seed)
    settings = config(shape)
    (folder / "config.json").write_text(json.dumps(settings))
    processor = {
        "image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16, "temporal_patch_size": 2,
        "merge_size": 2, "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    write_texts(folder, settings["text_config"]["vocab_size"], processor)
    return total
