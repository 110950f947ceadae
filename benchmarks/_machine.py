"""What machine a result was measured on; shared by the scripts here."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

# Behind what is installed: a clone that is not finds itself.
sys.path.append(str(Path(__file__).resolve().parent.parent))

PACKAGES = (
    "trtprune", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino", "tensorrt-rtx-cu13", "tensorrt-cu13",
    "cuda-bindings", "polygraphy", "torch", "transformers",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Kind of CPU, cores this process may use, memory in GiB, GPUs, and the versions that matter."""
    from importlib.metadata import PackageNotFoundError, version

    model, flags = platform.processor(), set()
    try:
        with open("/proc/cpuinfo") as stream:
            for line in stream:
                if line.startswith("model name"):
                    model = line.split(":", 1)[1].strip()
                elif line.startswith("flags"):
                    flags = set(line.split(":", 1)[1].split())
    except OSError:
        pass
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    from trtprune._gpu import find_gpus

    gpus = [{"name": gpu.name, "sm": gpu.sm, "driver": gpu.driver} for gpu in find_gpus()]
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "isa": sorted(flags & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": versions,
        **({"gpus": gpus} if gpus else {}),
    }


def summary(samples: list[float]) -> dict[str, float]:
    """Median, minimum and maximum, rounded to three digits behind the point."""
    return {
        "median": round(statistics.median(samples), 3),
        "min": round(min(samples), 3),
        "max": round(max(samples), 3),
        "n": len(samples),
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes a result, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
