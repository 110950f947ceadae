"""Whether this processor multiplies 8-bit integers exactly."""

from __future__ import annotations

from functools import cache

import numpy as np

__all__ = ["exact_products"]

WIDTH = 64
ROWS = 16


@cache
def exact_products() -> bool:
    """Whether ONNX Runtime's product of uint8 and int8 matrices is exact here; asked once, a few milliseconds.

    Without VNNI, x86 processors add pairs of products in 16 bits with saturation: 255 · 127 · 2 is cut to 32767.  The
    operator's definition is the sum in 32 bits, and there is no error: the numbers are just smaller.
    """
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    left = np.full((ROWS, WIDTH), 255, np.uint8)
    right = np.full((WIDTH, ROWS), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["product"])],
        "probe",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, left.shape)],
        [helper.make_tensor_value_info("product", TensorProto.INT32, (ROWS, ROWS))],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"left": left})[0]
    return bool((found == left.astype(np.int64) @ right.astype(np.int64)).all())
