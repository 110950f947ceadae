"""LLaVA checkpoints of the real shapes with made-up weights, written without torch; shared by the scripts here.

``7b`` and ``13b`` are llava-1.5-7b and -13b; ``1b`` has its vision tower and the decoder of TinyLlama-1.1B; ``0.3b`` is
what a CPU answers with in a second; ``135m`` has the demo model's sizes; ``tiny`` is for tests.  ``next-7b`` is
llava-v1.6-mistral-7b; ``next-small`` has its crops and pinpoints, and a tower and a decoder that two cores get through
in seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

BOS, EOS = 1, 2


def _clip(hidden: int, inner: int, layers: int, heads: int, size: int) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": size, "patch_size": 14,
        "projection_dim": 768, "hidden_act": "quick_gelu",
    }  # fmt: skip


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, length: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": length, "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": BOS,
        "eos_token_id": EOS, "tie_word_embeddings": False,
    }  # fmt: skip


def _mistral(*sizes: int) -> dict[str, Any]:
    return {**_llama(*sizes), "model_type": "mistral", "sliding_window": None}


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": (_clip(48, 80, 3, 4, 56), _llama(64, 96, 2, 4, 2, 164, 512)),
    "0.3b": (_clip(512, 2048, 12, 8, 336), _llama(1024, 2816, 16, 16, 16, 32000, 2048)),
    "1b": (_clip(1024, 4096, 24, 16, 336), _llama(2048, 5632, 22, 32, 4, 32064, 2048)),
    "7b": (_clip(1024, 4096, 24, 16, 336), _llama(4096, 11008, 32, 32, 32, 32064, 4096)),
    "13b": (_clip(1024, 4096, 24, 16, 336), _llama(5120, 13824, 40, 40, 40, 32064, 4096)),
    "135m": (_clip(384, 1536, 12, 6, 336), _llama(576, 1536, 30, 9, 3, 49216, 8192)),
    "next-7b": (_clip(1024, 4096, 24, 16, 336), _mistral(4096, 14336, 32, 32, 8, 32064, 32768)),
    "next-small": (_clip(256, 1024, 6, 4, 336), _llama(768, 2048, 12, 12, 4, 8064, 4096)),
    "next-tiny": (_clip(48, 80, 3, 4, 336), _llama(64, 96, 2, 4, 2, 164, 4096)),
}
TILED = ("next-7b", "next-small", "next-tiny")
"""Shapes of LLaVA-NeXT."""
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Name → vision and text section of ``config.json``."""


def config(shape: str) -> dict[str, Any]:
    """``config.json`` of a checkpoint."""
    vision, text = SHAPES[shape]
    return {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
        "image_token_index": text["vocab_size"] - 64, "projector_hidden_act": "gelu", "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default", "vision_config": vision, "text_config": text,
        "torch_dtype": "float16", "tie_word_embeddings": False,
    } | _tiles(shape)  # fmt: skip


def _tiles(shape: str) -> dict[str, Any]:
    """What LLaVA-NeXT's ``config.json`` has beside LLaVA's."""
    if shape not in TILED:
        return {}
    architecture = {"architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next"}
    return architecture | {"image_grid_pinpoints": PINPOINTS, "use_image_newline_parameter": True}


def tensors(shape: str) -> dict[str, list[int]]:
    """Names and shapes as llava-hf/llava-1.5-7b-hf stores them."""
    vision, text = SHAPES[shape]
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    tower = "vision_tower.vision_model."
    shapes: dict[str, list[int]] = {
        tower + "embeddings.class_embedding": [width],
        tower + "embeddings.patch_embedding.weight": [width, 3, patch, patch],
        tower + "embeddings.position_embedding.weight": [(vision["image_size"] // patch) ** 2 + 1, width],
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"{tower}{norm}.{part}": [width] for part in ("weight", "bias")}
    for i in range(vision["num_hidden_layers"]):
        layer = f"{tower}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{name}.weight": [width, width], f"{layer}self_attn.{name}.bias": [width]}
        shapes |= {f"{layer}mlp.fc1.weight": [inner, width], f"{layer}mlp.fc1.bias": [inner]}
        shapes |= {f"{layer}mlp.fc2.weight": [width, inner], f"{layer}mlp.fc2.bias": [width]}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{norm}.{part}": [width] for part in ("weight", "bias")}
    hidden, ffn = text["hidden_size"], text["intermediate_size"]
    cached = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    for name, size in (("linear_1", width), ("linear_2", hidden)):
        shapes |= {f"multi_modal_projector.{name}.weight": [hidden, size]}
        shapes |= {f"multi_modal_projector.{name}.bias": [hidden]}
    for i in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": [hidden, hidden] for name in "qo"}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": [cached, hidden] for name in "kv"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": [ffn, hidden] for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": [hidden, ffn]}
        shapes |= {f"{layer}{norm}.weight": [hidden] for norm in ("input_layernorm", "post_attention_layernorm")}
    if shape in TILED:
        shapes["image_newline"] = [hidden]
    shapes |= {
        "language_model.model.embed_tokens.weight": [text["vocab_size"], hidden],
        "language_model.model.norm.weight": [hidden],
        "language_model.lm_head.weight": [text["vocab_size"], hidden],
    }
    return shapes


def decoder_bytes(shape: str) -> int:
    """Bytes of the decoder's float16 weights, the output projection among them and the embeddings not."""
    return 2 * sum(
        math.prod(dims)
        for name, dims in tensors(shape).items()
        if name.startswith("language_model.") and "embed_tokens" not in name
    )


class _Random:
    """Numbers of a trained model's magnitude, as fast as memory can be copied.

    All tensors are cut from one pool of normal numbers whose length shares no factor with any matrix, so that no two
    rows of a matrix are alike.
    """

    LENGTH = 4_194_301  # the largest prime below 2^22

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._normal = self._rng.standard_normal(self.LENGTH, dtype=np.float32)
        self._pools: dict[tuple[float, float], np.ndarray] = {}

    def chunks(self, name: str, dims: list[int]) -> Iterator[np.ndarray]:
        """The tensor's numbers, float16, in pieces."""
        kind = self._kind(name, dims)
        if kind not in self._pools:
            self._pools[kind] = (kind[0] + kind[1] * self._normal).astype(np.float16)
        pool, left = self._pools[kind], math.prod(dims)
        start = int(self._rng.integers(self.LENGTH))
        while left:
            piece = pool[start : start + left]
            yield piece
            left, start = left - len(piece), 0

    @staticmethod
    def _kind(name: str, dims: list[int]) -> tuple[float, float]:
        """Mean and standard deviation."""
        if "norm" in name and name.endswith("weight"):
            return 1.0, 0.2
        if len(dims) == 1:
            return 0.0, 0.2
        if "embed_tokens" in name or "position_embedding" in name:
            return 0.0, 0.7
        gain = 2.0 if "lm_head" in name else 1.4 if "q_proj" in name or "k_proj" in name else 1.0
        return 0.0, round(gain / math.sqrt(math.prod(dims[1:])), 6)


def write_checkpoint(folder: Path, shape: str = "7b", *, shards: int = 3, seed: int | None = None) -> int:
    """A sharded float16 checkpoint.

    Args:
        folder: An existing folder.
        shape: See :data:`SHAPES`.
        shards: Weight files.
        seed: Of the weights. None: all are zero, and the files sparse, so that they take no disk.

    Returns:
        The bytes of its weights.
    """
    total = write_weights(folder, tensors(shape), shards=shards, seed=seed)
    settings = config(shape)
    (folder / "config.json").write_text(json.dumps(settings))
    _write_texts(folder, settings)
    return total


def write_weights(folder: Path, shapes: dict[str, list[int]], *, shards: int = 3, seed: int | None = None) -> int:
    """The float16 weights of a checkpoint, in shards; arguments and result as of :func:`write_checkpoint`."""
    names, total, weight_map = list(shapes.items()), 0, {}
    random = None if seed is None else _Random(seed)
    for shard in range(shards):
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header, offset = {}, 0
        for name, dims in part:
            size = 2 * math.prod(dims)
            header[name] = {"dtype": "F16", "shape": dims, "data_offsets": [offset, offset + size]}
            offset += size
            weight_map[name] = file
        with (folder / file).open("wb") as stream:
            _write(stream, header, offset, random)
        total += offset
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def checkpoint_in(folder: Path, shape: str) -> Path:
    """The checkpoint of random weights in ``folder``, written if it is not there yet."""
    path = folder / f"checkpoint-{shape}"
    if not (path / "preprocessor_config.json").exists():  # it is written last
        path.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, shape, seed=0)
    return path


def weight_bytes(shape: str) -> int:
    """Bytes of all weights of a checkpoint."""
    return 2 * sum(math.prod(dims) for dims in tensors(shape).values())


def _write(stream: BinaryIO, header: dict[str, Any], size: int, random: _Random | None) -> None:
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    if random is None:
        stream.truncate(8 + len(text) + size)
        return
    for name, entry in header.items():
        for piece in random.chunks(name, entry["shape"]):
            stream.write(piece)


def _write_texts(folder: Path, settings: dict[str, Any]) -> None:
    """A tokenizer that knows one word a token, ``w3`` being token 3; and how pictures become pixels."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = {"<unk>": 0, "<s>": BOS, "</s>": EOS, "<image>": settings["image_token_index"]}
    words = {f"w{i}": i for i in range(3, settings["text_config"]["vocab_size"]) if i != special["<image>"]}
    tokenizer = Tokenizer(models.WordLevel(special | words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    size = settings["vision_config"]["image_size"]
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    if "image_grid_pinpoints" in settings:
        processor |= {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": PINPOINTS}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def prompt(words: int) -> str:
    """A raw prompt of so many text tokens and one picture: half of them before it."""
    before = words // 2
    return " ".join([f"w{3 + i}" for i in range(before)] + ["<image>"] + [f"w{3 + i}" for i in range(before, words)])
