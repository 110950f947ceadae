"""compressed-tensors with integer weights: packed into words, or one byte each.

* ``pack-quantized``: ``weight_packed`` int32 [out, in · bits / 32], ``weight_shape`` [2], ``weight_scale``
  [out, groups], ``weight_zero_point`` int32 [out · bits / 32, groups] unless symmetric, ``weight_g_idx`` int32 [in]
  with act-order.  Packed numbers are unsigned, with an offset of ``1 << (bits - 1)``.
* ``int-quantized`` and ``naive-quantized``: ``weight`` int8 [out, in], signed, and ``weight_zero_point`` int8; the rest
  as above.

Source: ``PackedQuantizationCompressor``, ``IntQuantizationCompressor`` and ``dequantize`` in compressed-tensors 0.20.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trtprune.checkpoint.quantized.settings import Settings
from trtprune.checkpoint.quantized.stored import (
    FLOATS,
    Read,
    Scheme,
    StoredMatrix,
    bad_tensor,
    expect,
    group_of,
    lacking,
    unpacked,
)
from trtprune.checkpoint.safetensors import TensorInfo
from trtprune.errors import CheckpointError, shown

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CompressedScheme"]

PACKED, INTEGERS = "pack-quantized", ("int-quantized", "naive-quantized")
LAYOUTS = (PACKED, *INTEGERS)
# Part of a format's name → its weights.
KINDS = (
    ("nvfp4", "NVFP4"),
    ("mxfp", "MXFP"),
    ("float", "FP8"),
    ("marlin", "Marlin 2:4"),
    ("bitmask", "sparse"),
)
SCALE, ZERO, INDEX = "weight_scale", "weight_zero_point", "weight_g_idx"


@dataclass(frozen=True)
class _Matrix(StoredMatrix):
    """What both layouts share."""

    scale = SCALE

    def scales(self, read: Read) -> np.ndarray:
        """As :meth:`StoredMatrix.scales`."""
        return self._per_output(read(self.parts[SCALE]))

    def _per_output(self, array: np.ndarray) -> np.ndarray:
        """[groups, out] of [out, groups], or of one number for all."""
        import numpy as np

        if array.size == 1:
            return np.broadcast_to(array.reshape(1, 1), (1, self.shape[0]))
        return array.reshape(self.shape[0], -1).T

    def group_index(self, read: Read) -> np.ndarray | None:
        """As :meth:`StoredMatrix.group_index`."""
        import numpy as np

        info = self.parts.get(INDEX)
        if info is None:
            return None
        index = self.index_of(info, read(info))
        if index is not None and np.any(np.bincount(index, minlength=self.groups) != self.group):
            raise bad_tensor(info, f"has groups of other sizes than {self.group}")
        return index


@dataclass(frozen=True)
class PackedMatrix(_Matrix):
    """``pack-quantized``."""

    main = "weight_packed"

    def integers(self, read: Read, inputs: slice, outputs: slice) -> np.ndarray:
        """As :meth:`StoredMatrix.integers`."""
        count = 32 // self.bits
        words = slice(inputs.start // count, -(-inputs.stop // count))
        values = unpacked(read(self.parts[self.main])[outputs, words], self.bits, 1)
        return values[:, : inputs.stop - inputs.start].T

    def zeros(self, read: Read) -> np.ndarray | None:
        """As :meth:`StoredMatrix.zeros`."""
        info = self.parts.get(ZERO)
        if info is None:
            return None
        return unpacked(read(info), self.bits, 0)[: self.shape[0]].T


@dataclass(frozen=True)
class IntegerMatrix(_Matrix):
    """``int-quantized`` and ``naive-quantized``."""

    main = "weight"

    def integers(self, read: Read, inputs: slice, outputs: slice) -> np.ndarray:
        """As :meth:`StoredMatrix.integers`."""
        info = self.parts["weight"]
        return self._unsigned(info, read(info)[outputs, inputs]).T

    def zeros(self, read: Read) -> np.ndarray | None:
        """As :meth:`StoredMatrix.zeros`."""
        info = self.parts.get(ZERO)
        return None if info is None else self._unsigned(info, self._per_output(read(info)))

    def _unsigned(self, info: TensorInfo, values: np.ndarray) -> np.ndarray:
        """int8 as uint8 with the middle added; raises CheckpointError for numbers of more bits than the scheme's."""
        import numpy as np

        middle = 1 << (self.bits - 1)
        if self.bits < 8 and values.size and not (-middle <= values.min() and values.max() < middle):
            raise bad_tensor(info, f"has numbers outside of {-middle} to {middle - 1}, those of {self.bits} bits")
        return (values.astype(np.int16) + middle).astype(np.uint8)


class CompressedScheme(Scheme):
    """compressed-tensors as ``quantization_config`` describes it.

    Raises:
        CheckpointError: for floating-point weights, sparse ones, rotations, or modules of several schemes.
    """

    beside = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale")

    def __init__(self, settings: Settings) -> None:
        settings = _named(settings)
        default = settings.choice("format", (*LAYOUTS, "mixed-precision"), "")
        weights, group = _only_scheme(settings)
        self.layout = group.choice("format", LAYOUTS, default)
        if self.layout not in LAYOUTS:
            raise settings.unsupported("format", settings.values.get("format"), ", ".join(LAYOUTS))
        if settings.values.get("quantization_status", "compressed") != "compressed":
            raise settings.unsupported("quantization_status", settings.values["quantization_status"], "compressed")
        _refuse_others(settings)
        self.bits = weights.bits("num_bits", (4, 8))
        self.symmetric = weights.flag("symmetric", True)
        strategy = weights.choice("strategy", ("group", "channel", "tensor"), "")
        if not strategy:
            strategy = "tensor" if weights.values.get("group_size") is None else "group"
        self.group = weights.group("group_size") if strategy == "group" else -1
        self.one = strategy == "tensor"
        main = ("weight_packed", "weight_shape") if self.layout == PACKED else ("weight",)
        self.parts = (*main, SCALE, ZERO, INDEX)
        size = {"group": f"groups of {self.group}", "channel": "whole rows", "tensor": "whole matrices"}[strategy]
        self.label = f"compressed-tensors {self.layout}, {self.bits} bits, {size}"
        self.notes = _notes(settings, group)

    def matrix(self, module: str, parts: Mapping[str, TensorInfo], read: Read) -> StoredMatrix:
        """As :meth:`Scheme.matrix`."""
        main = parts.get(self.parts[0])
        if main is None:
            raise lacking(module, parts, self.parts[0])
        if SCALE not in parts:
            raise lacking(module, parts, SCALE)
        rows, width = self._shape(module, main, parts, read)
        group = group_of(main, width, self.group)
        places = (1, (rows, 1)) if self.group == -1 else (width // group, (rows, width // group))
        scale = parts[SCALE]
        shape = scale.shape if self.one and scale.shape in ((), (1,), (1, 1)) else places[1]
        expect(scale, FLOATS, scale.shape if scale.shape == (rows,) == shape[:1] and places[0] == 1 else shape)
        self._check_zeros(module, parts, rows, width // group)
        if INDEX in parts:
            expect(parts[INDEX], ("I32", "I64"), (width,))
        kind = PackedMatrix if self.layout == PACKED else IntegerMatrix
        return kind(f"{module}.weight", (rows, width), self.bits, group, dict(parts))

    def _shape(self, module: str, main: TensorInfo, parts: Mapping[str, TensorInfo], read: Read) -> tuple[int, int]:
        """(out, in)."""
        if len(main.shape) != 2 or 0 in main.shape:
            raise bad_tensor(main, f"has shape {list(main.shape)}, expected a matrix")
        if self.layout != PACKED:
            expect(main, ("I8",), main.shape)
            return main.shape[0], main.shape[1]
        if main.dtype != "I32":
            raise bad_tensor(main, f"has dtype {main.dtype}, expected I32")
        info = parts.get("weight_shape")
        if info is None:
            raise lacking(module, parts, "weight_shape")
        expect(info, ("I32", "I64"), (2,))
        rows, width = (int(n) for n in read(info))
        if rows != main.shape[0] or width < 1 or -(-width * self.bits // 32) != main.shape[1]:
            raise bad_tensor(info, f"says {rows} × {width}, and {shown(main.name)} has shape {list(main.shape)}")
        return rows, width

    def _check_zeros(self, module: str, parts: Mapping[str, TensorInfo], rows: int, groups: int) -> None:
        info = parts.get(ZERO)
        if info is None:
            if not self.symmetric:
                raise lacking(module, parts, ZERO)
            return
        if self.layout == PACKED:
            expect(info, ("I32",), (-(-rows * self.bits // 32), groups))
        else:
            expect(info, ("I8",), info.shape if self.one and info.shape in ((), (1,), (1, 1)) else (rows, groups))


def _named(settings: Settings) -> Settings:
    """The settings with the name of their kind of weights in errors, where it is not an integer's."""
    form = settings.values.get("format")
    kind = next((name for part, name in KINDS if isinstance(form, str) and part in form), None)
    return settings if kind is None else replace(settings, method=f"{settings.method}, {kind} weights")


def _only_scheme(settings: Settings) -> tuple[Settings, Settings]:
    """The weights' settings, and those of the group that has them; all groups must agree."""
    groups = settings.section("config_groups")
    found: list[tuple[Settings, Settings]] = []
    for name in groups.values:
        group = groups.section(name)
        weights = group.section("weights")
        if weights.values:
            found.append((weights, group))
    if not found:
        raise CheckpointError(
            f"config.json: {settings.path}.config_groups has no weights", hint="download config.json again"
        )
    weights, group = found[0]
    weights.choice("type", ("int",), "int")
    for other, more in found[1:]:
        if _same(other.values) != _same(weights.values) or more.values.get("format") != group.values.get("format"):
            raise settings.unsupported(
                "config_groups", [w.path.split(".")[-2] for w, _ in found], "one scheme for all matrices"
            )
    return weights, group


def _same(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what is stored."""
    names = ("num_bits", "type", "symmetric", "strategy", "group_size")
    return {name: weights.get(name) for name in names}


def _refuse_others(settings: Settings) -> None:
    """Raises CheckpointError for what changes the computation around the weights."""
    transforms = settings.section("transform_config").values.get("config_groups")
    if transforms:
        raise settings.unsupported("transform_config", transforms, "weights without rotations")
    sparsity = settings.section("sparsity_config")
    sparsity.choice("format", ("dense",), "dense")


def _notes(settings: Settings, group: Settings) -> tuple[str, ...]:
    """What the checkpoint asks for beside its weights."""
    notes = []
    for name, words in (("input_activations", "inputs"), ("output_activations", "outputs")):
        values = group.section(name).values
        if values:
            notes.append(f"{words} of its products, {values.get('num_bits')} bits in the checkpoint, stay as they are")
    if settings.section("kv_cache_scheme").values:
        notes.append("its KV cache, quantised in the checkpoint, stays as it is")
    return tuple(notes)
