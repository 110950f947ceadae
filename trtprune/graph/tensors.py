"""Weights as a graph refers to them: the place of a tensor on disk, and a matrix of integers and scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["QUANTIZED_OPSET", "QuantizedMatrix", "TensorLocation"]

QUANTIZED_OPSET = 21
"""The first opset whose DequantizeLinear has INT4 and ``block_size``."""


class TensorLocation(Protocol):
    """The place of a tensor on disk: the part of ``checkpoint.TensorInfo`` that ``Graph.weight`` needs."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class QuantizedMatrix:
    """``(integers - zeros) * scales``, stored transposed.

    DequantizeLinear → MatMul on an [in, out] matrix is the pattern that ONNX Runtime turns into one n-bit kernel;
    with a Transpose between the two it does so for some forms only.

    Attributes:
        integers: The [in, out] matrix as int8, or as int4 with two numbers per byte (dtype U8); unsigned beside
            ``zeros``.
        scales: [out] without blocks, [in / block, out] with; in their own dtype, in which the product is rounded.
        shape: (in, out).
        bits: 8 or 4.
        block: Number of weights along ``in`` with a common scale; None: all of them.
        zeros: Zero points, unsigned integers of ``bits`` in the shape of ``scales``, packed like ``integers``; None: 0.
        order: int64 [in]: row i of ``integers`` is multiplied with feature ``order[i]`` of the input; None: with i.
    """

    integers: TensorLocation
    scales: TensorLocation
    shape: tuple[int, int]
    bits: int
    block: int | None
    zeros: TensorLocation | None = None
    order: TensorLocation | None = None

    @property
    def int8_by_channel(self) -> bool:
        """Whether it is symmetric int8 with one scale an output channel: the form of products of 8-bit integers."""
        return self.bits == 8 and self.block is None and self.zeros is None
