"""Building blocks against torch or NumPy, in both spellings; and how a graph refers to its weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.activations import ACT2FN

from tests.kit.runner import session
from trtprune.checkpoint import TensorInfo
from trtprune.errors import BackendError, CheckpointError
from trtprune.graph import Graph, Lowering
from trtprune.graph.attention import attention, cache_mask, cache_write, query_row, rotary
from trtprune.graph.ops import ACTIVATIONS, activation, layer_norm, linear, rms_norm, topk_gather

FORMS = {"op": Lowering(), "primitives": Lowering.for_backend("openvino")}
DTYPES = {"float32": (np.float32, 2e-6), "float16": (np.float16, 4e-3)}


@pytest.fixture(params=FORMS)
def lowering(request: pytest.FixtureRequest) -> Lowering:
    return FORMS[request.param]


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write_weights(root: Path, arrays: dict[str, np.ndarray], spelling: str = "F32") -> dict[str, TensorInfo]:
    """A safetensors file under ``root/weights``, written by hand."""
    header, blob = {}, b""
    for name, a in arrays.items():
        data = a.tobytes()
        header[name] = {"dtype": spelling, "shape": a.shape, "data_offsets": [len(blob), len(blob) + len(data)]}
        blob += data
    text = json.dumps(header).encode()
    (root / "weights").mkdir()
    (root / "weights" / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + blob)
    start = 8 + len(text)
    return {
        n: TensorInfo(
            name=n,
            file="model.safetensors",
            dtype=spelling,
            shape=arrays[n].shape,
            offset=start + h["data_offsets"][0],
            nbytes=arrays[n].nbytes,
        )
        for n, h in header.items()
    }


def run(g: Graph, root: Path | None = None, **inputs: np.ndarray) -> list[np.ndarray]:
    return session(g, root).run(None, inputs)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm], ids=["layer", "rms"])
def test_norms(tmp_path: Path, lowering: Lowering, dtype: str, norm) -> None:
    kind, tolerance = DTYPES[dtype]
    arrays = {"n.weight": 1 + 0.3 * rand(24), "n.bias": rand(24, seed=1)}
    g = Graph("g", dtype=dtype, lowering=lowering, tensors=write_weights(tmp_path, arrays))
    x = g.input("x", dtype, ["b", 5, 24])
    g.output(norm(g, x, "n", eps=1e-5), "y", dtype, ["b", 5, 24])
    value = (300 * rand(2, 5, 24, seed=2) + 40).astype(kind)  # its squares do not fit float16
    (y,) = run(g, tmp_path, x=value)
    t = torch.from_numpy(value).float()
    w, b = torch.from_numpy(arrays["n.weight"]), torch.from_numpy(arrays["n.bias"])
    if norm is layer_norm:
        expected = torch.nn.functional.layer_norm(t, (24,), w, b, 1e-5)
    else:
        expected = t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-5) * w
    assert y.dtype == kind
    np.testing.assert_allclose(y, expected.numpy(), rtol=0, atol=2 * tolerance)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name: str) -> None:
    g = Graph("g")
    x = g.input("x", "float32", ["n"])
    g.output(activation(g, x, name), "y", "float32", ["n"])
    value = np.linspace(-12, 12, 1001, dtype=np.float32)
    (y,) = run(g, x=value)
    np.testing.assert_allclose(y, ACT2FN[name](torch.from_numpy(value)).numpy(), rtol=0, atol=2e-6)


def test_unknown_activation_names_the_supported() -> None:
    with pytest.raises(CheckpointError, match="unsupported activation 'mish'") as e:
        activation(Graph("g"), Graph("h").input("x", "float32", [1]), "mish")
    assert "quick_gelu" in (e.value.hint or "")


def test_rotary(lowering: Lowering, dtype: str) -> None:
    kind, tolerance = DTYPES[dtype]
    g = Graph("g", dtype=dtype, lowering=lowering)
    x = g.input("x", dtype, ["b", 3, "s", 8])
    cos, sin = (g.input(n, dtype, ["b", "s", 4]) for n in ("cos", "sin"))
    g.output(rotary(g, x, cos, sin, 8), "y", dtype, ["b", 3, "s", 8])
    value, angle = rand(2, 3, 6, 8).astype(kind), rand(2, 6, 4, seed=1)
    c, s = np.cos(angle).astype(kind), np.sin(angle).astype(kind)
    (y,) = run(g, x=value, cos=c, sin=s)
    a, b = value[..., :4].astype(np.float32), value[..., 4:].astype(np.float32)
    c, s = c[:, None].astype(np.float32), s[:, None].astype(np.float32)
    np.testing.assert_allclose(y, np.concatenate([a * c - b * s, b * c + a * s], -1), rtol=0, atol=2 * tolerance)


@pytest.mark.parametrize("kv_heads", [6, 3, 2, 1])
@pytest.mark.parametrize("masked", [True, False])
def test_attention(lowering: Lowering, dtype: str, kv_heads: int, masked: bool) -> None:
    kind, tolerance = DTYPES[dtype]
    g = Graph("g", dtype=dtype, lowering=lowering)
    q = g.input("q", dtype, ["b", 6, "s", 8])
    k, v = (g.input(n, dtype, ["b", kv_heads, "c", 8]) for n in "kv")
    mask = None
    if masked:
        slots = g.input("slots", "int64", ["b", "s"])
        mask = cache_mask(g, slots, g.op.Shape(k, start=2, end=3), 5)
    y = attention(g, q, k, v, heads=6, kv_heads=kv_heads, head_dim=8, mask=mask, form=lowering.attention)
    g.output(y, "y", dtype, ["b", 6, "s", 8])
    q_ = rand(2, 6, 3, 8).astype(kind)
    k_, v_ = (rand(2, kv_heads, 9, 8, seed=i).astype(kind) for i in (1, 2))
    positions = np.array([[4, 5, 6], [0, 1, 2]])
    (y,) = run(g, q=q_, k=k_, v=v_, **({"slots": positions} if masked else {}))
    allowed = None
    if masked:
        j = np.arange(9)
        allowed = torch.from_numpy((j <= positions[..., None]) & (j > positions[..., None] - 5))[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(t).float() for t in (q_, k_, v_)), attn_mask=allowed, enable_gqa=True
    )
    np.testing.assert_allclose(y, expected.numpy(), rtol=0, atol=2 * tolerance)


def test_query_row(dtype: str) -> None:
    kind, tolerance = DTYPES[dtype]
    g = Graph("g", dtype=dtype)
    q, k = (g.input(n, dtype, ["b", 3, "s", 8]) for n in "qk")
    g.output(query_row(g, q, k, row=0, head_dim=8), "y", "float32", ["b", "s"])
    (product,) = [n for n in g.builder.graph.all_nodes() if n.op_type == "MatMul"]
    g.output(product.outputs[0], "scores", dtype, ["b", 3, "rows", "s"])
    q_, k_ = rand(2, 3, 7, 8).astype(kind), rand(2, 3, 7, 8, seed=1).astype(kind)
    y, computed = run(g, q=q_, k=k_)
    assert computed.shape == (2, 3, 1, 7)  # one row, not a map
    scores = torch.from_numpy(q_).float() @ torch.from_numpy(k_).float().transpose(2, 3) * 8**-0.5
    np.testing.assert_allclose(y, scores.softmax(-1).mean(1)[:, 0].numpy(), rtol=0, atol=tolerance)


def test_cache_write(lowering: Lowering) -> None:
    g = Graph("g", lowering=lowering)
    cache = g.input("cache", "float32", ["b", 2, "c", 4])
    new = g.input("new", "float32", ["b", 2, "s", 4])
    index = g.input("index", "int64", ["b"])
    slots = g.input("slots", "int64", ["b", "s"])
    g.output(cache_write(g, cache, new, index, slots), "y", "float32", ["b", 2, "c", 4])
    before, rows, start = rand(3, 2, 9, 4), rand(3, 2, 2, 4, seed=1), np.array([0, 7, 3])
    feeds = {"cache": before, "new": rows, "index": start, "slots": start[:, None] + np.arange(2)}
    if lowering.cache == "op":
        del feeds["slots"]
        g.builder.graph.inputs.pop()
    (y,) = run(g, **feeds)
    for b in range(3):
        before[b, :, start[b] : start[b] + 2] = rows[b]
    np.testing.assert_array_equal(y, before)


def topk_session():
    g = Graph("g")
    scores = g.input("scores", "float32", ["b", "n"])
    features = g.input("features", "float32", ["b", "n", 3])
    keep = g.input("keep", "int64", [1])
    kept, indices = topk_gather(g, scores, features, keep)
    g.output(kept, "kept", "float32", ["b", "k", 3])
    g.output(indices, "indices", "int64", ["b", "k"])
    return session(g), g


TOPK, TOPK_GRAPH = topk_session()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 80), st.data())
def test_topk_gather(seed: int, batch: int, n: int, data: st.DataObject) -> None:
    """Ascending, ties to the lower index, every ``keep`` through one graph."""
    keep = data.draw(st.integers(1, n))
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, data.draw(st.integers(1, 50)), (batch, n)).astype(np.float32)
    features = rng.standard_normal((batch, n, 3)).astype(np.float32)
    kept, indices = TOPK.run(None, {"scores": scores, "features": features, "keep": np.array([keep])})
    expected = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :keep], axis=1)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(kept, np.take_along_axis(features, expected[..., None], 1))


def test_topk_gather_is_one_call_of_a_local_function() -> None:
    proto = onnx.load_model_from_string(TOPK_GRAPH.to_bytes())
    assert [(f.domain, f.name) for f in proto.functions] == [("trtprune", "TopKGather")]
    assert [n.op_type for n in proto.graph.node if n.domain == "trtprune"] == ["TopKGather"]
    onnx.checker.check_model(proto)


@pytest.mark.parametrize("spelling", ["F32", "F16", "BF16"])
def test_weights_stay_in_the_checkpoint(tmp_path: Path, spelling: str, dtype: str) -> None:
    """External data at the header's offset, a Cast where the dtypes differ, and nothing copied."""
    import ml_dtypes

    stored = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[spelling]
    kind, tolerance = DTYPES[dtype]
    arrays = {"a.weight": (0.2 * rand(5, 64)).astype(stored), "a.bias": rand(5, seed=1).astype(stored)}
    g = Graph("g", dtype=dtype, tensors=write_weights(tmp_path, arrays, spelling))
    x = g.input("x", dtype, ["b", 64])
    y = g.op.Add(linear(g, x, "a", bias=True), linear(g, x, "a", bias=True))  # used twice, stored once
    g.output(y, "y", dtype, ["b", 5])
    g.save(tmp_path / "g.onnx")
    proto = onnx.load(tmp_path / "g.onnx", load_external_data=False)
    external = {t.name: {e.key: e.value for e in t.external_data} for t in proto.graph.initializer if t.external_data}
    assert external["a.weight"]["location"] == "weights/model.safetensors"
    assert set(external) == {"a.weight", "a.bias"}
    assert [list(t.dims) for t in proto.graph.initializer if t.name == "a.weight"] == [[5, 64]]
    operations = [n.op_type for n in proto.graph.node]
    assert operations.count("Transpose") == 1
    same = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[spelling] == dtype
    assert operations.count("Cast") == (0 if same else 2)
    value = rand(3, 64, seed=2).astype(kind)
    (y,) = run(g, tmp_path, x=value)
    w, b = (arrays[n].astype(np.float32) for n in ("a.weight", "a.bias"))
    np.testing.assert_allclose(y, 2 * (value.astype(np.float32) @ w.T + b), rtol=0, atol=8 * tolerance)


def test_weight_errors(tmp_path: Path) -> None:
    tensors = write_weights(tmp_path, {"q": np.zeros((4, 4), np.int8)}, "I8")
    g = Graph("decoder", tensors=tensors)
    with pytest.raises(CheckpointError, match=r"tensor 'q' in model.safetensors has dtype I8"):
        g.weight("q")
    with pytest.raises(CheckpointError, match=r"no tensor 'r', which the decoder graph needs"):
        g.weight("r")


def test_lowering_by_backend() -> None:
    assert Lowering.for_backend("cuda") == Lowering()
    for backend in ("tensorrt", "tensorrt-rtx"):
        assert Lowering.for_backend(backend) == Lowering(loop_order="count")
    assert Lowering().opset == 24
    openvino = Lowering.for_backend("openvino")
    assert openvino == Lowering(*["primitives"] * 5, coverage="lazy")
    assert openvino.products == "op"  # a MatMul is plain enough
    assert openvino.opset == 20
    with pytest.raises(BackendError, match="unknown backend 'metal'"):
        Lowering.for_backend("metal")


def test_output_of_an_input_or_twice_the_same_value() -> None:
    g = Graph("g")
    x = g.input("x", "float32", ["n"])
    y = g.op.Neg(x)
    for name, value in (("same", x), ("y1", y), ("y2", y)):
        g.output(value, name, "float32", ["n"])
    assert [o.tolist() for o in run(g, x=np.ones(2, np.float32))] == [[1, 1], [-1, -1], [-1, -1]]
