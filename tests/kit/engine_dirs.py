"""A small engine directory made by hand: what the contract says, with no build behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from trtprune.engine_dir import (
    ComponentInfo,
    EngineDir,
    GenerationInfo,
    KvInfo,
    ModelInfo,
    PositionsInfo,
    PruningInfo,
    TensorSpec,
    VisionInfo,
    digest_file,
    digest_head,
    digest_weights,
)
from trtprune.text.info import TextInfo, TokenizerInfo

WEIGHTS = "onnx/weights/model.safetensors"


def graph(path: Path) -> None:
    """A graph with a loop body and a function, so that there is something to count."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    inner = helper.make_graph([helper.make_node("Add", ["x", "x"], ["z"])], "then", [], [])
    nodes = [
        helper.make_node("If", ["c"], ["i"], then_branch=inner, else_branch=inner),
        helper.make_node("Twice", ["x"], ["y"], domain="trtprune"),
    ]
    twice = helper.make_function(
        "trtprune", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [value], [out]), functions=[twice]), path)


def make(root: Path) -> EngineDir:
    """Writes the directory and returns what its ``config.json`` says."""
    (root / "onnx").mkdir(parents=True)
    (root / "onnx/weights").mkdir()
    (root / "engines").mkdir()
    graph(root / "onnx/vision.onnx")
    (root / "engines/vision.engine").write_bytes(b"engine" * 400_000)
    (root / "tokenizer.json").write_text('{"a": "tokenizer"}')
    save_file({"w": np.arange(1000, dtype=np.float32)}, root / WEIGHTS)
    files = {name: digest_file(root / name) for name in ("onnx/vision.onnx", "engines/vision.engine", "tokenizer.json")}
    engine = root / "engines/vision.engine"
    files["engines/vision.engine"] = f"{digest_head(engine)} {digest_file(engine)}"
    files[WEIGHTS] = f"{digest_weights(root / WEIGHTS)} {digest_file(root / WEIGHTS)}"
    spec = TensorSpec("pixel_values", "float32", ("batch", 3, 56, 56))
    made = EngineDir(
        schema_version=2,
        backend="onnxruntime",
        lowering={"attention": "op"},
        dtype="float32",
        model=ModelInfo(
            id="owner/name",
            revision=None,
            digest="sha256:00",
            family="llava",
            image_size=(336, 336),
            patch_grid=(24, 24),
            visual_tokens=576,
            has_cls=True,
            hidden_size=64,
            vocab_size=100,
            max_positions=4096,
            image_token="<image>",
            image_token_id=5,
            eos_token_ids=(2,),
        ),
        vision=VisionInfo("single", {}, (576, 576), (1, 1), "drop", ("cls_attention",)),
        text=TextInfo(TokenizerInfo((), False, (), (), None), None, "the chat template prints the date"),
        positions=PositionsInfo("compact", 1, (16,)),
        pruning=PruningInfo("adafv", 64, (16, 576), {"ratio": 0.5}, ("cls_attention",), "question"),
        components=(
            ComponentInfo(
                "vision",
                "vision",
                None,
                "onnx/vision.onnx",
                "engines/vision.engine",
                (spec,),
                (TensorSpec("image_features", "float32", ("batch", 576, 64)),),
                ({"pixel_values": ((1, 3, 56, 56), (1, 3, 56, 56), (4, 3, 56, 56))},),
                "float32",
            ),
        ),
        chain=("vision",),
        kv=KvInfo(4096, 1536, 3, 2, 32, "float32"),
        generation=GenerationInfo(),
        built_with={"trtprune": "0"},
        build_digest="sha256:11",
        files=files,
    )
    (root / "config.json").write_text(made.to_json())
    return made


def edit(root: Path, *keys: str | int, value: Any) -> None:
    """Sets one value in ``config.json``."""
    data = json.loads((root / "config.json").read_text())
    at = data
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    (root / "config.json").write_text(json.dumps(data))
