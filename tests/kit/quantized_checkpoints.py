"""Quantised checkpoints from tiny ones, packed bit by bit after the formats' descriptions, beside the same weights in
float32 for transformers.

Sources: ``WQLinear_GEMM.from_linear`` in AutoAWQ 0.2.9, ``pack`` and ``convert_gptq_v2_to_v1_format`` in GPTQModel 7.7,
``pack_to_int32`` in compressed-tensors 0.20.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

Arrays = dict[str, np.ndarray]
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


@dataclass(frozen=True)
class Recipe:
    """How to quantise; the defaults are AWQ's."""

    method: str = "awq"
    """awq, gptq, gptq_v2, pack or int."""
    bits: int = 4
    group: int = 32
    """-1: whole rows."""
    symmetric: bool = False
    act_order: bool = False
    scale: str = "float16"
    seed: int = 0
    more: Callable[[str], bool] = lambda name: False
    """Further matrices, beside those of the decoder's layers."""


def is_layer(name: str) -> bool:
    """Whether a weight is a matrix of a decoder layer."""
    return name.endswith("_proj.weight") and ".layers." in name and "vision" not in name and "visual" not in name


@dataclass(frozen=True)
class Numbers:
    """Integers [in, out] and zero points [groups, out], unsigned; scales [groups, out]; the group of each input."""

    integers: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    index: np.ndarray

    def weight(self, dtype: Any = np.float32) -> np.ndarray:
        """[out, in]: the library's formula in a dtype."""
        difference = self.integers.astype(np.int64) - self.zeros.astype(np.int64)[self.index]
        return (difference.astype(dtype) * self.scales.astype(dtype)[self.index]).astype(dtype).T


def rounded(weight: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> Numbers:
    """Numbers near a weight [out, in]."""
    width = weight.shape[1]
    group = width if recipe.group == -1 else recipe.group
    index = np.arange(width) // group
    if recipe.act_order:
        index = rng.permutation(index)
    most, middle = (1 << recipe.bits) - 1, 1 << (recipe.bits - 1)
    columns = [weight[:, index == g] for g in range(width // group)]
    low = np.array([np.minimum(c.min(axis=1), 0) for c in columns])
    high = np.array([np.maximum(c.max(axis=1), 0) for c in columns])
    if recipe.symmetric:
        scales = np.maximum(-low, high) / (middle - 0.5)
        zeros = np.full(scales.shape, middle)
    else:
        scales = (high - low) / most
        zeros = np.clip(np.rint(-low / scales), 0, most)
    scales = scales.astype(DTYPES[recipe.scale])
    integers = np.rint(weight.T / scales.astype(np.float64)[index] + zeros[index])
    return Numbers(np.clip(integers, 0, most).astype(np.uint8), zeros.astype(np.uint8), scales, index)


def words(values: np.ndarray, bits: int, places: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 [a, ceil(b · bits / 32)] of unsigned numbers [a, b]; place p of a word has number ``places[p]``."""
    count = 32 // bits
    places = places or tuple(range(count))
    padded = np.zeros((len(values), -(-values.shape[1] // count) * count), np.uint64)
    padded[:, : values.shape[1]] = values
    found = np.zeros((len(values), padded.shape[1] // count), np.uint64)
    for place, number in enumerate(places):
        found |= padded[:, number::count] << np.uint64(place * bits)
    return found.astype(np.uint32).view(np.int32)


def tensors(numbers: Numbers, recipe: Recipe) -> Arrays:
    """The tensors of one module."""
    bits, n = recipe.bits, numbers
    if recipe.method == "awq":
        packed = {"qweight": words(n.integers, bits, AWQ_PLACES), "qzeros": words(n.zeros, bits, AWQ_PLACES)}
        return packed | {"scales": n.scales}
    if recipe.method in ("gptq", "gptq_v2"):
        zeros = words(n.zeros, bits).view(np.uint32)
        if recipe.method == "gptq":
            zeros = zeros - np.uint32(0x11111111 if bits == 4 else 0x01010101)
        packed = {"qweight": words(n.integers.T, bits).T, "qzeros": zeros.view(np.int32)}
        return packed | {"scales": n.scales, "g_idx": n.index.astype(np.int32)}
    found: Arrays = {"weight_scale": n.scales.T}
    middle = 1 << (bits - 1)
    if recipe.method == "pack":
        found["weight_packed"] = words(n.integers.T, bits)
        found["weight_shape"] = np.array(n.integers.T.shape, np.int64)
        found |= {} if recipe.symmetric else {"weight_zero_point": words(n.zeros, bits).T}
    else:
        found["weight"] = (n.integers.T.astype(np.int16) - middle).astype(np.int8)
        found |= (
            {} if recipe.symmetric else {"weight_zero_point": (n.zeros.T.astype(np.int16) - middle).astype(np.int8)}
        )
    if recipe.act_order:
        found["weight_g_idx"] = n.index.astype(np.int32)
    return found


def config(recipe: Recipe) -> dict[str, Any]:
    """``quantization_config``."""
    size = {"bits": recipe.bits, "group_size": recipe.group}
    if recipe.method == "awq":
        return {
            **size,
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": ["visual"],
        }
    if recipe.method in ("gptq", "gptq_v2"):
        more = {"desc_act": recipe.act_order, "sym": recipe.symmetric, "checkpoint_format": recipe.method}
        return {**size, "quant_method": "gptq", "damp_percent": 0.1, **more}
    weights = {"num_bits": recipe.bits, "type": "int", "symmetric": recipe.symmetric, "dynamic": False}
    weights |= {"strategy": "channel" if recipe.group == -1 else "group"}
    weights |= {"group_size": None if recipe.group == -1 else recipe.group}
    inputs = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None if recipe.method == "pack" else inputs,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": {"pack": "pack-quantized", "int": "int-quantized"}[recipe.method],
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*visual.*"],
        "kv_cache_scheme": None,
    }


def quantize(source: Path, target: Path, recipe: Recipe, oracle: Path | None = None) -> dict[str, Numbers]:
    """Writes the checkpoint ``source`` quantised, and to ``oracle`` with the same weights in float32.

    Returns:
        The numbers of each quantised matrix, by its name in the file.
    """
    rng = np.random.default_rng(recipe.seed)
    stored: Arrays = safetensors.numpy.load_file(source / "model.safetensors")
    plain, packed, found = dict(stored), {}, {}
    for name, array in stored.items():
        if not (is_layer(name) or recipe.more(name)):
            packed[name] = array
            continue
        numbers = found[name] = rounded(array.astype(np.float32), recipe, rng)
        plain[name] = np.ascontiguousarray(numbers.weight())
        module = name.removesuffix(".weight")
        packed |= {f"{module}.{end}": np.ascontiguousarray(a) for end, a in tensors(numbers, recipe).items()}
    assert found
    for folder, weights in ((target, packed), (oracle, plain)):
        if folder is not None:
            shutil.copytree(source, folder)
            safetensors.numpy.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, "quantization_config": config(recipe)}))
    return found
