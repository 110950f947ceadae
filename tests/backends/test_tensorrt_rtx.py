"""Every graph parses and builds in TensorRT-RTX for SM89, in float16, and means there what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.kit import tiny
from tests.kit.runner import link_weights
from trtprune import pruning
from trtprune.checkpoint import open_checkpoint
from trtprune.errors import BuildError
from trtprune.graph import Graph, Lowering
from trtprune.models import open_model
from trtprune.pruning.graph import build_pruner

rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)

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
    model = open_model(checkpoint)
    link_weights(checkpoint, path / "engine")
    graphs = model.build_components(dtype="float16", lowering=LOWERING)
    return model.spec, graphs, path / "engine"


def test_vision(built) -> None:
    spec, graphs, root = built
    network = rtx.Network(graphs["vision"].to_bytes(), root)
    network.check(attention=max(spec.feature_layers), cache_updates=0)
    assert network.build() > 0


def test_bfloat16(tmp_path: Path) -> None:
    tiny.make(tmp_path, tiny.Tiny(seed=3, dtype="bfloat16", layers=2))
    checkpoint = open_checkpoint(tmp_path)
    model = open_model(checkpoint)
    link_weights(checkpoint, tmp_path / "engine")
    graphs = model.build_components(dtype="bfloat16", lowering=LOWERING)
    for name, graph in graphs.items():
        network = rtx.Network(graph.to_bytes(), tmp_path / "engine", {"capacity": CAPACITY})
        network.check(attention={"vision": 3, "decoder": 2}.get(name, 0), cache_updates=4 if name == "decoder" else 0)
        assert network.build() > 0, name


def test_embed(built) -> None:
    _, graphs, root = built
    assert rtx.Network(graphs["embed"].to_bytes(), root).build() > 0


def test_decoder(built) -> None:
    spec, graphs, root = built
    network = rtx.Network(graphs["decoder"].to_bytes(), root, {"capacity": CAPACITY})
    network.check(attention=spec.num_layers, cache_updates=2 * spec.num_layers)
    kinds = network.kinds()
    assert kinds.count(rtx.trt.LayerType.KV_CACHE_UPDATE) == 2 * spec.num_layers
    assert kinds.count(rtx.trt.LayerType.ROTARY_EMBEDDING) == 2 * spec.num_layers
    assert network.build() > 0


@pytest.mark.parametrize("num_tokens", [576, None], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", pruning.names(inside=False))
def test_pruner(name: str, num_tokens: int | None) -> None:
    """``keep`` is a run-time value with a range, and the engine builds for all of it; so may the visual tokens be."""
    graph = build_pruner(name, hidden_size=64, dtype="float16", lowering=LOWERING, num_tokens=num_tokens)
    network = rtx.Network(graph.to_bytes(), None)
    if name != "none":
        assert "keep" in network.shape_inputs()
    assert network.build(values={"keep": (1, 64, num_tokens or 2928)}) > 0


def attention_graph(*, cached: bool = True, **attributes: Any) -> Graph:
    """One layer, over a cache unless told otherwise, as a careless author might write it."""
    g = Graph("attention", dtype="float16", lowering=LOWERING)
    q = g.input("q", "float16", ["batch", 4, "sequence", 16])
    names = [f"past_key_values.0.{n}" if cached else n for n in ("key", "value")]
    k, v = (g.input(n, "float16", ["batch", 4, CAPACITY, 16]) for n in names)
    inputs: list[Any] = [q, k, v]
    if attributes.pop("masked", False):
        inputs.append(g.input("mask", "bool", ["batch", 1, "sequence", CAPACITY]))
    if attributes.pop("lengths", False):
        inputs += [None, None, None, g.input("lengths", "int64", ["batch"])]
    y = g.op.Attention(*inputs, **attributes)
    g.output(y, "y", "float16", ["batch", 4, "sequence", 16])
    return g


WRONG = [
    ({"lengths": True, "is_causal": 1}, "nonpad_kv_seqlen", "is causal"),
    ({"lengths": True}, "nonpad_kv_seqlen", "has no mask"),
    ({"is_causal": 1}, "is_causal", "is causal"),
    ({}, "has no mask", "has no mask"),
    ({"cached": False, "is_causal": 1}, "is_causal", "is causal"),
    ({"masked": True, "softcap": 20.0}, "softcap", None),
    ({"masked": True, "is_causal": 1}, "is_causal", None),  # the parser refuses these two as well
]


@pytest.mark.parametrize(("wrong", "named", "after"), WRONG, ids=str)
def test_wrong_attention_is_refused(
    wrong: dict[str, Any], named: str, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before parsing; and, the first check switched off, by what the parser made of it."""
    model = attention_graph(**wrong).to_bytes()
    with pytest.raises(BuildError, match=rf"graph: node .*\(Attention\) has {named.removeprefix('has ')}"):
        rtx.Network(model, None)
    monkeypatch.setattr("trtprune.backends.tensorrt.network.lint", lambda proto, component: None)
    if after is None:
        with pytest.raises(BuildError, match="cannot parse it"):
            rtx.Network(model, None)
    else:
        with pytest.raises(BuildError, match=f"attention layer .* {after}"):
            rtx.Network(model, None).check(attention=1, cache_updates=0)


def test_masks_where_there_is_no_cache_are_those_of_the_graph() -> None:
    network = rtx.Network(attention_graph(cached=False, masked=True).to_bytes(), None)
    network.check(attention=1, cache_updates=0)
    network._masked = 0
    with pytest.raises(BuildError, match="has a mask it should not have"):
        network.check(attention=1, cache_updates=0)
    network._masked = 2
    with pytest.raises(BuildError, match="1 attention layers with a mask after parsing, expected 2"):
        network.check(attention=1, cache_updates=0)


def test_lost_attention_is_noticed() -> None:
    network = rtx.Network(attention_graph(cached=False).to_bytes(), None)
    network.check(attention=1, cache_updates=0)
    with pytest.raises(BuildError, match="1 attention layers after parsing, expected 2"):
        network.check(attention=2, cache_updates=0)
    with pytest.raises(BuildError, match="0 cache update layers after parsing, expected 2"):
        network.check(attention=1, cache_updates=2)


def test_an_additive_mask_is_refused() -> None:
    """It is what a form in float16 rounds: -65504 is not that far from a score."""
    g = Graph("attention", dtype="float16", lowering=LOWERING)
    q = g.input("q", "float16", ["batch", 4, "sequence", 16])
    k, v = (g.input(f"past_key_values.0.{n}", "float16", ["batch", 4, CAPACITY, 16]) for n in ("key", "value"))
    mask = g.input("mask", "float16", ["batch", 1, "sequence", CAPACITY])
    g.output(g.op.Attention(q, k, v, mask), "y", "float16", ["batch", 4, "sequence", 16])
    with pytest.raises(BuildError, match=r"has a mask of type DataType\.HALF"):
        rtx.Network(g.to_bytes(), None).check(attention=1, cache_updates=0)


def test_a_cache_that_is_not_updated_in_place_is_refused() -> None:
    g = Graph("cache", dtype="float16", lowering=LOWERING)
    past = g.input("past_key_values.0.key", "float16", ["batch", 4, CAPACITY, 16])
    new = g.input("new", "float16", ["batch", 4, "sequence", 16])
    present = g.op.TensorScatter(past, new, g.input("write_index", "int64", ["batch"]), axis=2)
    g.output(g.op.Mul(present, g.scalar(2.0)), "present.0.key", "float16", ["batch", 4, CAPACITY, 16])
    with pytest.raises(BuildError, match=r"not between an input and an output|cannot parse"):
        rtx.Network(g.to_bytes(), None).check(attention=0, cache_updates=1)


def test_a_circular_cache_is_refused() -> None:
    g = Graph("cache", dtype="float16", lowering=LOWERING)
    past = g.input("past_key_values.0.key", "float16", ["batch", 4, CAPACITY, 16])
    new = g.input("new", "float16", ["batch", 4, "sequence", 16])
    present = g.op.TensorScatter(past, new, g.input("write_index", "int64", ["batch"]), axis=2, mode="circular")
    g.output(present, "present.0.key", "float16", ["batch", 4, CAPACITY, 16])
    with pytest.raises(BuildError, match=r"\(TensorScatter\) has mode circular"):
        rtx.Network(g.to_bytes(), None)


@pytest.mark.parametrize("linted", [True, False])
def test_a_mask_lost_from_our_decoder_is_noticed(built, linted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real decoder with the mask cut off one of its attention layers."""
    spec, graphs, root = built
    proto = onnx.load_model_from_string(graphs["decoder"].to_bytes())
    node = [n for n in proto.graph.node if n.op_type == "Attention"][1]
    del node.input[3:]
    if not linted:
        monkeypatch.setattr("trtprune.backends.tensorrt.network.lint", lambda proto, component: None)
    with pytest.raises(BuildError, match=r"layers\.1/.* has no mask"):
        network = rtx.Network(proto.SerializeToString(), root, {"capacity": CAPACITY})
        network.check(attention=spec.num_layers, cache_updates=2 * spec.num_layers)
