"""Quantised checkpoints: from ``quantization_config`` and the tensors of each module to matrices.

A checkpoint's tensors are then those it would have unquantised, each quantised one under the name ``….weight``
(:func:`collect`); its integers and scales are read by :class:`StoredMatrix`.  A further method is one more module here
and one more entry in ``_schemes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trtprune.checkpoint.advice import for_quantization
from trtprune.checkpoint.quantized.settings import Settings
from trtprune.checkpoint.quantized.stored import Read, Scheme, StoredMatrix, modules_of
from trtprune.checkpoint.safetensors import TensorInfo
from trtprune.errors import CheckpointError, shown

__all__ = ["Collected", "Scheme", "StoredMatrix", "collect", "read_scheme"]

NAMES = ("quantization_config", "compression_config")
# Ends of tensor names of any method, trtprune's own included or not.
ENDS = (
    *("qweight", "qzeros", "weight_packed", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_shape"),
    *("weight_global_scale", "absmax", "quant_map", "quant_state", "SCB", "weight_format", "W_q", "B", "B_meta"),
)
LARGEST_BIAS = 1 << 22


def _schemes() -> dict[str, tuple[str, Callable[[Settings], Scheme]]]:
    """``quant_method`` → its name, and its reader."""
    from trtprune.checkpoint.quantized.awq import AwqScheme
    from trtprune.checkpoint.quantized.compressed_tensors import CompressedScheme
    from trtprune.checkpoint.quantized.gptq import GptqScheme

    return {
        "awq": ("AWQ", AwqScheme),
        "gptq": ("GPTQ", GptqScheme),
        "compressed-tensors": ("compressed-tensors", CompressedScheme),
    }


def read_scheme(config: Mapping[str, Any]) -> Scheme | None:
    """How a checkpoint's matrices are stored, from its ``config.json``; None: as they are.

    Raises:
        CheckpointError: for a method, or a kind of it, that is not supported; the hint says what to do.
    """
    places = [("", config)]
    text = config.get("text_config")
    if isinstance(text, Mapping):
        places.append(("text_config.", text))
    found = [(f"{path}{name}", values[name]) for path, values in places for name in NAMES if values.get(name)]
    if not found:
        return None
    path, values = found[0]
    for other, more in found[1:]:
        if more != values:
            raise CheckpointError(f"config.json: {path} and {other} differ", hint="remove the wrong one of the two")
    method = values.get("quant_method") if isinstance(values, Mapping) else None
    schemes = _schemes()
    name, advice = for_quantization(values)
    if not isinstance(method, str) or method not in schemes:
        known = ", ".join(label for label, _ in schemes.values())
        raise CheckpointError(
            f"config.json: {path}: quantised checkpoints of this kind are not supported ({name})",
            hint=f"supported: {known} with integers of 4 and 8 bits; else {advice}",
        )
    label, make = schemes[method]
    return make(Settings(values, path, label, advice))


@dataclass(frozen=True)
class Collected:
    """The tensors of a checkpoint, each quantised matrix under one name.

    Attributes:
        tensors: By name; those of ``matrices`` have a dtype that is none of safetensors'.
        matrices: The quantised ones, by name.
        scheme: How they are stored; None in a checkpoint without any.
        zero_biases: Biases of quantised modules that are zero: some tools write them for modules that have none.
    """

    tensors: dict[str, TensorInfo]
    matrices: dict[str, StoredMatrix] = field(default_factory=dict)
    scheme: Scheme | None = None
    zero_biases: frozenset[str] = frozenset()


def collect(scheme: Scheme | None, tensors: Mapping[str, TensorInfo], read: Read) -> Collected:
    """Puts the tensors of each quantised module together; reads shapes and biases, no weight.

    Raises:
        CheckpointError: naming a tensor that is missing, contradicts another one, or is of another method.
    """
    if scheme is None:
        _refuse_leftovers(tensors, "config.json has no quantization_config")
        return Collected(dict(tensors))
    modules = {module: parts for module, parts in modules_of(scheme, tensors).items() if _is_quantized(parts)}
    names = {info.name for parts in modules.values() for info in parts.values()}
    names |= {name for name in tensors if name.rpartition(".")[2] in scheme.beside}
    rest = {name: info for name, info in tensors.items() if name not in names}
    _refuse_leftovers(rest, f"config.json says {scheme.label}")
    matrices: dict[str, StoredMatrix] = {}
    for module, parts in modules.items():
        matrix = scheme.matrix(module, parts, read)
        if matrix.name in rest:
            raise CheckpointError(
                f"{matrix.info.file}: {shown(module)} has {shown(rest[matrix.name].name)} beside quantised weights",
                hint="remove one of the two from the checkpoint",
            )
        matrices[matrix.name] = matrix
    if not matrices:
        raise CheckpointError(
            f"config.json says {scheme.label}, and no tensor is stored so",
            hint="remove quantization_config from config.json if the weights are floating-point numbers",
        )
    zero = frozenset(name for module in modules if (name := f"{module}.bias") in rest and _is_zero(rest[name], read))
    every = {**rest, **{name: matrix.info for name, matrix in matrices.items()}}
    return Collected(every, matrices, scheme, zero)


def _is_quantized(parts: Mapping[str, TensorInfo]) -> bool:
    """Whether a module's tensors are more than a weight in floating point."""
    return [*parts] != ["weight"] or parts["weight"].dtype not in ("F16", "BF16", "F32", "F64")


def _is_zero(info: TensorInfo, read: Read) -> bool:
    return 0 < info.nbytes <= LARGEST_BIAS and not read(info).any()


def _refuse_leftovers(tensors: Mapping[str, TensorInfo], said: str) -> None:
    """Raises CheckpointError for a tensor of a quantised module that belongs to no matrix."""
    for name, info in tensors.items():
        end = name.rpartition(".")[2]
        if end in ENDS or info.dtype.startswith("F8"):
            raise CheckpointError(
                f"{info.file}: tensor {shown(name)} is part of a quantised weight, and {said}",
                hint="fetch the checkpoint's own config.json again; one checkpoint has one method",
            )
