"""Quantised checkpoints in builds: answers equal those of transformers with the dequantised weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtprune
from tests.kit import tiny
from tests.kit.quantized_checkpoints import Recipe, quantize
from tests.kit.runtime_kit import Kit, picture, record
from tests.kit.tiny import Tiny

TOKENS = 32
AWQ = Recipe()
RECIPES = {
    "awq": AWQ,
    "gptq": Recipe("gptq", symmetric=True),
    "gptq-asymmetric": Recipe("gptq", group=16),
    "gptq-v2": Recipe("gptq_v2"),
    "gptq-act-order": Recipe("gptq", symmetric=True, act_order=True),
    "gptq-int8": Recipe("gptq", bits=8, symmetric=True),
    "gptq-rows": Recipe("gptq", group=-1),
    "pack-int4": Recipe("pack", symmetric=True, scale="bfloat16"),
    "pack-int8": Recipe("pack", bits=8, group=-1, scale="float32"),
    "w8a8": Recipe("int", bits=8, group=-1, symmetric=True, scale="bfloat16"),
}
FAST = ("awq", "gptq-act-order", "w8a8")
QWEN = Tiny("qwen2.5-vl", decoder="qwen2", seed=3)


def quantized_kit(folder: Path, t: Tiny, recipe: Recipe) -> Kit:
    """A kit of the quantised checkpoint, whose transformers' half has the dequantised weights."""
    kit = Kit.make(folder / "plain", t)
    quantize(kit.path, folder / "quantised", recipe, folder / "oracle")
    return replace(kit, path=folder / "quantised", model=tiny.load(folder / "oracle"))


def built(kit: Kit, **arguments: Any) -> Path:
    out = kit.path.parent / "-".join(["out", *map(str, arguments.values())])
    trtprune.build(kit.path, out, **{"method": "none", **arguments})
    return out


def check_answer(kit: Kit, out: Path, tokens: int = TOKENS) -> None:
    """32 greedy ids and their logits equal transformers'."""
    vlm = trtprune.load(out, threads=1, provider_options={"activations": "float32"})
    recorder = record(vlm)
    expected, logits = kit.generate(tokens, **kit.inputs([picture(3)], "What is on the table?"))
    result = vlm.generate(picture(3), "What is on the table?", max_new_tokens=tokens)
    assert result.token_ids == expected
    np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES])
def test_equals_transformers_with_the_dequantised_weights(tmp_path: Path, name: str) -> None:
    kit = quantized_kit(tmp_path, Tiny(text={"attention_bias": True}), RECIPES[name])
    check_answer(kit, built(kit))
