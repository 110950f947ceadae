"""Runs built graphs in ONNX Runtime, from bytes with the weights in place, as the runtime does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from trtprune.checkpoint import Checkpoint, open_checkpoint
from trtprune.graph import Graph, Lowering
from trtprune.models import open_model

NUMPY = {"float32": np.float32, "float16": np.float16}


def session(graph: Graph, root: Path | None = None) -> ort.InferenceSession:
    """An ONNX Runtime session; ``root`` holds ``weights/``."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if root is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(root))
    return ort.InferenceSession(graph.to_bytes(), options, providers=["CPUExecutionProvider"])


def link_weights(checkpoint: Checkpoint, root: Path) -> None:
    """``root/weights/`` with hard links to the checkpoint's files."""
    (root / "weights").mkdir(parents=True, exist_ok=True)
    for file in checkpoint.files:
        if not (root / "weights" / file).exists():
            os.link(checkpoint.path / file, root / "weights" / file)


class Chain:
    """The graphs of one checkpoint."""

    def __init__(
        self, path: Path, *, dtype: str = "float32", lowering: Lowering | None = None, family: Any = None
    ) -> None:
        checkpoint = open_checkpoint(path)
        model = family.open(checkpoint) if family else open_model(checkpoint)
        self.spec = model.spec
        self.warnings = model.check_weights()
        self.dtype = NUMPY[dtype]
        lowering = lowering or Lowering.for_backend("onnxruntime")
        root = path / "engine"
        link_weights(checkpoint, root)
        graphs = model.build_components(dtype=dtype, lowering=lowering)
        self.sessions = {name: session(graph, root) for name, graph in graphs.items()}

    def run(self, component: str, **inputs: Any) -> dict[str, np.ndarray]:
        s = self.sessions[component]
        return dict(zip([o.name for o in s.get_outputs()], s.run(None, inputs), strict=True))

    def vision(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        return self.run("vision", pixel_values=pixel_values.astype(self.dtype))

    def embed(self, ids: Any) -> np.ndarray:
        return self.run("embed", input_ids=np.asarray(ids, np.int64))["text_embeds"]

    def decoder(self, batch: int, capacity: int, fill: float = 0.0) -> Decoder:
        return Decoder(self, batch, capacity, fill)


class Decoder:
    """The decoder with its cache."""

    def __init__(self, chain: Chain, batch: int, capacity: int, fill: float) -> None:
        spec = chain.spec
        shape = (batch, spec.num_kv_heads, capacity, spec.head_dim)
        self.chain = chain
        self.cache = {
            f"past_key_values.{i}.{n}": np.full(shape, fill, chain.dtype)
            for i in range(spec.num_layers)
            for n in ("key", "value")
        }

    def __call__(
        self,
        embeds: np.ndarray,
        write_index: Any,
        positions: np.ndarray | None = None,
        logits_index: np.ndarray | None = None,
    ) -> np.ndarray:
        """Feed S tokens per row; logits of all of them unless ``logits_index`` says otherwise.

        ``positions`` is [B, S], or [B, axes, S].
        """
        batch, length, _ = embeds.shape
        write_index = np.asarray(write_index, np.int64)
        if positions is None:
            positions = write_index[:, None] + np.arange(length)
        if logits_index is None:
            logits_index = np.tile(np.arange(length), (batch, 1))
        out = self.chain.run(
            "decoder",
            inputs_embeds=embeds.astype(self.chain.dtype),
            position_ids=np.asarray(positions, np.int64).reshape(batch, -1, length),
            write_index=write_index,
            logits_index=np.asarray(logits_index, np.int64),
            **self.cache,
        )
        for name in self.cache:
            self.cache[name] = out[name.replace("past_key_values", "present")]
        return out["logits"]
