"""Weights as a graph refers to them: where a tensor lies, and a matrix stored as integers and scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["QUANTIZED_OPSET", "QuantizedMatrix", "TensorLocation"]

QUANTIZED_OPSET = 21
"""The first opset whose DequantizeLinear has INT4 and ``block_size``."""


class TensorLocation(Protocol):
    """Where a tensor lies on disk: what ``Graph.weight`` needs of ``checkpoint.TensorInfo``."""

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
    """``integers * scales``, stored transposed.

    DequantizeLinear → MatMul on an [in, out] matrix is the pattern that ONNX Runtime turns into one n-bit kernel;
    with a Transpose between the two it does so for some forms only.

    Attributes:
        integers: int8, or int4 packed two a byte (dtype U8), of the [in, out] matrix.
        scales: [out] without blocks, [in / block, out] with.
        shape: (in, out).
        bits: 8 or 4.
        block: Weights along ``in`` that share a scale; None: all of them.
    """

    integers: TensorLocation
    scales: TensorLocation
    shape: tuple[int, int]
    bits: int
    block: int | None
