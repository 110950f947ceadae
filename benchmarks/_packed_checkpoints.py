"""Qwen2-VL and Qwen2.5-VL checkpoints of the published shapes with made-up weights, written without torch.

``qwen-small`` has Qwen2.5-VL's tower and decoder in small, for runs on two cores; ``qwen-tiny`` is for tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _checkpoints import BOS, EOS, write_weights

VOCAB = {"image": 5, "video": 6, "start": 7, "end": 8}


def _text(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool) -> dict[str, Any]:
    half = hidden // heads // 2
    quarter = half // 4
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "tie_word_embeddings": tied,
        "rope_scaling": {"type": "mrope", "mrope_section": [quarter, (half - quarter) // 2, (half - quarter) // 2]},
    }  # fmt: skip


def _windowed(hidden: int, inner: int, depth: int, out: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": inner, "depth": depth, "num_heads": 16, "out_hidden_size": out,
        "fullatt_block_indexes": [*range(depth // 4 - 1, depth, depth // 4)], "window_size": 112, "patch_size": 14,
    }  # fmt: skip


def _plain(depth: int, out: int) -> dict[str, Any]:
    return {"embed_dim": 1280, "mlp_ratio": 4, "depth": depth, "num_heads": 16, "hidden_size": out, "patch_size": 14}


PACKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2.5-vl-7b": (_windowed(1280, 3420, 32, 3584), _text(3584, 18944, 28, 28, 4, 152064, False)),
    "qwen2.5-vl-3b": (_windowed(1280, 3420, 32, 2048), _text(2048, 11008, 36, 16, 2, 151936, True)),
    "qwen2-vl-7b": (_plain(32, 3584), _text(3584, 18944, 28, 28, 4, 152064, False)),
    "qwen2-vl-2b": (_plain(32, 1536), _text(1536, 8960, 28, 12, 2, 151936, True)),
    "qwen-small": (_windowed(320, 864, 8, 768), _text(768, 2048, 12, 12, 4, 8064, False)),
    "qwen-tiny": (_windowed(64, 96, 4, 128), _text(128, 96, 2, 4, 2, 164, False)),
}
"""Name → vision and text section of ``config.json``."""


def config(shape: str) -> dict[str, Any]:
    """``config.json`` of a checkpoint, with the text section's values beside it, as the hub has them."""
    vision, text = PACKED[shape]
    kind = "qwen2_vl" if "embed_dim" in vision else "qwen2_5_vl"
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[kind]
    return {
        "architectures": [f"{name}ForConditionalGeneration"], "model_type": kind, "vision_config": vision,
        "image_token_id": VOCAB["image"], "video_token_id": VOCAB["video"], "bos_token_id": BOS, "eos_token_id": EOS,
        "vision_start_token_id": VOCAB["start"], "vision_end_token_id": VOCAB["end"], "torch_dtype": "float16", **text,
    }  # fmt: skip


def tensors(shape: str) -> dict[str, list[int]]:
    """Names and shapes as Qwen's repositories store them."""
    vision, text = PACKED[shape]
    gated = "embed_dim" not in vision
    width = vision["hidden_size"] if gated else vision["embed_dim"]
    inner = vision["intermediate_size"] if gated else width * vision["mlp_ratio"]
    hidden = text["hidden_size"]
    norms = ("weight",) if gated else ("weight", "bias")
    shapes: dict[str, list[int]] = {"visual.patch_embed.proj.weight": [width, 3, 2, 14, 14]}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [rows, columns], [rows]

    for i in range(vision["depth"]):
        block = f"visual.blocks.{i}."
        shapes.update({f"{block}{norm}.{part}": [width] for norm in ("norm1", "norm2") for part in norms})
        linear(f"{block}attn.qkv", 3 * width, width)
        linear(f"{block}attn.proj", width, width)
        for name in ("gate_proj", "up_proj") if gated else ("fc1",):
            linear(f"{block}mlp.{name}", inner, width)
        linear(f"{block}mlp.{'down_proj' if gated else 'fc2'}", width, inner)
    shapes |= {f"visual.merger.ln_q.{part}": [width] for part in norms}
    linear("visual.merger.mlp.0", 4 * width, 4 * width)
    linear("visual.merger.mlp.2", hidden, 4 * width)
    cached = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    for i in range(text["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, rows in (("q", hidden), ("k", cached), ("v", cached)):
            linear(f"{layer}self_attn.{name}_proj", rows, hidden)
        shapes[f"{layer}self_attn.o_proj.weight"] = [hidden, hidden]
        shapes |= {f"{layer}mlp.{n}_proj.weight": [text["intermediate_size"], hidden] for n in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = [hidden, text["intermediate_size"]]
        shapes |= {f"{layer}{norm}.weight": [hidden] for norm in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"model.embed_tokens.weight": [text["vocab_size"], hidden], "model.norm.weight": [hidden]}
    return shapes if text["tie_word_embeddings"] else shapes | {"lm_head.weight": [text["vocab_size"], hidden]}


def write_packed(folder: Path, shape: str, *, seed: int | None = None) -> int:
    """A checkpoint; arguments and result as of ``write_checkpoint``."""
    total = write_weights(folder, tensors(shape), seed=seed)
    settings = config(shape)
    (folder / "config.json").write_text(json.dumps(settings))
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056,
        "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    write_texts(folder, settings["vocab_size"], processor)
    return total


def write_texts(folder: Path, vocab: int, processor: dict[str, Any]) -> None:
    """A tokenizer that knows one word a token, ``w9`` being token 9; Qwen's special tokens, and an image processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    marks = {"<|image_pad|>": 5, "<|video_pad|>": 6, "<|vision_start|>": 7, "<|vision_end|>": 8}
    special = {"<unk>": 0, "<s>": BOS, "</s>": EOS, **marks}
    words = {f"w{i}": i for i in range(vocab) if i not in special.values()}
    tokenizer = Tokenizer(models.WordLevel(special | words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    template = (
        "{% for message in messages %}{% for item in message['content'] %}{% if item['type'] == 'image' %}"
        "{{ ' <|vision_start|> <|image_pad|> <|vision_end|> ' }}{% else %}{{ item['text'] }}{% endif %}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}{{ ' w9' }}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
