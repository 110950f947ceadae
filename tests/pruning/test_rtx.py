"""The pruner graphs of the options that change the graph build in TensorRT-RTX too, in every dtype of the features."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trtprune.graph import Lowering
from trtprune.pruning.graph import build_pruner

rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("adafv", "mode=official"),
        ("adafv", "quota=0.5"),
        ("zspaprune", "diversity=meansim"),
        ("zspaprune", "core_ratio=0"),
        ("zspaprune", "core_ratio=1"),
    ],
)
def test_builds(method: str, option: str, dtype: str) -> None:
    options = dict([option.split("=")])
    graph = build_pruner(method, 64, dtype, Lowering.for_backend("tensorrt-rtx"), options, num_tokens=576)
    network = rtx.Network(graph.to_bytes(), None)
    assert "keep" in network.shape_inputs()
    assert network.build(values={"keep": (1, 64, 576)}) > 0


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("cdpruner", {"center": "true", "theta": "0.5"}),
        ("cdpruner", {"relevance": "prompt"}),
        ("score", {"alpha": 0.6}),
        ("scope", {"combine": "add", "alpha": 2.0}),
        ("mmtok", {"center": "true"}),
        ("dart", {"text_pivots": 0}),
    ],
)
def test_greedy_methods_build_for_turing_too(method: str, options: dict[str, object]) -> None:
    lowering = replace(Lowering.for_backend("tensorrt-rtx"), products="primitives")
    network = rtx.Network(build_pruner(method, 64, "float32", lowering, options, num_tokens=576).to_bytes(), None)
    assert network.build(values={"keep": (1, 64, 576)}, targets=("sm75", "sm89")) > 0


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("adafv", {"crops": "each"}),
        ("adafv", {"crops": "each", "mode": "official"}),
        ("fastervlm", {"crops": "each"}),
    ],
)
def test_budgets_shared_out_to_crops(method: str, options: dict[str, object]) -> None:
    """For images of any number of visual tokens."""
    graph = build_pruner(method, 64, "float16", Lowering.for_backend("tensorrt-rtx"), options)
    assert rtx.Network(graph.to_bytes(), None).build(values={"keep": (1, 64, 2928)}) > 0
