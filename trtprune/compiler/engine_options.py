"""Options of TensorRT engines in ``build``, checked against the library's abilities.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.errors import BackendError, BuildError

if TYPE_CHECKING:
    from trtprune.backends.tensorrt.gpus import Gpu
    from trtprune.graph.lowering import Form

__all__ = [
    "ATTENTION_FORMS",
    "DEFAULT_INPUT_LEN",
    "HARDWARE_COMPATIBILITY",
    "VERBOSITIES",
    "EngineOptions",
    "check_dtype",
    "check_options",
    "parse_pool_limit",
    "resolve_targets",
]

DEFAULT_INPUT_LEN = 512

ATTENTION_FORMS: dict[str, dict[str, Form]] = {
    "tensorrt": {"fused": "op", "fp32-boundary": "op-float32", "decomposed": "primitives"},
    # TensorRT for RTX has no attention kernel in float32, and its own decomposition between casts fails ("Fusing
    # attention ops must leave the graph in a well-formed state") or crashes; ours works.
    "tensorrt-rtx": {"fused": "op", "fp32-boundary": "primitives-float32", "decomposed": "primitives"},
}
"""The form of the decoder's attention, by backend and ``--attention``."""

HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")
VERBOSITIES = ("layer_names_only", "none", "detailed")

# TensorRT for RTX ignores these, or fails on them: its engines choose kernels when they are loaded.
FULL_ONLY = ("load_timing_cache", "save_timing_cache", "version_compatible", "hardware_compatibility_level")

_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class EngineOptions:
    """The command line's flags of the same names; ``build(..., engine=EngineOptions(...))`` in Python.

    Attributes:
        max_batch_size: The largest number of rows of a batch.
        max_input_len: The largest number of text tokens of a prompt; None: 512, or the model's number of positions.
        max_images: The largest number of images of a prompt, each with up to the largest budget of ``keep_range``.
        attention: ``fused`` (TensorRT's kernels), ``fp32-boundary`` (the same, computed in float32) or ``decomposed``
            (plain operators), for the decoder.
        compute_capability: GPUs to build for, ``("sm89", "sm120")``, or ``("current",)``; empty: this machine's.
        builder_optimization_level: 0 (quick build) to 5 (fast engine); None: the library's default.
        pool_limit: Bytes by memory pool, ``{"workspace": 4 << 30}``.
        load_timing_cache: File of kernel timings from an earlier build.
        save_timing_cache: File for the kernel timings of this build.
        version_compatible: Whether later versions of TensorRT can load the engines, too.
        hardware_compatibility_level: ``none``, ``ampere_plus`` or ``same_compute_capability``.
        weight_streaming: Whether engines can run with part of their weights in host memory.
        profiling_verbosity: The engines' information about layers: ``layer_names_only``, ``none`` or ``detailed``.
    """

    max_batch_size: int = 1
    max_input_len: int | None = None
    max_images: int = 1
    attention: str = "fused"
    compute_capability: tuple[str, ...] = ()
    builder_optimization_level: int | None = None
    pool_limit: Mapping[str, int] = field(default_factory=dict)
    load_timing_cache: Path | None = None
    save_timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatibility_level: str = "none"
    weight_streaming: bool = False
    profiling_verbosity: str = "layer_names_only"

    def changed(self) -> list[str]:
        """The options that differ from their defaults."""
        default = EngineOptions()
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(default, f.name)]

    def identity(self) -> dict[str, Any]:
        """The options that change the engines' content beyond limits and target, for the digest of a build."""
        left_out = {"load_timing_cache", "save_timing_cache", "compute_capability"}
        left_out |= {"max_batch_size", "max_input_len", "max_images"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_options(options: EngineOptions, backend: str, export_only: bool) -> None:
    """Refuses options that the backend lacks, and invalid values.

    Raises:
        BuildError: naming the flag.
    """
    for name in options.changed():
        backends = ("tensorrt",) if name in FULL_ONLY else ("tensorrt", "tensorrt-rtx")
        if backend not in backends:
            hint = f"it is one of {' and '.join(backends)}"
            raise BuildError(f"{_flag(name)}: the {backend} backend has no such option", hint=hint)
        if export_only and name != "attention":
            raise BuildError(f"{_flag(name)}: export writes graphs only, no engines", hint="trtprune build")
    for name, values in (
        ("attention", tuple(ATTENTION_FORMS["tensorrt"])),
        ("hardware_compatibility_level", HARDWARE_COMPATIBILITY),
        ("profiling_verbosity", VERBOSITIES),
    ):
        if getattr(options, name) not in values:
            raise BuildError(f"{_flag(name)} {getattr(options, name)}: unknown", hint=f"one of {', '.join(values)}")
    level = options.builder_optimization_level
    if level is not None and not 0 <= level <= 5:
        raise BuildError(f"--builder-optimization-level {level}: out of range", hint="0 to 5")
    if options.load_timing_cache is not None and not Path(options.load_timing_cache).is_file():
        raise BuildError(f"--load-timing-cache {options.load_timing_cache}: no such file")


def parse_pool_limit(text: str) -> tuple[str, int]:
    """``workspace:4G`` → ``("workspace", 4 << 30)``; suffixes K, M, G, as Polygraphy spells them.

    Raises:
        ValueError: for another form.
    """
    found = re.fullmatch(r"([A-Za-z_]+):(\d+(?:\.\d+)?(?:e\d+)?)([KMG]?)", text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"{text!r} is not POOL:BYTES, for example workspace:4G")
    name, number, suffix = found.groups()
    return name.lower(), int(float(number) * _SUFFIXES[suffix.upper()])


def resolve_targets(
    wanted: Sequence[str], backend: str, served: Sequence[int], gpus: Sequence[Gpu], library: str
) -> tuple[str, ...]:
    """The compute capabilities to build for, ascending; ``("current",)`` for this machine's GPU.

    Args:
        wanted: The user's choice, e.g. ``("sm89", "8.6")``; empty: this machine's GPU.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        served: Capabilities that the library builds for without the GPU: 89 for sm89; none for full TensorRT.
        gpus: GPUs of this machine.
        library: Name and version, for messages.

    Raises:
        BuildError: for an invalid capability, or one that the library does not serve.
        BackendError: if a GPU is needed and there is none.
    """
    names = tuple(dict.fromkeys(part.strip().lower() for text in wanted for part in text.split(",") if part.strip()))
    listed = ",".join(f"sm{sm}" for sm in served)
    if backend == "tensorrt":
        if names not in ((), ("current",)):
            raise BuildError(
                f"--compute-capability {','.join(names)}: {library} builds for the GPU that is here only",
                hint="leave it out and build on such a GPU, or --backend tensorrt-rtx, which builds for others",
            )
        if not gpus:
            raise BackendError(
                f"--backend tensorrt: no NVIDIA GPU found, and {library} builds on the GPU it builds for",
                hint="build where the GPU is, or --backend tensorrt-rtx --compute-capability sm89, which needs none",
            )
        return ("current",)
    if not names or "current" in names:
        if len(names) > 1:
            raise BuildError("--compute-capability: current stands alone", hint=f"name them all, of {listed}")
        if not gpus:
            raise BackendError(
                "--compute-capability is needed: no NVIDIA GPU found to build for"
                if not names
                else "--compute-capability current: no NVIDIA GPU found",
                hint=f"--compute-capability {listed}, or those of them that you have",
            )
        if not names and gpus[0].sm and gpus[0].sm not in served:
            raise _not_served(f"{gpus[0].name} (sm{gpus[0].sm})", library, listed)
        return ("current",)
    numbers = []
    for name in names:
        found = re.fullmatch(r"(?:sm_?)?(\d{2,3})|(\d{1,2})\.(\d)", name)
        if found is None:
            raise BuildError(f"--compute-capability {name}: not a compute capability", hint=f"one of {listed}, current")
        number = int(found[1] or found[2] + found[3])
        if number not in served:
            raise _not_served(f"--compute-capability sm{number}", library, listed)
        numbers.append(number)
    return tuple(f"sm{number}" for number in sorted(set(numbers)))


def _not_served(what: str, library: str, listed: str) -> BuildError:
    return BuildError(
        f"{what}: {library} does not serve it (it serves {listed})",
        hint="--backend tensorrt on that GPU, or --backend onnxruntime --provider cuda",
    )


def check_dtype(dtype: str, weight_dtype: str | None, attention: str, targets: Sequence[str], backend: str) -> None:
    """Refuses what TensorRT-RTX cannot do on Turing: products other than float16, and weights of 4 bits.

    Raises:
        BuildError: naming the flag.
    """
    if backend != "tensorrt-rtx" or "sm75" not in targets:
        return
    hint = "--dtype float16, or leave sm75 out of --compute-capability"
    if dtype != "float16":
        raise BuildError(f"--dtype {dtype}: TensorRT-RTX has no {dtype} matrix products for sm75", hint=hint)
    if weight_dtype == "int4":
        raise BuildError(
            "--weight-dtype int4: TensorRT-RTX has no 4-bit weights for sm75",
            hint="--weight-dtype int8, or leave sm75 out of --compute-capability",
        )
    if attention == "fp32-boundary":
        raise BuildError(
            "--attention fp32-boundary: TensorRT-RTX has no float32 matrix products for sm75",
            hint="--attention fused or decomposed, or leave sm75 out of --compute-capability",
        )
