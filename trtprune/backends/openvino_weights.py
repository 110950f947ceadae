"""A graph's matrices in 8 bits, for OpenVINO, from the weights of an unquantised build.

The plug-in multiplies with integers where a matrix is a constant of int8 behind a conversion and a scale for each
output, the transposition being the product's own.  In our graphs it stands between the matrix and the product, as
``Transpose``, and hides the form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["round_matrices"]


def round_matrices(model: Any) -> int:
    """Rounds the constant matrices of all products to int8, symmetric, a scale for each output; returns their number.

    Args:
        model: ``openvino.Model``, which is changed.
    """
    from openvino import opset15 as op

    count = 0
    for product, matrix in list(_matrices(model)):
        largest = np.abs(matrix).max(axis=1, keepdims=True)
        steps = np.where(largest > 0, largest / np.float32(127), np.float32(1))
        integers = np.rint(matrix / steps).astype(np.int8)
        kind = product.get_output_element_type(0)
        weights = op.multiply(op.convert(op.constant(integers), kind), op.convert(op.constant(steps), kind))
        transposed = bool(product.get_attributes()["transpose_a"])
        rounded = op.matmul(product.input_value(0), weights, transposed, True)
        rounded.set_friendly_name(product.get_friendly_name())
        for target in list(product.output(0).get_target_inputs()):
            target.replace_source_output(rounded.output(0))
        count += 1
    model.validate_nodes_and_infer_types()
    return count


def _matrices(model: Any) -> Iterator[tuple[Any, np.ndarray]]:
    """Products with a constant matrix as their second operand, and the matrix, float32 [outputs, inputs]."""
    for product in model.get_ops():
        if product.get_type_name() != "MatMul":
            continue
        node = product.input_value(1).get_node()
        transposed = bool(product.get_attributes()["transpose_b"])
        while node.get_type_name() in ("Convert", "Transpose"):
            transposed ^= node.get_type_name() == "Transpose"
            node = node.input_value(0).get_node()
        kind = node.get_output_element_type(0)
        if node.get_type_name() != "Constant" or len(node.get_output_shape(0)) != 2 or not kind.is_real():
            continue
        stored = node.get_data(dtype=np.float32)
        yield product, stored if transposed else stored.T
