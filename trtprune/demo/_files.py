"""The small files of the demo checkpoint: configs, chat template, image processor."""

from __future__ import annotations

from typing import Any

from trtprune.demo import _text, _vision

IMAGE_SIZE = 336
GRID = IMAGE_SIZE // _vision.PATCH

# ChatML as SmolLM2 was tuned on, without its default system message (the demo was trained without, and it would cost
# 20 tokens), and LLaVA's order: images first, one line each.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def config() -> dict[str, Any]:
    """config.json of a ``LlavaForConditionalGeneration``."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "float16",
        "image_seq_length": GRID * GRID,
        "image_token_index": _text.IMAGE_TOKEN_ID,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": True,
        # The last but one layer, as in LLaVA: its output needs no final norm.
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "head_dim": _text.HIDDEN // _text.HEADS,
            "hidden_act": "silu",
            "hidden_size": _text.HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": _text.INTERMEDIATE,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "num_attention_heads": _text.HEADS,
            "num_hidden_layers": _text.LAYERS,
            "num_key_value_heads": _text.KV_HEADS,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "rope_theta": 100000.0,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": _text.PADDED_VOCAB,
        },
        "vision_config": {
            "architectures": ["Dinov2Model"],
            "model_type": "dinov2",
            "attention_probs_dropout_prob": 0.0,
            "drop_path_rate": 0.0,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "hidden_size": _vision.HIDDEN,
            "image_size": IMAGE_SIZE,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-6,
            "layerscale_value": 1.0,
            "mlp_ratio": 4,
            "num_attention_heads": _vision.HEADS,
            "num_channels": 3,
            "num_hidden_layers": _vision.LAYERS,
            "patch_size": _vision.PATCH,
            "qkv_bias": True,
            "use_mask_token": True,
            "use_swiglu_ffn": False,
        },
    }


def generation_config() -> dict[str, Any]:
    """generation_config.json: greedy, and the end of a chat turn ends the answer."""
    return {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "do_sample": False}


def preprocessor_config() -> dict[str, Any]:
    """preprocessor_config.json: the whole picture to 336 x 336, bicubic, ImageNet statistics."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


def processor_config() -> dict[str, Any]:
    """processor_config.json: how many placeholders an image becomes (the CLS token is added, then dropped)."""
    return {
        "processor_class": "LlavaProcessor",
        "image_token": _text.IMAGE_TOKEN,
        "num_additional_image_tokens": 1,
        "patch_size": _vision.PATCH,
        "vision_feature_select_strategy": "default",
    }


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json for the fast tokenizer beside it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "LlavaProcessor",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "image_token": _text.IMAGE_TOKEN,
        "extra_special_tokens": {"image_token": _text.IMAGE_TOKEN},
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
    }
