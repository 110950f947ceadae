"""Which backend runs an engine directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtprune.errors import BackendError

if TYPE_CHECKING:
    from trtprune.backends.base import Backend
    from trtprune.engine_dir import EngineDir

__all__ = ["open_backend"]


def open_backend(
    config: EngineDir,
    *,
    provider: str | None = None,
    threads: int | None = None,
    options: Mapping[str, str] | None = None,
) -> Backend:
    """The backend a directory was built for, or the one that was asked for; never another in its place.

    Args:
        config: The engine directory.
        provider: Of ONNX Runtime.  A directory of engines holds their graphs, too: with a provider those run.
        threads: Processor threads, in ONNX Runtime.
        options: Of the provider, or of the TensorRT backend.

    Raises:
        BackendError: if it is missing or cannot run the directory.
    """
    if config.backend == "onnxruntime" or provider is not None:
        from trtprune.backends.onnxruntime import OrtBackend

        return OrtBackend(provider or config.built_with.get("provider", "cpu"), threads, options)
    if threads is not None:
        raise BackendError(
            f"--threads {threads}: {config.root} holds {config.backend} engines, which run on the GPU",
            hint="leave it out, or --provider cpu to run the graphs in ONNX Runtime",
        )
    from trtprune.backends.tensorrt.backend import TrtBackend

    return TrtBackend(config, options)
