"""The machine and the versions behind a result."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["cache_bytes", "machine"]

PACKAGES = (
    "trtprune", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt-rtx-cu13",
    "tensorrt-cu13", "cuda-bindings", "polygraphy", "torch", "transformers",
)  # fmt: skip
ISA = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}


def machine() -> dict[str, Any]:
    """Kind of CPU, cores this process may use, memory in GiB, GPUs, and the versions that matter."""
    from importlib.metadata import PackageNotFoundError, version

    from trtprune.backends.tensorrt.gpus import find_gpus

    model, flags = platform.processor(), set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
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
    gpus = [{"name": gpu.name, "sm": gpu.sm, "driver": gpu.driver} for gpu in find_gpus()]
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "isa": sorted(flags & ISA),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": versions,
        **({"gpus": gpus} if gpus else {}),
    }


def cache_bytes() -> int:
    """Bytes of the last-level caches of the processors that this process may use; 0 if the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    found: dict[str, int] = {}
    for cpu in os.sched_getaffinity(0):
        levels: dict[int, tuple[str, int]] = {}
        for index in Path(f"/sys/devices/system/cpu/cpu{cpu}/cache").glob("index*"):
            try:
                level, size = int((index / "level").read_text()), (index / "size").read_text().strip()
                number = int(size[:-1]) * units[size[-1]] if size[-1] in units else int(size)
                levels[level] = ((index / "shared_cpu_list").read_text().strip(), number)
            except (OSError, ValueError, IndexError):
                continue
        if levels:
            shared, number = levels[max(levels)]
            found[shared] = number
    return sum(found.values())
