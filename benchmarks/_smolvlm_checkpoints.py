"""SmolVLM checkpoints of the real shapes with made-up weights, written without torch.

``smolvlm-small`` has the crops of ``smolvlm-256m``, and a tower and a decoder that two cores get through in seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _checkpoints import BOS, EOS, _llama, write_weights

AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"


def _tower(hidden: int, inner: int, layers: int, heads: int, size: int, patch: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "image_size": size, "patch_size": patch,
    }  # fmt: skip


SMOLVLM: dict[str, tuple[dict[str, Any], dict[str, Any], int, int]] = {
    "smolvlm-tiny": (_tower(48, 96, 2, 4, 64, 16), _llama(64, 96, 2, 4, 2, 192, 2048), 2, 256),
    "smolvlm-small": (_tower(256, 1024, 6, 4, 512, 16), _llama(768, 2048, 12, 12, 4, 8064, 8192), 4, 2048),
    "smolvlm-256m": (_tower(768, 3072, 12, 12, 512, 16), _llama(576, 1536, 30, 9, 3, 49280, 8192), 4, 2048),
    "smolvlm-500m": (_tower(768, 3072, 12, 12, 512, 16), _llama(960, 2560, 32, 15, 5, 49280, 8192), 4, 2048),
    "smolvlm-2.2b": (_tower(1152, 4304, 27, 16, 384, 14), _llama(2048, 8192, 24, 32, 32, 49155, 16384), 3, 1536),
    "idefics3-8b": (_tower(1152, 4304, 27, 16, 364, 14), _llama(4096, 14336, 32, 32, 8, 128259, 131072), 2, 1456),
}
"""Name → vision and text section of ``config.json``, scale factor, longest edge of an image."""


def tensors(shape: str) -> dict[str, list[int]]:
    """Names and shapes as transformers stores them."""
    vision, text, side, _ = SMOLVLM[shape]
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    tower = "model.vision_model."
    shapes: dict[str, list[int]] = {
        tower + "embeddings.patch_embedding.weight": [width, 3, patch, patch],
        tower + "embeddings.patch_embedding.bias": [width],
        tower + "embeddings.position_embedding.weight": [(vision["image_size"] // patch) ** 2, width],
    }
    norms = ["post_layernorm"]
    for i in range(vision["num_hidden_layers"]):
        layer = f"encoder.layers.{i}."
        norms += [layer + "layer_norm1", layer + "layer_norm2"]
        linear = {f"self_attn.{name}": [width, width] for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        for name, dims in (linear | {"mlp.fc1": [inner, width], "mlp.fc2": [width, inner]}).items():
            shapes |= {f"{tower}{layer}{name}.weight": dims, f"{tower}{layer}{name}.bias": dims[:1]}
    shapes |= {f"{tower}{norm}.{part}": [width] for norm in norms for part in ("weight", "bias")}
    hidden, ffn = text["hidden_size"], text["intermediate_size"]
    cached = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    shapes["model.connector.modality_projection.proj.weight"] = [hidden, width * side * side]
    for i in range(text["num_hidden_layers"]):
        layer = f"model.text_model.layers.{i}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": [hidden, hidden] for name in "qo"}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": [cached, hidden] for name in "kv"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": [ffn, hidden] for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": [hidden, ffn]}
        shapes |= {f"{layer}{norm}.weight": [hidden] for norm in ("input_layernorm", "post_attention_layernorm")}
    return shapes | {
        "model.text_model.embed_tokens.weight": [text["vocab_size"], hidden],
        "model.text_model.norm.weight": [hidden],
        "lm_head.weight": [text["vocab_size"], hidden],
    }


def write_smolvlm(folder: Path, shape: str, *, seed: int | None = None) -> int:
    """A checkpoint; arguments and result as of ``write_checkpoint``."""
    vision, text, side, longest = SMOLVLM[shape]
    total = write_weights(folder, tensors(shape), seed=seed)
    image = text["vocab_size"] - 64
    config = {
        "architectures": ["SmolVLMForConditionalGeneration"], "model_type": "smolvlm", "image_token_id": image,
        "scale_factor": side, "vision_config": vision, "text_config": text, "torch_dtype": "float16",
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    _write_texts(folder, text["vocab_size"], image)
    edge = {"longest_edge": vision["image_size"]}
    processor = {
        "image_processor_type": "SmolVLMImageProcessor",
        "size": {"longest_edge": longest},
        "max_image_size": edge,
        "resample": 1,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return total


def _write_texts(folder: Path, vocab: int, image: int) -> None:
    """A tokenizer that knows one word a token, ``w3`` being token 3, and the text around images."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = {"<unk>": 0, "<s>": BOS, "</s>": EOS, "<image>": image}
    special |= {text: vocab - 50 + i for i, text in enumerate([AROUND, WHOLE, *places])}
    taken = set(special.values())
    words = {f"w{i}": i for i in range(3, vocab) if i not in taken}
    tokenizer = Tokenizer(models.WordLevel(special | words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
