"""ONNX Runtime, on CPUs and CUDA GPUs."""

from __future__ import annotations

from trtprune.backends.onnxruntime.backend import PROVIDERS, OrtBackend, OrtCache, OrtSession
from trtprune.backends.onnxruntime.threads import available_threads

__all__ = ["PROVIDERS", "OrtBackend", "OrtCache", "OrtSession", "available_threads"]
