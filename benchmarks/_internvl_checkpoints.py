"""Checkpoints with InternVL3's published shapes (OpenGVLab/InternVL3-*-hf) and made-up weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _checkpoints import BOS, EOS, write_weights

IMAGE, START, END = 5, 6, 7


def _vision(hidden: int, inner: int, layers: int, heads: int, size: int) -> dict[str, Any]:
    return {
        "model_type": "internvl_vision", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "image_size": [size, size], "patch_size": [14, 14], "attention_bias": True,
        "layer_norm_eps": 1e-6, "norm_type": "layer_norm", "use_qk_norm": False, "use_mean_pooling": True,
        "hidden_act": "gelu",
    }  # fmt: skip


def _text(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, length: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": length, "rms_norm_eps": 1e-6, "hidden_act": "silu", "bos_token_id": BOS,
        "eos_token_id": EOS, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": False,
    }  # fmt: skip


INTERNVL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "internvl-tiny": (_vision(48, 80, 3, 4, 56), _text(64, 96, 2, 4, 2, 164, 2048)),
    "internvl-small": (_vision(256, 1024, 6, 4, 448), _text(768, 2048, 12, 12, 4, 8064, 8192)),
    "internvl3-1b": (_vision(1024, 4096, 24, 16, 448), _text(896, 4864, 24, 14, 2, 151674, 32768)),
    "internvl3-2b": (_vision(1024, 4096, 24, 16, 448), _text(1536, 8960, 28, 12, 2, 151674, 32768)),
    "internvl3-8b": (_vision(1024, 4096, 24, 16, 448), _text(3584, 18944, 28, 28, 4, 151674, 32768)),
}


def config(shape: str) -> dict[str, Any]:
    """``config.json`` of a checkpoint."""
    vision, text = INTERNVL[shape]
    return {
        "architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl", "image_token_id": IMAGE,
        "downsample_ratio": 0.5, "projector_hidden_act": "gelu", "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default", "vision_config": vision, "text_config": text,
        "torch_dtype": "float16", "tie_word_embeddings": False,
    }  # fmt: skip


def tensors(shape: str) -> dict[str, list[int]]:
    """Names and shapes as the -hf repositories store them."""
    vision, text = INTERNVL[shape]
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    patches = (vision["image_size"][0] // 14) ** 2
    shapes: dict[str, list[int]] = {
        "vision_tower.embeddings.cls_token": [1, 1, width],
        "vision_tower.embeddings.patch_embeddings.projection.weight": [width, 3, 14, 14],
        "vision_tower.embeddings.patch_embeddings.projection.bias": [width],
        "vision_tower.embeddings.position_embeddings": [1, patches + 1, width],
    }
    for i in range(vision["num_hidden_layers"]):
        layer = f"vision_tower.encoder.layer.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "projection_layer"):
            shapes |= {f"{layer}attention.{name}.weight": [width, width], f"{layer}attention.{name}.bias": [width]}
        shapes |= {f"{layer}mlp.fc1.weight": [inner, width], f"{layer}mlp.fc1.bias": [inner]}
        shapes |= {f"{layer}mlp.fc2.weight": [width, inner], f"{layer}mlp.fc2.bias": [width]}
        for norm in ("layernorm_before", "layernorm_after"):
            shapes |= {f"{layer}{norm}.{part}": [width] for part in ("weight", "bias")}
        shapes |= {f"{layer}lambda_{number}": [width] for number in (1, 2)}
    hidden, ffn = text["hidden_size"], text["intermediate_size"]
    shapes |= {f"multi_modal_projector.layer_norm.{part}": [4 * width] for part in ("weight", "bias")}
    for name, size in (("linear_1", 4 * width), ("linear_2", hidden)):
        shapes |= {f"multi_modal_projector.{name}.weight": [hidden, size]}
        shapes |= {f"multi_modal_projector.{name}.bias": [hidden]}
    cached = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    for i in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}."
        for name, rows in (("q", hidden), ("k", cached), ("v", cached)):
            shapes |= {
                f"{layer}self_attn.{name}_proj.weight": [rows, hidden],
                f"{layer}self_attn.{name}_proj.bias": [rows],
            }
        shapes |= {f"{layer}self_attn.o_proj.weight": [hidden, hidden]}
        shapes |= {f"{layer}mlp.{name}_proj.weight": [ffn, hidden] for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": [hidden, ffn]}
        shapes |= {f"{layer}{norm}.weight": [hidden] for norm in ("input_layernorm", "post_attention_layernorm")}
    table = [text["vocab_size"], hidden]
    shapes |= {"language_model.model.embed_tokens.weight": table, "language_model.model.norm.weight": [hidden]}
    return shapes | {"language_model.lm_head.weight": table}


def write_internvl(folder: Path, shape: str, *, seed: int | None = None) -> int:
    """A checkpoint; arguments and result as of ``write_checkpoint``."""
    total = write_weights(folder, tensors(shape), seed=seed)
    settings = config(shape)
    (folder / "config.json").write_text(json.dumps(settings))
    _write_texts(folder, settings)
    return total


def _write_texts(folder: Path, settings: dict[str, Any]) -> None:
    """A tokenizer that knows one word a token, ``w9`` being token 9; InternVL's special tokens and processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = {"<unk>": 0, "<s>": BOS, "</s>": EOS, "<IMG_CONTEXT>": IMAGE, "<img>": START, "</img>": END, "<video>": 8}
    words = {f"w{i}": i for i in range(settings["text_config"]["vocab_size"]) if i not in special.values()}
    tokenizer = Tokenizer(models.WordLevel(special | words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    marks = {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>"}
    named = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    extra = {"extra_special_tokens": marks | {"video_token": "<video>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | extra))
    size = settings["vision_config"]["image_size"][0]
    processor = {
        "image_processor_type": "GotOcr2ImageProcessorFast", "size": {"height": size, "width": size},
        "min_patches": 1, "max_patches": 12, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    length = {"image_seq_length": (size // 28) ** 2, "processor_class": "InternVLProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(length))
    template = (
        "{% for message in messages %}{% for item in message['content'] %}{% if item['type'] == 'image' %}"
        "{{ ' <IMG_CONTEXT> ' }}{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' w9' }}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
