"""Rotary position embedding: inverse frequencies of each rope type, and cos/sin in the graph.

The types and their formulas are those of transformers' ``modeling_rope_utils``: ``default``, ``linear``, ``dynamic``
(NTK), ``yarn``, ``llama3`` and ``longrope``.  transformers 5 keeps the parameters under ``rope_parameters``, older
checkpoints under ``rope_scaling`` and ``rope_theta``; both are read.

``dynamic`` and ``longrope`` depend on the length of the sequence.  The graph takes it per row, as the largest position
id of the row plus one, so that a row's result does not depend on its neighbours in the batch; transformers takes
it over the batch.  Give padding a position id no larger than the row's own.

A position is one number, or three (time, row and column: M-RoPE, https://arxiv.org/abs/2409.12191): then each frequency
turns by one of them, see :class:`RotaryAxes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from trtprune.components.config import Section
from trtprune.errors import CheckpointError
from trtprune.graph.builder import Graph

__all__ = ["ROPE_TYPES", "Rope", "RotaryAxes"]

ROPE_TYPES = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")

_FLOAT = ir.DataType.FLOAT
_COMPARE = "compare it with the config.json of the model's authors"


@dataclass(frozen=True)
class RotaryAxes:
    """The shares of the axes of a position in the rotary frequencies.

    Attributes:
        sections: For each axis, the number of frequencies that turn by it; all together head_dim / 2.
        interleaved: Whether the axes alternate over the frequencies (Qwen3-VL): frequencies 1, 4, 7, … belong to axis 1
            and 2, 5, 8, … to axis 2 until their number is reached, all others to axis 0.  Otherwise they lie behind one
            another (Qwen2-VL, Qwen2.5-VL).
    """

    sections: tuple[int, ...]
    interleaved: bool = False

    def of_frequencies(self) -> np.ndarray:
        """The axis of each frequency, int64 [head_dim / 2].

        Raises:
            ValueError: if the sections do not fit into the interleaved order.
        """
        if not self.interleaved:
            return np.repeat(np.arange(len(self.sections)), self.sections)
        axes = np.zeros(sum(self.sections), np.int64)
        for axis, count in enumerate(self.sections[1:], 1):
            axes[axis : count * len(self.sections) : len(self.sections)] = axis
        if tuple(np.bincount(axes, minlength=len(self.sections))) != self.sections:
            raise ValueError(f"sections {list(self.sections)} cannot be interleaved")
        return axes


@dataclass(frozen=True)
class Rope:
    """Resolved rotary parameters.

    ``inv_freq`` is for every length; beyond ``original_length`` positions ``long_inv_freq`` (longrope) or a base
    multiplied by a power of ``dynamic_factor`` (dynamic) replaces it.  ``split`` has the axes of a position; None: one.
    """

    kind: str
    dim: int
    theta: float
    inv_freq: np.ndarray
    scaling: float = 1.0
    original_length: int = 0
    long_inv_freq: np.ndarray | None = None
    dynamic_factor: float = 1.0
    split: RotaryAxes | None = None

    @classmethod
    def from_config(cls, text: Section, dim: int, max_positions: int, split: RotaryAxes | None = None) -> Rope:
        """Read ``text_config``.

        Args:
            text: The section.
            dim: Width of a head.
            max_positions: The longest sequence.
            split: For a family whose positions have several axes: their default sections, which ``mrope_section``
                replaces, and whether they are interleaved; None: one axis.

        Raises:
            CheckpointError: for an unknown rope type, a missing parameter, partial rotation, parameters whose
                frequencies exceed float32, sections that do not add up to half a head, or another order of the axes
                than the family's.
        """
        params = _parameters(text, multimodal=split is not None)
        try:
            with np.errstate(all="ignore"):
                rope = cls._resolve(text, params, dim, max_positions)
        except (ArithmeticError, ValueError):  # for instance a base or a length of 1, as its logarithm is a divisor
            rope = None
        if rope is None or not rope._finite():
            raise CheckpointError(
                f"config.json: {params.path}: these parameters give no finite rotary frequencies",
                hint="compare them with the config.json of the model's authors",
            )
        return rope if split is None else replace(rope, split=_split(params, dim, split))

    @property
    def axes(self) -> int:
        """Numbers of a position."""
        return len(self.sections)

    @property
    def sections(self) -> tuple[int, ...]:
        """For each axis, the number of frequencies that turn by it."""
        return (self.dim // 2,) if self.split is None else self.split.sections

    @property
    def interleaved(self) -> bool:
        """Whether the axes alternate over the frequencies."""
        return self.split is not None and self.split.interleaved

    @classmethod
    def _resolve(cls, text: Section, params: Section, dim: int, max_positions: int) -> Rope:
        kind = params.choice("rope_type", ROPE_TYPES)
        for section in (params, text):
            section.fixed("partial_rotary_factor", 1.0)
        theta = params.number("rope_theta", text.number("rope_theta", 10000.0))
        original = text.optional_integer("original_max_position_embeddings") or params.integer(
            "original_max_position_embeddings", max_positions
        )
        exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        powers = np.power(float(theta), exponent.astype(np.float64)).astype(np.float32)
        inv_freq = np.float32(1.0) / powers

        if kind == "default":
            return cls(kind, dim, theta, inv_freq)
        if kind == "linear":
            return cls(kind, dim, theta, inv_freq / np.float32(params.number("factor")))
        if kind == "dynamic":
            factor = params.number("factor")
            if factor < 1.0:
                raise CheckpointError(f"{params.key('factor')} is {factor}, expected at least 1", hint=_COMPARE)
            if dim == 2:
                raise CheckpointError(
                    f"{text.key('head_dim')} is 2, which dynamic rope divides by {dim} - 2",
                    hint="the default rope_type",
                )
            return cls(kind, dim, theta, inv_freq, original_length=max_positions, dynamic_factor=factor)
        if kind == "llama3":
            return cls(kind, dim, theta, _llama3(inv_freq, params, original))
        if kind == "longrope":
            return _longrope(cls, params, dim, theta, powers, original, max_positions)
        return cls(kind, dim, theta, *_yarn(powers, params, theta, dim, original, max_positions))

    def _finite(self) -> bool:
        tables = [self.inv_freq] if self.long_inv_freq is None else [self.inv_freq, self.long_inv_freq]
        return math.isfinite(self.scaling) and all(bool(np.isfinite(table).all()) for table in tables)

    def cos_sin(self, g: Graph, position_ids: ir.Value) -> tuple[ir.Value, ir.Value]:
        """cos and sin of every position, each [B, S, dim / 2] of the compute dtype, computed in float32.

        Args:
            position_ids: int64 [B, axes, S]; any positions, gaps included.
        """
        op = g.op
        turns = op.Transpose(g.cast(position_ids, _FLOAT), perm=[0, 2, 1])  # [B, S, axes]
        if self.split is not None:
            turns = op.Gather(turns, g.constant(self.split.of_frequencies(), "rope_axes"), axis=2)
        angles = op.Mul(turns, self._frequencies(g, position_ids))
        cos, sin = op.Cos(angles), op.Sin(angles)
        if self.scaling != 1.0:
            factor = g.scalar(self.scaling, _FLOAT)
            cos, sin = op.Mul(cos, factor), op.Mul(sin, factor)
        return g.cast(cos, g.dtype), g.cast(sin, g.dtype)

    def _frequencies(self, g: Graph, position_ids: ir.Value) -> ir.Value:
        """[dim / 2], or [B, 1, dim / 2] if they depend on the length of the row."""
        op = g.op
        base = g.constant(self.inv_freq.astype(np.float32), "inv_freq")
        if self.kind not in ("dynamic", "longrope"):
            return base
        last = op.ReduceMax(position_ids, g.ints(1, 2), keepdims=1)  # [B, 1, 1]
        length = op.Add(last, g.scalar(1, ir.DataType.INT64))
        beyond = op.Greater(length, g.scalar(self.original_length, ir.DataType.INT64))
        if self.kind == "longrope":
            assert self.long_inv_freq is not None
            return op.Where(beyond, g.constant(self.long_inv_freq.astype(np.float32), "long_inv_freq"), base)
        # base · ((factor · length / original) − (factor − 1)) ^ (dim / (dim − 2)), then base ^ (−2i / dim)
        factor = self.dynamic_factor
        ratio = op.Div(g.cast(length, _FLOAT), g.scalar(self.original_length, _FLOAT))
        growth = op.Sub(op.Mul(ratio, g.scalar(factor, _FLOAT)), g.scalar(factor - 1.0, _FLOAT))
        growth = op.Max(growth, g.scalar(1.0, _FLOAT))  # short rows: keeps the unused branch finite
        grown = op.Mul(op.Pow(growth, g.scalar(self.dim / (self.dim - 2), _FLOAT)), g.scalar(self.theta, _FLOAT))
        exponent = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        return op.Where(beyond, op.Reciprocal(op.Pow(grown, g.constant(exponent, "rope_exponent"))), base)


def _parameters(text: Section, *, multimodal: bool = False) -> Section:
    """The section of the rope's parameters, with transformers 5's names."""
    for name in ("rope_scaling", "rope_parameters"):  # in transformers the old name wins if both are set
        if text.values.get(name):
            params = text.section(name)
            break
    else:
        params = Section({}, f"{text.path}.rope_parameters" if text.path else "rope_parameters")
    if any(isinstance(v, Mapping) for v in params.values.values()):
        raise CheckpointError(
            f"config.json: {params.path} has different parameters for different layers",
            hint="one rope for all layers is supported",
        )
    values: dict[str, Any] = dict(params.values)
    values.setdefault("rope_type", values.get("type", "default"))
    if values["rope_type"] == "su":  # the first name of longrope
        values["rope_type"] = "longrope"
    if multimodal and values["rope_type"] == "mrope":  # in the first Qwen2-VL files
        values["rope_type"] = "default"
    return Section(values, params.path)


def _split(params: Section, dim: int, default: RotaryAxes) -> RotaryAxes:
    """The axes of a family, with the sections of its checkpoint."""
    name, axes = "mrope_section", len(default.sections)
    sections = default.sections
    if params.values.get(name) is not None:
        sections = tuple(params.integers(name, axes))
    params.fixed("mrope_interleaved", default.interleaved)
    split = RotaryAxes(sections, default.interleaved)
    wrong = f"{params.key(name)} is {list(sections)}"
    if sum(sections) != dim // 2:
        raise CheckpointError(f"{wrong}, which must add up to {dim // 2}, half of a head", hint=_COMPARE)
    try:
        split.of_frequencies()
    except ValueError:
        raise CheckpointError(f"{wrong}, which cannot be interleaved", hint=_COMPARE) from None
    return split


def _llama3(inv_freq: np.ndarray, params: Section, original: int) -> np.ndarray:
    factor = params.number("factor")
    low, high = params.number("low_freq_factor"), params.number("high_freq_factor")
    if high <= low:
        raise CheckpointError(f"{params.key('high_freq_factor')} must be larger than low_freq_factor", hint=_COMPARE)
    wavelength = 2 * math.pi / inv_freq
    scaled = np.where(wavelength > original / low, inv_freq / factor, inv_freq)
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    medium = (wavelength >= original / high) & (wavelength <= original / low)
    return np.where(medium, blended, scaled).astype(np.float32)


def _yarn(
    powers: np.ndarray, params: Section, theta: float, dim: int, original: int, max_positions: int
) -> tuple[np.ndarray, float]:
    """Inverse frequencies and the factor on cos/sin (https://arxiv.org/abs/2309.00071)."""
    factor = params.number("factor", max_positions / original)

    def mscale(weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    values = params.values
    if values.get("attention_factor") is not None:
        scaling = params.number("attention_factor")
    elif values.get("mscale") and values.get("mscale_all_dim"):
        scaling = mscale(params.number("mscale")) / mscale(params.number("mscale_all_dim"))
    else:
        scaling = mscale()

    def rotations_dim(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    fast, slow = (
        params.number(name) if values.get(name) else default for name, default in (("beta_fast", 32), ("beta_slow", 1))
    )
    low, high = rotations_dim(fast), rotations_dim(slow)
    if params.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    inv_freq = ramp / (factor * powers) + (1 - ramp) / powers
    return inv_freq.astype(np.float32), scaling


def _longrope(
    cls: type[Rope], params: Section, dim: int, theta: float, powers: np.ndarray, original: int, longest: int
) -> Rope:
    """Two sets of factors, for short and long rows (https://arxiv.org/abs/2402.13753)."""
    short, long = (
        1 / (np.asarray(params.numbers(name, dim // 2), np.float32) * powers)
        for name in ("short_factor", "long_factor")
    )
    factor = params.number("factor", longest / original)
    if params.values.get("attention_factor") is not None:
        scaling = params.number("attention_factor")
    else:
        scaling = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return cls("longrope", dim, theta, short, scaling, original_length=original, long_inv_freq=long)
