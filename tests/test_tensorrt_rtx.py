"""Every graph parses and builds in TensorRT-RTX for SM89, in float16, and means there what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from tests import tiny
from tests.runner import link_weights
from trtprune import pruning
from trtprune.checkpoint import open_checkpoint
from trtprune.graph import Graph, Lowering
from trtprune.models import get_family
from trtprune.pruning.graph import build_pruner

rtx = pytest.importorskip("tests.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)

CAPACITY = 128
LOWERING = Lowering.for_backend("tensorrt-rtx")
CASES = {
    "clip-llama": tiny.Tiny(dtype="float16"),
    "dinov2-qwen2-window": tiny.Tiny(
        seed=1,
        tower="dinov2",
        decoder="qwen2",
        tied=True,
        dtype="bfloat16",
        text={"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        vision={"use_swiglu_ffn": True},
    ),
    "siglip-mistral": tiny.Tiny(
        seed=2,
        tower="siglip",
        decoder="mistral",
        strategy="full",
        feature_layer=[-2, 1],
        text={"sliding_window": 16},
        rope={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("rtx")
    tiny.make(path, CASES[request.param])
    if CASES[request.param].tower == "dinov2":  # another size than the position table: Resize in the graph
        (path / "preprocessor_config.json").write_text('{"crop_size": {"height": 84, "width": 84}}')
    checkpoint = open_checkpoint(path)
    family = get_family(checkpoint.config)
    link_weights(checkpoint, path / "engine")
    graphs = family.build_components(checkpoint, dtype="float16", lowering=LOWERING)
    return family.spec(checkpoint), graphs, path / "engine"


def test_vision(built) -> None:
    spec, graphs, root = built
    network = rtx.Network(graphs["vision"].to_bytes(), root)
    network.check_attention(masked=False, count=max(spec.feature_layers))
    assert network.build() > 0


def test_bfloat16(tmp_path: Path) -> None:
    tiny.make(tmp_path, tiny.Tiny(seed=3, dtype="bfloat16", layers=2))
    checkpoint = open_checkpoint(tmp_path)
    family = get_family(checkpoint.config)
    link_weights(checkpoint, tmp_path / "engine")
    graphs = family.build_components(checkpoint, dtype="bfloat16", lowering=LOWERING)
    for name, graph in graphs.items():
        network = rtx.Network(graph.to_bytes(), tmp_path / "engine", {"capacity": CAPACITY})
        if name != "embed":
            network.check_attention(masked=name == "decoder", count=2 if name == "decoder" else 3)
        assert network.build() > 0, name


def test_embed(built) -> None:
    _, graphs, root = built
    assert rtx.Network(graphs["embed"].to_bytes(), root).build() > 0


def test_decoder(built) -> None:
    spec, graphs, root = built
    network = rtx.Network(graphs["decoder"].to_bytes(), root, {"capacity": CAPACITY})
    network.check_attention(masked=True, count=spec.num_layers)
    kinds = network.kinds()
    assert kinds.count(rtx.trt.LayerType.KV_CACHE_UPDATE) == 2 * spec.num_layers
    assert kinds.count(rtx.trt.LayerType.ROTARY_EMBEDDING) == 2 * spec.num_layers
    assert network.build() > 0


@pytest.mark.parametrize("num_tokens", [576, None], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", pruning.names())
def test_pruner(name: str, num_tokens: int | None) -> None:
    """``keep`` is a run-time value with a range, and the engine builds for all of it."""
    graph = build_pruner(name, hidden_size=64, dtype="float16", lowering=LOWERING, num_tokens=num_tokens)
    network = rtx.Network(graph.to_bytes(), None)
    if name != "none":
        assert "keep" in network.shape_inputs()
    assert network.build(values={"keep": (1, 64, 576)}) > 0


def attention_graph(**attributes: Any) -> Graph:
    """One layer over a cache, as a careless author might write it."""
    g = Graph("attention", dtype="float16", lowering=LOWERING)
    q = g.input("q", "float16", ["batch", 4, "sequence", 16])
    k, v = (g.input(n, "float16", ["batch", 4, CAPACITY, 16]) for n in "kv")
    inputs: list[Any] = [q, k, v]
    if attributes.pop("lengths", False):
        inputs += [None, None, None, g.input("lengths", "int64", ["batch"])]
    y = g.op.Attention(*inputs, **attributes)
    g.output(y, "y", "float16", ["batch", 4, "sequence", 16])
    return g


@pytest.mark.parametrize("wrong", [{"lengths": True, "is_causal": 1}, {"lengths": True}, {"is_causal": 1}, {}], ids=str)
def test_check_catches_a_decoder_without_mask(wrong: dict[str, Any]) -> None:
    """All of these parse, and the first even builds, ignoring the lengths."""
    network = rtx.Network(attention_graph(**wrong).to_bytes(), None)
    with pytest.raises(AssertionError, match="attention 0"):
        network.check_attention(masked=True, count=1)


def test_check_catches_a_causal_or_masked_tower() -> None:
    network = rtx.Network(attention_graph(is_causal=1).to_bytes(), None)
    with pytest.raises(AssertionError, match="attention 0 is"):
        network.check_attention(masked=False, count=1)
    with pytest.raises(AssertionError, match="1 attention layers, expected 2"):
        network.check_attention(masked=False, count=2)


def test_check_catches_a_mask_lost_from_our_decoder(built) -> None:
    """The real decoder with the mask cut off one of its attention layers."""
    spec, graphs, root = built
    proto = onnx.load_model_from_string(graphs["decoder"].to_bytes())
    node = [n for n in proto.graph.node if n.op_type == "Attention"][1]
    del node.input[3:]
    network = rtx.Network(proto.SerializeToString(), root, {"capacity": CAPACITY})
    with pytest.raises(AssertionError, match="attention 1: mask missing"):
        network.check_attention(masked=True, count=spec.num_layers)
