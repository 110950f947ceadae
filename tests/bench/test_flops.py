"""Operations counted in our graphs against those torch counts while it runs the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

import trtprune
from tests.kit import tiny
from tests.kit.tiny_files import add_text_files
from trtprune.bench import count_chain, count_flops
from trtprune.errors import EngineDirError


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    path = tmp_path_factory.mktemp(request.param)
    # No CLS token and the last layer's features: our tower then computes just what transformers' does.
    t = tiny.Tiny(
        seed=71, tower="siglip", decoder="qwen2", kv_heads=4, feature_layer=-1, vision={"vision_use_head": False}
    )
    model = tiny.make(path / "model", t)
    add_text_files(path / "model", t)
    form = {} if request.param == "onnxruntime" else {"lowering": dict.fromkeys(LOWERINGS, "primitives")}
    return model, trtprune.build(str(path / "model"), path / "out", keep=5, method="zspaprune", **form)


LOWERINGS = ("attention", "vision_attention", "norm", "rotary", "cache")


def torch_flops(call: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [1, 7, 40])
def test_decoder(built: tuple[Any, Any], length: int) -> None:
    model, made = built
    embeds = torch.zeros(2, length, 64)

    def run() -> None:
        hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        model.lm_head(hidden[:, -1:])

    dims = {"batch": 2, "sequence": length, "capacity": length, "logits_rows": 1}
    ours = count_chain(made, {"decoder": dims})["decoder"]
    # transformers computes its rotary angles with a product; ours is an element-wise one.
    angles = 2 * length * (16 // 2)
    assert torch_flops(run) - ours in (0, angles)


def test_vision(built: tuple[Any, Any]) -> None:
    model, made = built
    pixels = torch.from_numpy(tiny.pixels(tiny.Tiny(), batch=3))
    expected = torch_flops(lambda: model.get_image_features(pixels))
    assert count_chain(made, {"vision": {"batch": 3}})["vision"] == expected


def test_pruner(built: tuple[Any, Any]) -> None:
    """Two similarity matrices: text with image, and image with image."""
    _, made = built
    tokens = 15  # of 16 patches: the "default" strategy drops the first, CLS token or not
    found = count_chain(made, {"pruner": {"batch": 1, "visual_tokens": tokens, "text_tokens": 9, "keep": 5}})
    assert found == {"pruner": 2 * 64 * (1 * tokens + tokens * tokens)}


def test_embedding_is_no_arithmetic(built: tuple[Any, Any]) -> None:
    assert count_chain(built[1], {"embed": {"batch": 1, "tokens": 9}}) == {"embed": 0}


def test_a_dimension_without_a_number(built: tuple[Any, Any]) -> None:
    with pytest.raises(EngineDirError, match="no number for dimension 'capacity'"):
        count_chain(built[1], {"decoder": {"batch": 1, "sequence": 1, "logits_rows": 1}})
    with pytest.raises(EngineDirError, match="no number for 'keep'"):
        count_chain(built[1], {"pruner": {"batch": 1, "visual_tokens": 16, "text_tokens": 9}})


def test_pruned_decoder(tmp_path: Path) -> None:
    """Segments and point graphs, whose shapes hang on arithmetic with keep."""
    t = tiny.Tiny(seed=72, layers=5)
    tiny.make(tmp_path / "model", t)
    add_text_files(tmp_path / "model", t)
    made = trtprune.build(
        str(tmp_path / "model"), tmp_path / "out", method="sparsevlm", options={"schedule": "0:9,2:4"}
    )
    sizes = {"batch": 1, "capacity": 30, "raters": 3, "logits_rows": 1}
    whole = trtprune.build(str(tmp_path / "model"), tmp_path / "whole", method="none")
    parts = count_chain(made, {f"decoder.{k}": {**sizes, "sequence": 30} for k in range(3)})
    plain = count_chain(whole, {"decoder": {**sizes, "sequence": 30}})["decoder"]
    rows = 2 * 2 * 4 * 3 * 30 * 16  # two points: heads x raters x tokens x head_dim
    assert sum(parts.values()) == plain + rows
    point = count_chain(
        made, {"pruner.0": {"sequence": 30, "raters": 3, "visual_tokens": 16, "keep": 9, "recycled": 3, "merged": 1}}
    )
    # 7 removed, int(2.1) + 1 = 3 of them recycled into 1: their distances, and the mean of the cluster.
    assert point == {"pruner.0": 2 * 64 * (3 * 3 + 1 * 3)}


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_and_convolution(transposed: int) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["a", "b"], ["g"], transA=transposed),
            helper.make_node("Conv", ["x", "w"], ["y"], group=2),
        ],
        "g",
        [
            value("a", TensorProto.FLOAT, [5, 3] if not transposed else [3, 5]),
            value("b", TensorProto.FLOAT, [3, 7]),
            value("x", TensorProto.FLOAT, ["n", 4, 8, 8]),
            value("w", TensorProto.FLOAT, [6, 2, 3, 3]),
        ],
        [value("g", TensorProto.FLOAT, None), value("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    x, w = torch.zeros(2, 4, 8, 8), torch.zeros(6, 2, 3, 3)
    expected = torch_flops(lambda: torch.nn.functional.conv2d(x, w, groups=2))
    assert count_flops(model, {"n": 2}) == {"Gemm": 2 * 5 * 3 * 7, "Conv": expected}
    assert expected == 2 * np.prod([2, 6, 6, 6]) * 2 * 9
