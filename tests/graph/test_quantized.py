"""Products with quantised matrices: zero points, an order of their own, scales of another dtype; in each runtime."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from trtprune.checkpoint.safetensors_writer import SafetensorsWriter, plan_layout
from trtprune.graph import Graph
from trtprune.graph.ops import product
from trtprune.graph.tensors import QuantizedMatrix

FORMS = [(bits, zeros, block) for bits in (4, 8) for zeros in (False, True) for block in (None, 16, 32, 128)]
SCALES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def packed(integers: np.ndarray, bits: int) -> np.ndarray:
    """Two numbers a byte, the first in the low half."""
    flat = integers.astype(np.int64).reshape(-1) & ((1 << bits) - 1)
    if bits == 8:
        return flat.astype(np.uint8)
    flat = np.append(flat, 0) if len(flat) % 2 else flat
    return (flat[0::2] | flat[1::2] << 4).astype(np.uint8)


def written(
    folder: Path, bits: int, zeros: bool, block: int | None, *, shape: tuple[int, int], scale: str, ordered: bool
) -> tuple[Graph, np.ndarray]:
    """A graph y = x @ W, and W in float64."""
    rng = np.random.default_rng(bits + 2 * zeros + (block or 0))
    width, rows = shape
    low = 0 if zeros else -(1 << (bits - 1))
    integers = rng.integers(low, low + (1 << bits), shape)
    groups = 1 if block is None else width // block
    scales = rng.uniform(0.01, 0.02, (groups, rows)).astype(SCALES[scale])
    points = rng.integers(0, 1 << bits, (groups, rows)) if zeros else np.zeros((groups, rows), int)
    order = rng.permutation(width)
    places = (rows,) if block is None else (groups, rows)
    data = {"q": packed(integers, bits), "s": scales.reshape(places), "o": order.astype(np.int64)}
    kinds = {"q": "U8", "s": scale, "o": "I64"}
    if zeros:
        data["z"], kinds["z"] = packed(points, bits), "U8"
    layout = plan_layout("w.safetensors", {name: (kinds[name], data[name].shape) for name in data})
    (folder / "weights").mkdir()
    with SafetensorsWriter(folder / "weights", layout) as writer:
        for name, array in data.items():
            writer.append(name, array)
    at = layout.tensors
    matrix = QuantizedMatrix(
        at["q"], at["s"], shape, bits, block, zeros=at.get("z"), order=at["o"] if ordered else None
    )
    g = Graph("g", quantized={"w": matrix})
    x = g.input("x", "float32", [1, "rows", width])
    g.output(product(g, x, "w"), "y", "float32", [1, "rows", rows])
    weight = (integers - np.repeat(points, width // groups, 0)) * np.repeat(scales.astype(float), width // groups, 0)
    if scale != "F32":
        weight = weight.astype(SCALES[scale]).astype(float)
    full = np.empty_like(weight)
    full[order if ordered else np.arange(width)] = weight
    return g, full


@pytest.mark.parametrize(("bits", "zeros", "block"), FORMS)
@pytest.mark.parametrize(("scale", "ordered"), [("F32", False), ("F32", True), ("F16", False)])
def test_product(tmp_path: Path, bits: int, zeros: bool, block: int | None, scale: str, ordered: bool) -> None:
    g, weight = written(tmp_path, bits, zeros, block, shape=(256, 33), scale=scale, ordered=ordered)
    g.save(tmp_path / "g.onnx")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.log_severity_level = 4
    session = ort.InferenceSession(tmp_path / "g.onnx", options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(1, 3, 256)).astype(np.float32)
    (y,) = session.run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight, rtol=0, atol=2e-5 * np.abs(x @ weight).max())


def test_an_order_is_gathered_once() -> None:
    """Matrices that read the same features in the same order share one Gather."""
    names = {"a": ("U8", (32, 8)), "a_scale": ("F32", (1, 16)), "b": ("U8", (32, 8)), "b_scale": ("F32", (1, 16))}
    at = plan_layout("w", {**names, "order": ("I64", (32,))}).tensors
    forms = {k: QuantizedMatrix(at[k], at[f"{k}_scale"], (32, 16), 4, 32, order=at["order"]) for k in ("a", "b")}
    g = Graph("g", quantized=forms)
    x = g.input("x", "float32", [1, "rows", 32])
    for key in ("a", "b"):
        g.output(product(g, x, key), f"{key}_out", "float32", [1, "rows", 16])
    kinds = [node.op_type for node in ir.to_proto(g.model()).graph.node]
    assert kinds.count("Gather") == 1
