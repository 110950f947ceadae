"""What ``doctor`` finds out by trying, in a process of its own: a broken driver can take its process down.

``python -m trtprune._probe NAME`` prints one JSON object: ``{"ok": bool, "text": str, …}``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["probe"]


def probe(name: str) -> dict[str, Any]:
    """Tries a provider (``cpu``, ``cuda``, ``openvino``) or an engine builder (``tensorrt``, ``tensorrt_rtx``)."""
    return _builder(name) if name.startswith("tensorrt") else _provider(name)


def _provider(name: str) -> dict[str, Any]:
    """Opens and runs a small graph exactly as ``run`` would."""
    import numpy as np
    from onnx import TensorProto, helper

    from trtprune.backends.onnxruntime import OrtBackend
    from trtprune.engine_dir import TensorSpec

    one, two = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [8, 8]) for n in "xy")
    node = helper.make_node("MatMul", ["x", "x"], ["y"])
    model = helper.make_model(
        helper.make_graph([node], "probe", [one], [two]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        # A graph of that name must be taken by the provider, at least in part.
        path = Path(folder) / "decoder.onnx"
        path.write_bytes(model.SerializeToString())
        spec = TensorSpec("x", "float32", (8, 8)), TensorSpec("y", "float32", (8, 8))
        session = OrtBackend(name, threads=1).open(path, path.parent, spec[:1], spec[1:])
        y = session.run({"x": x})["y"]
    error = float(np.abs(np.asarray(y, np.float32) - x @ x).max())
    # CUDA may multiply in TF32; anything beyond that is a wrong answer.
    if not error < 5e-2:
        return {"ok": False, "text": f"a small product came out wrong (by {error:g})"}
    return {"ok": True, "text": "loads and runs"}


def _builder(name: str) -> dict[str, Any]:
    import importlib

    library = importlib.import_module(name)
    found = {str(member).rpartition(".")[2] for member in _members(getattr(library, "ComputeCapability", None))}
    targets = sorted((t for t in found if t.startswith("SM")), key=lambda t: int(t[2:]))
    return {"ok": True, "text": str(library.__version__), "targets": targets}


def _members(enum: Any) -> list[Any]:
    members = getattr(enum, "__members__", None)
    return list(members) if members else []


def _main() -> None:
    try:
        answer = probe(sys.argv[1])
    except Exception as error:
        lines = str(getattr(error, "message", error)).strip().splitlines() or [type(error).__name__]
        answer = {"ok": False, "text": lines[0][:300], "hint": getattr(error, "hint", None)}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    # Some GPU libraries crash while they are unloaded, long after the answer is known.
    os._exit(0)


if __name__ == "__main__":
    _main()
