"""Small random LLaVA checkpoints, made by transformers and written with ``save_pretrained``.

``make(path, ...)`` varies everything the builder has to cope with.  Weights are drawn so that logits differ widely:
transformers' own initialisation gives nearly constant ones, which hide mistakes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)

IMAGE_TOKEN_ID = 5
BOS, EOS, PAD = 1, 2, 0
TOWERS = ("clip", "dinov2", "siglip")
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
VIDEO_TOKEN_ID, START_TOKEN_ID, END_TOKEN_ID = 101, 102, 103
"""Further special tokens of the families with a packed tower."""
FAMILIES = {
    "llava": (transformers.LlavaConfig, transformers.LlavaForConditionalGeneration),
    "llava-next": (transformers.LlavaNextConfig, transformers.LlavaNextForConditionalGeneration),
    "llava-onevision": (transformers.LlavaOnevisionConfig, transformers.LlavaOnevisionForConditionalGeneration),
    "internvl": (transformers.InternVLConfig, transformers.InternVLForConditionalGeneration),
    "qwen2-vl": (transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration),
    "qwen2.5-vl": (transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration),
    "qwen3-vl": (transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration),
    "smolvlm": (transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration),
    "idefics3": (transformers.Idefics3Config, transformers.Idefics3ForConditionalGeneration),
}
PACKED = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")


SMOLVLM_TOWERS = {"smolvlm": SmolVLMVisionConfig, "idefics3": Idefics3VisionConfig}
BY_ID = ("internvl", *SMOLVLM_TOWERS)
"""Families whose config has ``image_token_id``."""


@dataclass(frozen=True)
class Tiny:
    """What to make; the defaults are a CLIP + Llama model of 16 visual tokens."""

    family: str = "llava"
    """Key of :data:`FAMILIES`."""
    tower: str = "clip"
    decoder: str = "llama"
    seed: int = 0
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    layers: int = 3
    vocab: int = 160
    vision_hidden: int = 48
    vision_layers: int = 4
    image_size: int | tuple[int, int] = 56
    patch_size: int = 14
    tied: bool = False
    dtype: str = "float32"
    shards: bool = False
    old_names: bool = True
    """Weight names of transformers 4 (``language_model.model…``), which save_pretrained writes by default."""
    feature_layer: int | list[int] = -2
    strategy: str = "default"
    projector_bias: bool = True
    projector_act: str = "gelu"
    rope: dict[str, Any] | None = None
    max_positions: int = 512
    text: dict[str, Any] = field(default_factory=dict)
    """Further ``text_config`` entries."""
    vision: dict[str, Any] = field(default_factory=dict)
    """Further ``vision_config`` entries."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further entries of ``config.json``."""


def vision_config(t: Tiny) -> Any:
    common: dict[str, Any] = {
        "hidden_size": t.vision_hidden,
        "num_hidden_layers": t.vision_layers,
        "num_attention_heads": 4,
        "image_size": t.image_size,
        "patch_size": t.patch_size,
    }
    if t.tower == "dinov2":
        return transformers.Dinov2Config(**{**common, "mlp_ratio": 2, **t.vision})
    if t.tower == "internvl":
        return transformers.InternVLVisionConfig(**{**common, "intermediate_size": 80, **t.vision})
    kind = {
        "clip": transformers.CLIPVisionConfig,
        "siglip": transformers.SiglipVisionConfig,
        "smolvlm": SMOLVLM_TOWERS.get(t.family),
    }[t.tower]
    return kind(**{**common, "intermediate_size": 80, **t.vision})


def text_config(t: Tiny) -> Any:
    kind = {
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }[t.decoder]
    values: dict[str, Any] = {
        "vocab_size": t.vocab,
        "hidden_size": t.hidden,
        "intermediate_size": 96,
        "num_hidden_layers": t.layers,
        "num_attention_heads": t.heads,
        "num_key_value_heads": t.kv_heads,
        "max_position_embeddings": t.max_positions,
        "tie_word_embeddings": t.tied,
        "rms_norm_eps": 1e-5,
        "rope_parameters": t.rope or {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    if t.decoder == "qwen3":
        values["head_dim"] = t.hidden // t.heads + 8  # a head's width is its own there
    return kind(**{**values, **t.text})


def projected_config(t: Tiny) -> Any:
    """The configuration of a family whose tower reads crops of one size."""
    projector: dict[str, Any] = {
        "vision_feature_layer": t.feature_layer,
        "vision_feature_select_strategy": t.strategy,
        "multimodal_projector_bias": t.projector_bias,
        "projector_hidden_act": t.projector_act,
    }
    return FAMILIES[t.family][0](
        vision_config=vision_config(t),
        text_config=text_config(t),
        **{"image_token_id" if t.family in BY_ID else "image_token_index": IMAGE_TOKEN_ID},
        **({} if t.family in SMOLVLM_TOWERS else projector),
        tie_word_embeddings=t.tied,
        **t.more,
    )


def mrope_section(t: Tiny) -> list[int]:
    """Frequencies of time, row and column, half a head in all."""
    quarter = t.hidden // t.heads // 8
    if t.family != "qwen3-vl":
        return [2 * quarter, quarter, quarter]
    half = t.text.get("head_dim", t.hidden // t.heads + 8) // 2
    return [half - 2 * (half // 3), half // 3, half // 3]


def packed_config(t: Tiny) -> Any:
    """The configuration of a family whose tower reads images of any size."""
    vision: dict[str, Any] = {"depth": t.vision_layers, "num_heads": 3, "patch_size": t.patch_size}
    if t.family == "qwen2.5-vl":
        # Windows of 2 × 2 visual tokens; full attention in every other layer.
        vision |= {"hidden_size": t.vision_hidden, "out_hidden_size": t.hidden, "intermediate_size": 80}
        vision |= {"window_size": 4 * t.patch_size, "fullatt_block_indexes": [*range(1, t.vision_layers, 2)]}
    elif t.family == "qwen3-vl":
        # A table of 5 × 5 positions; a level behind every layer but the last, of at most as many as the decoder has.
        vision |= {"hidden_size": t.vision_hidden, "out_hidden_size": t.hidden, "intermediate_size": 80}
        levels = [*range(t.vision_layers - 1)][: min(t.layers, 3)]
        vision |= {"num_position_embeddings": 25, "deepstack_visual_indexes": levels}
    else:
        vision |= {"embed_dim": t.vision_hidden, "hidden_size": t.hidden, "mlp_ratio": 2}
    decoder = "qwen3" if t.family == "qwen3-vl" else "qwen2"
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": mrope_section(t)}
    text = text_config(dataclasses.replace(t, decoder=decoder, rope=rope)).to_dict()
    text = {name: value for name, value in text.items() if name not in ("model_type", "architectures")}
    return FAMILIES[t.family][0](
        vision_config={**vision, **t.vision},
        text_config={**text, **t.text},
        image_token_id=IMAGE_TOKEN_ID,
        video_token_id=VIDEO_TOKEN_ID,
        vision_start_token_id=START_TOKEN_ID,
        vision_end_token_id=END_TOKEN_ID,
        tie_word_embeddings=t.tied,
        **t.more,
    )


def draw(model: torch.nn.Module, seed: int, tied: bool) -> None:
    """Random weights of a trained model's magnitude."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if (("norm" in name or "ln_q" in name) and name.endswith("weight")) or "lambda" in name:
                p.copy_(1 + 0.2 * noise)
            elif name.endswith("image_newline"):
                p.copy_(0.7 * noise)
            elif p.ndim == 1:
                p.copy_(0.2 * noise)
            elif tied and "embed_tokens" in name:
                p.copy_(0.3 * noise)  # it is the output projection too
            elif "embed_tokens" in name or "position_embedding" in name or "cls_token" in name or "pos_embed" in name:
                p.copy_(0.7 * noise)
            else:
                gain = 2.0 if "lm_head" in name else 1.4 if "q_proj" in name or "k_proj" in name else 1.0
                p.copy_(gain * noise / np.sqrt(p[0].numel()))


def make(path: Path, t: Tiny | None = None) -> Any:
    """Write the checkpoint and return it as transformers reads it, in float32 with eager attention."""
    t = t or Tiny()
    model = FAMILIES[t.family][1](packed_config(t) if t.family in PACKED else projected_config(t))
    draw(model, t.seed, t.tied)
    model.tie_weights()
    model.to(getattr(torch, t.dtype))
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = PAD
    size = {"max_shard_size": "100KB"} if t.shards else {}
    model.save_pretrained(path, save_original_format=t.old_names, **size)
    return load(path)


def load(path: Path) -> Any:
    """The checkpoint in transformers: float32 compute, eager attention (which can return attention maps)."""
    return transformers.AutoModelForImageTextToText.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def edit_config(path: Path, **changes: Any) -> None:
    """Set keys of ``config.json``; dotted names reach into sections, ``...`` removes."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    for name, value in changes.items():
        *sections, key = name.split("__")
        target = config
        for section in sections:
            target = target[section]
        if value is ...:
            target.pop(key, None)
        else:
            target[key] = value
    file.write_text(json.dumps(config))


def pixels(t: Tiny, batch: int = 2, seed: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
    """Smooth random pictures, [batch, 3, H, W] float32: white noise would make all patches alike."""
    if size is None:
        size = (t.image_size, t.image_size) if isinstance(t.image_size, int) else tuple(t.image_size)
    coarse = torch.randn(batch, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").numpy()
