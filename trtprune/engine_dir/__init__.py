"""The engine directory: the result of ``build``, which ``load`` checks before it is used.

Layout (all paths inside ``config.json`` are relative and stay inside the directory)::

    OUT/config.json                 the dataclasses below
    OUT/onnx/NAME.onnx              weights are ONNX external data, "weights/FILE" relative to OUT/onnx
    OUT/onnx/weights/*.safetensors  copies of, or links to, the checkpoint's files; quantised weights
    OUT/engines/NAME.engine         TensorRT backends only
    OUT/tokenizer.json …            copied from the checkpoint

The runtime needs only this package and the files: an engine directory describes itself.
"""

from trtprune.engine_dir.digests import FULL_CHECK_BYTES, digest_file, digest_head, digest_weights
from trtprune.engine_dir.generation import GenerationInfo
from trtprune.engine_dir.opening import open_engine_dir
from trtprune.engine_dir.paths import CONFIG_NAME
from trtprune.engine_dir.reading import VERIFY
from trtprune.engine_dir.roles import Part
from trtprune.engine_dir.schema import (
    POSITIONS,
    QUANTIZATION,
    SCHEMA_VERSION,
    WEIGHTS,
    ComponentInfo,
    EngineDir,
    EngineInfo,
    KvInfo,
    ModelInfo,
    PositionsInfo,
    PruningInfo,
    TensorSpec,
    VisionInfo,
)

__all__ = [
    "CONFIG_NAME",
    "FULL_CHECK_BYTES",
    "POSITIONS",
    "QUANTIZATION",
    "SCHEMA_VERSION",
    "VERIFY",
    "WEIGHTS",
    "ComponentInfo",
    "EngineDir",
    "EngineInfo",
    "GenerationInfo",
    "KvInfo",
    "ModelInfo",
    "Part",
    "PositionsInfo",
    "PruningInfo",
    "TensorSpec",
    "VisionInfo",
    "digest_file",
    "digest_head",
    "digest_weights",
    "open_engine_dir",
]
