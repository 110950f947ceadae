"""TopKGather as graphs spell it: its body in ONNX Runtime, and its call under checkers and parsers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.runner import session
from tests.plugins.test_kernels import expected_indices, greedy, random_scores
from trtprune import pruning
from trtprune.graph import Graph, Lowering
from trtprune.graph.ops import topk_gather
from trtprune.pruning import Method
from trtprune.pruning.graph import build_pruner
from trtprune.pruning.greedy_graph import MODES, maxmin_select

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def graph(dtype: str) -> Graph:
    """Scores of ``dtype``; of bfloat16, which Python cannot hand to ONNX Runtime, the float32 input is cast."""
    g = Graph("g")
    fed = "float32" if dtype == "bfloat16" else dtype
    scores = g.input("scores", fed, ["b", "n"])
    if dtype == "bfloat16":
        scores = g.op.Cast(scores, to=onnx.TensorProto.BFLOAT16)
    features = g.input("features", "float32", ["b", "n", 2])
    kept, indices = topk_gather(g, scores, features, g.input("keep", "int64", [1]))
    g.output(kept, "kept", "float32", ["b", "k", 2])
    g.output(indices, "indices", "int64", ["b", "k"])
    return g


SESSIONS: dict[str, ort.InferenceSession] = {dtype: session(graph(dtype)) for dtype in DTYPES}


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["normal", "attention", "levels", "special", "bits"]),
    dtype=st.sampled_from(sorted(DTYPES)),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 300),
    data=st.data(),
)
def test_body_selects_as_the_kernels_do(seed, kind, dtype, batch, tokens, data) -> None:
    """NaN as -inf, +0 equal to -0, ties to the lower index, indices ascending, in every format."""
    keep = data.draw(st.integers(1, tokens))
    rng = np.random.default_rng(seed)
    scores = random_scores(rng, kind, (batch, tokens), DTYPES[dtype])
    features = rng.standard_normal((batch, tokens, 2)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        fed = scores.astype(np.float32) if dtype == "bfloat16" else scores
    kept, indices = SESSIONS[dtype].run(None, {"scores": fed, "features": features, "keep": np.array([keep])})
    expected = expected_indices(scores, keep)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(kept, np.take_along_axis(features, expected[..., None], 1))


def test_nan_counts_as_minus_infinity() -> None:
    scores = np.array([[np.nan, -np.inf, 1.0, np.nan, -np.inf, -0.0, 0.0]], np.float32)
    features = np.zeros((1, 7, 2), np.float32)
    for keep, expected in [(1, [2]), (2, [2, 5]), (3, [2, 5, 6]), (4, [0, 2, 5, 6]), (5, [0, 1, 2, 5, 6])]:
        feeds = {"scores": scores, "features": features, "keep": np.array([keep])}
        assert SESSIONS["float32"].run(["indices"], feeds)[0].tolist() == [expected]


@pytest.mark.parametrize("method", pruning.names(inside=False))
def test_pruners_tell_tensorrt_of_the_plugin(method: str) -> None:
    """Whatever selects by scores calls the function, with the attributes by which TensorRT finds the plugin."""
    proto = onnx.load_model_from_string(build_pruner(method, 64).to_bytes())
    onnx.checker.check_model(proto, full_check=True)
    calls = [node for node in proto.graph.node if node.op_type == "TopKGather"]
    by_scores = type(pruning.get(method)).scores is not Method.scores
    assert len(calls) == (1 if by_scores else 0)
    for node in calls:
        assert node.domain == "trtprune"
        assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {
            "plugin_namespace": b"trtprune",
            "plugin_version": b"1",
            "tensorrt_plugin_shape_input_indices": [2],
        }
        assert node.input[2] == "keep"


@pytest.mark.parametrize("mode", MODES)
def test_greedy_call(mode: str) -> None:
    """MaxMinSelect's body gives the closeness of the kernels' reference; the call names plugin and mode."""
    g = Graph("g")
    similarity = g.input("similarity", "float32", ["b", "n", "n"])
    close = g.input("close", "float32", ["b", "n"])
    steps = g.input("steps", "int64", [1])
    g.output(maxmin_select(g, similarity, close, steps, mode), "out", "float32", ["b", "n"])
    model = session(g)
    rng = np.random.default_rng(3)
    for count in (0, 1, 7, 40):
        rows = (rng.integers(-9, 9, (2, 40, 40)) / 9).astype(np.float32)
        start = (rng.integers(-9, 9, (2, 40)) / 9).astype(np.float32)
        feeds = {"similarity": rows, "close": start, "steps": np.array([count])}
        (result,) = model.run(None, feeds)
        for row in range(2):
            expected, _ = greedy(rows[row], start[row].copy(), count, MODES.index(mode))
            np.testing.assert_array_equal(result[row], expected)

    proto = onnx.load_model_from_string(build_pruner("zspaprune", 64, options={"diversity": mode}).to_bytes())
    (node,) = [node for node in proto.graph.node if node.op_type == "MaxMinSelect"]
    assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {
        "plugin_namespace": b"trtprune",
        "plugin_version": b"1",
        "mode": mode.encode(),
    }


def test_tensorrt_rtx_takes_the_body() -> None:
    """No plugin is registered in TensorRT for RTX: the parser must expand the function, attributes or not."""
    rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    lowering = Lowering.for_backend("tensorrt-rtx")
    network = rtx.Network(build_pruner("fastervlm", 64, "float16", lowering, num_tokens=96).to_bytes(), None)
    kinds = [str(kind).rpartition(".")[2] for kind in network.kinds()]
    assert kinds.count("TOPK") == 2
    assert not [kind for kind in kinds if "PLUGIN" in kind]
    assert network.build(values={"keep": (1, 32, 96)}) > 0
