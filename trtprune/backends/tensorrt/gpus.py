"""Which NVIDIA GPUs this machine has, without CUDA: ``nvidia-smi``, else the driver's NVML library."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass

__all__ = ["Gpu", "find_gpus"]


@dataclass(frozen=True)
class Gpu:
    """One GPU; ``sm`` is its compute capability without the dot (90 for Hopper), 0 if unknown."""

    name: str
    sm: int
    memory_bytes: int
    driver: str


def find_gpus() -> list[Gpu]:
    """All NVIDIA GPUs; empty if there are none or no driver.  Never raises."""
    for way in (_by_smi, _by_nvml):
        try:
            found = way()
        except (OSError, ValueError, AttributeError, subprocess.SubprocessError):
            continue
        if found:
            return found
    return []


def _by_smi() -> list[Gpu]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = "--query-gpu=compute_cap,memory.total,driver_version,name"
    done = subprocess.run(
        [program, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20, check=True
    )
    found = []
    for line in done.stdout.splitlines():
        if line.count(",") < 3:
            continue
        capability, memory, driver, name = (part.strip() for part in line.split(",", 3))
        sm = capability.replace(".", "")
        found.append(Gpu(name, int(sm) if sm.isdigit() else 0, int(memory) << 20 if memory.isdigit() else 0, driver))
    return found


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _by_nvml() -> list[Gpu]:
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    if nvml.nvmlInit_v2() != 0:
        return []
    try:
        text = ctypes.create_string_buffer(96)
        driver = text.value.decode() if nvml.nvmlSystemGetDriverVersion(text, 96) == 0 else ""
        count = ctypes.c_uint(0)
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        found = []
        for index in range(count.value):
            device = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
                continue
            name = text.value.decode() if nvml.nvmlDeviceGetName(device, text, 96) == 0 else "NVIDIA GPU"
            major, minor = ctypes.c_int(0), ctypes.c_int(0)
            nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
            memory = _Memory()
            nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
            found.append(Gpu(name, major.value * 10 + minor.value, int(memory.total), driver))
        return found
    finally:
        nvml.nvmlShutdown()
