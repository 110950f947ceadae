"""Which backend runs an engine directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtprune.arguments import arg
from trtprune.errors import BackendError

if TYPE_CHECKING:
    from trtprune.backends.base import Backend
    from trtprune.backends.onnxruntime import OrtBackend
    from trtprune.backends.openvino import OpenVinoBackend
    from trtprune.engine_dir import EngineDir

__all__ = ["PROVIDERS", "open_backend", "open_provider"]

PROVIDERS = ("cpu", "cuda", "openvino")
"""Runtimes of the graphs: ONNX Runtime on a CPU or an NVIDIA GPU, or OpenVINO."""


def open_provider(
    provider: str, threads: int | None = None, options: Mapping[str, str] | None = None
) -> OrtBackend | OpenVinoBackend:
    """The backend of a provider, which runs the graphs themselves.

    Raises:
        BackendError: if there is no such provider, it is missing, or has no such option.
    """
    if provider not in PROVIDERS:
        raise BackendError(f"{arg('provider', provider)}: unknown", hint=f"one of {', '.join(PROVIDERS)}")
    if provider == "openvino":
        from trtprune.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(threads, options)
    from trtprune.backends.onnxruntime import OrtBackend

    return OrtBackend(provider, threads, options)


def open_backend(
    config: EngineDir,
    *,
    provider: str | None = None,
    threads: int | None = None,
    options: Mapping[str, str] | None = None,
) -> Backend:
    """The backend of a directory, or the one of ``provider``; never another one in its place.

    Args:
        config: The engine directory.
        provider: One of :data:`PROVIDERS`.  A directory of engines also has the graphs: a provider runs those.
        threads: Processor threads of a provider.
        options: Options of the provider or of the TensorRT backend.

    Raises:
        BackendError: if it is missing or cannot run the directory.
    """
    if config.backend == "onnxruntime" or provider is not None:
        name = provider or config.built_with.get("provider", "cpu")
        if config.lowering.get("activations") == "int8":
            _check_int8(config, name, options or {})
        return open_provider(name, threads, options)
    if threads is not None:
        raise BackendError(
            f"{arg('threads', threads)}: {config.root} holds {config.backend} engines, which run on the GPU",
            hint=f"leave it out, or {arg('provider', 'cpu')} to run the graphs in ONNX Runtime",
        )
    from trtprune.backends.tensorrt.backend import TrtBackend

    return TrtBackend(config, options)


def _check_int8(config: EngineDir, provider: str, options: Mapping[str, str]) -> None:
    """Raises BackendError where products of 8-bit integers do not run, or run wrong."""
    made = f"{config.root}: built with {arg('activation_dtype', 'int8')}"
    again = f"a build with {arg('weight_dtype', 'int8')} alone"
    if provider != "cpu":
        raise BackendError(
            f"{made}, whose products are ONNX Runtime's on a CPU, not those of provider {provider}", hint=again
        )
    if options.get("activations") == "float32":
        raise BackendError(
            f"{arg('provider_options', {'activations': 'float32'})}: {made[len(str(config.root)) + 2 :]}, its graphs "
            "round activations themselves",
            hint=again,
        )
    from trtprune.backends.onnxruntime.int8 import exact_products

    if not exact_products():
        raise BackendError(
            f"{made}, whose products this processor adds up in 16 bits, where they overflow (it has no VNNI)",
            hint=f"{again} is the next best here",
        )
