"""Checks whether the engines of a directory can run here, before TensorRT is called; and loading an engine.

TensorRT's own refusal is None and a line in its log, after reading gigabytes; here it is one line that says what to
change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.backends.tensorrt.flavour import get_log
from trtprune.engine_dir import QUANTIZATION
from trtprune.errors import BackendError, EngineDirError
from trtprune.reports.installer import to_install

if TYPE_CHECKING:
    from trtprune.backends.tensorrt.cuda import Device
    from trtprune.engine_dir import EngineDir, EngineInfo

__all__ = ["Needs", "check_device", "check_memory", "check_version", "engine_info", "load_engine"]

PACKAGES = {"tensorrt": "tensorrt-cu13", "tensorrt-rtx": "tensorrt-rtx-cu13"}
# Further memory of the driver, of kernels that are compiled at run time, and of activations outside of engines.
RESERVE_BYTES = 256 << 20


def engine_info(config: EngineDir) -> EngineInfo:
    """The build settings of the engines.

    Raises:
        BackendError: if there are none.
    """
    if config.engines is None or any(component.engine is None for component in config.components):
        raise BackendError(
            f"{config.root}: exported for {config.backend}, without engines",
            hint=f"trtprune build --backend {config.backend} makes them; --provider cpu runs the graphs",
        )
    if config.lowering.get("cache") == "primitives":
        # Only the KV-cache layer may write memory that another layer reads in the same run.
        raise BackendError(
            f"{config.root}: built with --lowering cache=primitives, which engines cannot do in place",
            hint="build it again without",
        )
    return config.engines


def check_version(config: EngineDir, info: EngineInfo, installed: str) -> None:
    """Refuses engines of another version of the library.

    Raises:
        BackendError: naming the package to install.
    """
    if info.version == installed:
        return
    if info.version_compatible and _numbers(installed) > _numbers(info.version):
        return
    package = PACKAGES[config.backend]
    again = "build it again" if config.backend == "tensorrt-rtx" else "build it again with --version-compatible"
    raise BackendError(
        f"{config.root}: the engines were built with {config.backend} {info.version}; {installed} is installed",
        hint=f"{to_install(f'{package}=={info.version}')}, or {again}",
    )


def check_device(config: EngineDir, info: EngineInfo, device: Device, supported: frozenset[str] = frozenset()) -> None:
    """Refuses engines for other GPUs.

    Args:
        config, info: The directory and the build settings of its engines.
        device: The GPU.
        supported: All compute capabilities of the library (``sm89``); empty if unknown.

    Raises:
        BackendError: naming the GPU and the flag.
    """
    if device.sm in info.targets or "current" in info.targets:  # current: the GPU of the build, which is not recorded
        return
    if info.hardware_compatibility == "ampere_plus" and device.capability >= (8, 0):
        return
    here = f"this GPU ({device.name}) is {device.sm}"
    if supported and device.sm not in supported:
        known = ", ".join(sorted(supported, key=_numbers))
        raise BackendError(
            f"{config.root}: {here}, which {config.backend} does not support ({known})",
            hint="build it with --backend tensorrt; --provider cuda runs the graphs in ONNX Runtime",
        )
    how = (
        f"--compute-capability {device.sm}"
        if config.backend == "tensorrt-rtx"
        else "on this machine, or with --hardware-compatibility-level ampere_plus"
    )
    raise BackendError(
        f"{config.root}: the engines are for {', '.join(info.targets)}; {here}", hint=f"build it again {how}"
    )


def _numbers(text: str) -> tuple[int, ...]:
    """``(10, 15, 1)`` of ``10.15.1``, ``(89,)`` of ``sm89``."""
    return tuple(int(part) for part in re.findall(r"\d+", text))


@dataclass(frozen=True)
class Needs:
    """Device memory a directory needs for one row, in bytes.

    Attributes:
        engines: Weights of the engines that are not loaded yet, about the size of their files.
        workspace: Activations of the running engine; one for all, because they run one after another.
        cache_row: KV cache of one row.
    """

    engines: int
    workspace: int
    cache_row: int

    @property
    def total(self) -> int:
        """The sum, with some reserve."""
        return self.engines + self.workspace + self.cache_row + RESERVE_BYTES


def check_memory(config: EngineDir, needs: Needs, free: int) -> None:
    """Refuses a directory that does not fit, before anything is loaded.

    Raises:
        BackendError: with the needed memory, the free memory, and flags of a build that would fit.
    """
    if needs.total <= free:
        return
    ways = fitting(config, needs, free)
    raise BackendError(
        f"{config.root}: needs {_gb(needs.total)} of GPU memory (engines {_gb(needs.engines)}, KV cache "
        f"{_gb(needs.cache_row)} a row, workspace {_gb(needs.workspace)}); {_gb(free)} are free",
        hint="build with " + " or ".join(ways) if ways else "a GPU with more memory, or --weight-streaming",
    )


def fitting(config: EngineDir, needs: Needs, free: int) -> list[str]:
    """Flags of a build that would fit into ``free`` bytes, the smallest change first."""
    ways = []
    engines = config.engines
    rest = free - needs.engines - needs.workspace - RESERVE_BYTES
    capacity = rest // config.kv.bytes_per_token // 128 * 128
    text = engines.max_input_len if engines is not None else 0
    images = engines.max_images if engines is not None else 1
    low, high = config.pruning.keep_range
    # Room for a short answer behind the longest prompt.
    if capacity >= text + images * high + 64:
        ways.append(f"--max-seq-len {capacity}")
    keep = (capacity - text - 64) // images
    if low <= keep < high:
        ways.append(f"--keep-range {low}:{keep} --max-seq-len {capacity}")
    if config.dtype == "float32" and needs.total / 2 <= free:
        ways.append("--dtype float16")
    decoder = needs.engines  # nearly all of it
    plain = config.weight_dtype is None and QUANTIZATION not in config.built_with
    smaller: Mapping[str, float] = {"int8": 0.55, "int4": 0.32} if plain and config.dtype != "float32" else {}
    for weight_dtype, ratio in smaller.items():
        if needs.total - (1 - ratio) * decoder <= free:
            ways.append(f"--weight-dtype {weight_dtype}")
            break
    return ways


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def load_engine(trt: Any, runtime: Any, path: Path) -> Any:
    """An engine from its file, which is memory-mapped, so that it is not in memory twice.

    Raises:
        EngineDirError: if the file cannot be read.
        BackendError: if TensorRT refuses it, with TensorRT's reason.
    """
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise EngineDirError(f"{path}: cannot be read: {error}", hint="build it again with --force") from None
    with get_log(trt).recording() as record:
        why = _invalid(trt, runtime, data)
        engine = None if why else runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BackendError(
            f"{path}: {trt.__name__} cannot load it: {why or record.why()}",
            hint="if the file is whole (trtprune inspect), build it again on this machine",
        )
    return engine


def _invalid(trt: Any, runtime: Any, data: np.ndarray) -> str:
    """TensorRT for RTX's reason to refuse an engine, asked before loading; empty if it accepts the engine."""
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    validity, bits = runtime.get_engine_validity(data)
    if validity != trt.EngineValidity.INVALID:
        return ""
    reasons = trt.EngineInvalidityDiagnostics.__members__.items()
    found = [name.lower().replace("_", " ") for name, value in reasons if int(bits) & int(value)]
    return ", ".join(found) or "no reason was given"
