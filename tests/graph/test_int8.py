"""Products of 8-bit integers against the same arithmetic in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtprune.checkpoint.safetensors_writer import SafetensorsWriter, plan_layout
from trtprune.graph import Graph, Lowering
from trtprune.graph.ops import product
from trtprune.graph.tensors import QuantizedMatrix

WIDTH, ROWS = 96, (33, 20)


def rounded_product(x: np.ndarray, integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The oracle: rows over ±127 by their largest magnitude, products in 64 bits."""
    step = np.maximum(np.abs(x).max(axis=-1, keepdims=True) * np.float32(1 / 127), np.float32(1e-30))
    rows = np.rint(x / step).astype(np.int64)
    assert np.abs(rows).max(initial=0) <= 127
    return (rows @ integers.astype(np.int64)).astype(np.float64) * scales * step


@pytest.fixture(scope="module")
def matrices() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.integers(-127, 128, (WIDTH, n), np.int8), rng.uniform(1e-3, 1, n).astype("f")) for n in ROWS]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, matrices: list[tuple[np.ndarray, np.ndarray]]) -> Path:
    """Two matrices that read the same features, and a third use of the first that is exact."""
    folder = tmp_path_factory.mktemp("int8")
    (folder / "weights").mkdir()
    arrays = {f"{kind}{i}": array for i, pair in enumerate(matrices) for kind, array in zip("qs", pair, strict=True)}
    dtypes = {"q": "I8", "s": "F32"}
    layout = plan_layout("w.safetensors", {name: (dtypes[name[0]], array.shape) for name, array in arrays.items()})
    with SafetensorsWriter(folder / "weights", layout) as writer:
        for name, array in arrays.items():
            writer.append(name, array)
    at = layout.tensors
    quantized = {f"w{i}": QuantizedMatrix(at[f"q{i}"], at[f"s{i}"], (WIDTH, n), 8, None) for i, n in enumerate(ROWS)}
    g = Graph("g", quantized=quantized, lowering=Lowering(activations="int8"))
    x = g.input("x", "float32", ["batch", "rows", WIDTH])
    for i, n in enumerate(ROWS):
        g.output(product(g, x, f"w{i}"), f"y{i}", "float32", ["batch", "rows", n])
    g.output(product(g, x, "w0", exact=True), "exact", "float32", ["batch", "rows", ROWS[0]])
    g.save(folder / "g.onnx")
    return folder / "g.onnx"


@pytest.fixture(scope="module")
def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 2),
    rows=st.integers(1, 7),
    sizes=st.lists(st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 300.0, 1e6]), min_size=14, max_size=14),
    outlier=st.sampled_from([1.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_equals_numpy(
    session: ort.InferenceSession,
    matrices: list[tuple[np.ndarray, np.ndarray]],
    batch: int,
    rows: int,
    sizes: list[float],
    outlier: float,
    seed: int,
) -> None:
    x = np.random.default_rng(seed).normal(size=(batch, rows, WIDTH)).astype(np.float32)
    x[..., 5] *= outlier
    x *= np.array(sizes[: batch * rows], np.float32).reshape(batch, rows, 1)
    *products, exact = session.run(None, {"x": x})
    for (integers, scales), y in zip(matrices, products, strict=True):
        np.testing.assert_allclose(y, rounded_product(x, integers, scales), rtol=2e-6, atol=0)
    weight = matrices[0][0] * matrices[0][1]
    np.testing.assert_allclose(exact, x @ weight, rtol=0, atol=2e-5 * np.abs(x @ weight).max() + 1e-30)


def test_features_are_rounded_once(path: Path) -> None:
    nodes = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    assert (nodes.count("QuantizeLinear"), nodes.count("MatMulInteger"), nodes.count("MatMul")) == (1, 2, 1)
