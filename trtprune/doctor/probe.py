"""``doctor``'s trials, each in a process of its own, because a broken driver can end its process.

``python -m trtprune.doctor.probe NAME`` prints one JSON object: ``{"ok": bool, "text": str, …}``.
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
    """Tries one thing.

    Args:
        name: A provider (``cpu``, ``cuda``, ``openvino``), ``cuda_bindings``, ``plugins``, an engine builder
            (``tensorrt``, ``tensorrt_rtx``), or a builder with ``-here`` behind it: whether its engine loads on
            this GPU.
    """
    if name == "cuda_bindings":
        return _bindings()
    if name == "plugins":
        return _plugins()
    if name.startswith("tensorrt"):
        library, _, here = name.partition("-")
        return _engine(library) if here else _builder(library)
    return _provider(name)


def _provider(name: str) -> dict[str, Any]:
    """Opens and runs a small graph exactly as ``run`` does."""
    import numpy as np
    from onnx import TensorProto, helper

    from trtprune.backends.opening import open_provider
    from trtprune.engine_dir import TensorSpec

    one, two = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [8, 8]) for n in "xy")
    node = helper.make_node("MatMul", ["x", "x"], ["y"])
    model = helper.make_model(
        helper.make_graph([node], "probe", [one], [two]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        path.write_bytes(model.SerializeToString())
        spec = TensorSpec("x", "float32", (8, 8)), TensorSpec("y", "float32", (8, 8))
        session = open_provider(name, threads=1).open(path, spec[:1], spec[1:])
        y = session.run({"x": x})["y"]
    error = float(np.abs(np.asarray(y, np.float32) - x @ x).max())
    # CUDA may multiply in TF32; larger errors are wrong answers.
    if not error < 5e-2:
        return {"ok": False, "text": f"a small product came out wrong (by {error:g})"}
    return {"ok": True, "text": "loads and runs"}


def _builder(name: str) -> dict[str, Any]:
    import importlib

    library = importlib.import_module(name)
    found = {str(member).rpartition(".")[2] for member in _members(getattr(library, "ComputeCapability", None))}
    targets = sorted((t for t in found if t.startswith("SM")), key=lambda t: int(t[2:]))
    return {"ok": True, "text": str(library.__version__), "targets": targets}


def _engine(name: str) -> dict[str, Any]:
    """Builds the smallest engine for the GPU at hand and prepares to run it."""
    import importlib

    trt = importlib.import_module(name)
    log = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(log)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(typed) if typed is not None else 0)
    y = network.add_unary(network.add_input("x", trt.float32, (1, 8)), trt.UnaryOperation.ABS).get_output(0)
    y.name = "y"
    network.mark_output(y)
    config = builder.create_builder_config()
    if hasattr(trt, "ComputeCapability"):  # RTX builds for the given capability; CURRENT is this GPU
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"ok": False, "text": "it builds no engine for this GPU"}
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None or engine.create_execution_context() is None:
        return {"ok": False, "text": "the engine it built does not load"}
    return {"ok": True, "text": "an engine builds and loads"}


def _bindings() -> dict[str, Any]:
    from cuda.bindings import runtime

    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess:
        return {"ok": False, "text": error.name}
    return {"ok": True, "text": f"CUDA answers, {count} device{'s' if count != 1 else ''}"}


def _plugins() -> dict[str, Any]:
    """Opens the plugin library, if there is one."""
    from trtprune.backends.tensorrt.plugins import PLUGINS, find_library, open_library

    path, names = find_library(), " and ".join(PLUGINS)
    if path is None:
        return {"ok": True, "text": names}
    library = open_library(path)
    version = ".".join(map(str, library.tensorrt))
    return {"ok": True, "text": f"{names} {library.version}", "path": str(library.path), "tensorrt": version}


def _members(enum: Any) -> list[Any]:
    members = getattr(enum, "__members__", None)
    return list(members) if members else []


def _main() -> None:
    # ONNX Runtime's wheels write files about their use at import; an examination should leave none.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        answer = probe(sys.argv[1])
    except Exception as error:
        lines = str(getattr(error, "message", error)).strip().splitlines() or [type(error).__name__]
        answer = {"ok": False, "text": lines[0][:300], "hint": getattr(error, "hint", None)}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    # Some GPU libraries crash while they are unloaded, after the answer is known.
    os._exit(0)


if __name__ == "__main__":
    _main()
