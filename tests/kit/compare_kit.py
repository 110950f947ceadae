"""What the tests of ``trtprune compare`` share: a tiny model built twice, and mistakes planted in copies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import trtprune
from tests.kit import tiny
from tests.kit.tiny_files import add_text_files
from trtprune.checkpoint.safetensors import read_header


def checkpoint(path: Path, t: tiny.Tiny | None = None) -> Path:
    """A tiny random checkpoint with all its files."""
    t = t or tiny.Tiny()
    path.mkdir(parents=True)
    tiny.make(path, t)
    add_text_files(path, t)
    return path


def build(source: Path, out: Path, **settings: Any) -> Path:
    """An engine directory of it; 8 of 16 visual tokens are kept."""
    trtprune.build(str(source), out, **{"keep": 8, **settings})
    return out


def copy(made: Path, name: str) -> Path:
    """A copy whose files may be damaged."""
    target = made.parent / name
    shutil.copytree(made, target)
    return target


def disturb_weight(made: Path, tensor: str, by: float = 0.5) -> None:
    """Adds to the first row of a float32 weight."""
    for path in (made / "onnx/weights").glob("*.safetensors"):
        info = read_header(path).tensors.get(tensor)
        if info is not None:
            array = np.memmap(path, np.float32, "r+", info.offset, info.shape)
            array[0] += by
            array.flush()
            return
    raise AssertionError(f"no weight {tensor}")


def edit_graph(made: Path, component: str, op_type: str, scope: str, change: Any) -> str:
    """Applies ``change`` to the node of this kind in this scope; returns the name of its output."""
    path = made / "onnx" / f"{component}.onnx"
    model = onnx.load(path, load_external_data=False)
    (node,) = [n for n in model.graph.node if n.op_type == op_type and n.name.startswith(f"{scope}/")]
    change(node)
    path.write_bytes(model.SerializeToString())
    return str(node.output[0])
