"""Weight-only quantisation in NumPy: symmetric int8 per output channel, symmetric int4 in blocks.

``weight ≈ integers * scales``.  Integers run over ±127 and ±7: a range without its lowest value is symmetric about
zero, so there is no zero point, and no weight changes by more than half a step.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

__all__ = ["BLOCKS", "LIMITS", "dequantize", "int4_block", "pack_int4", "quantize", "unpack_int4"]

LIMITS = {8: 127, 4: 7}
"""Bits → largest integer."""
BLOCKS = (64, 32)
"""Block sizes of int4, the preferred one first."""


def int4_block(width: int) -> int | None:
    """The block size for rows of ``width`` weights; None if no block size divides it."""
    return next((block for block in BLOCKS if width % block == 0), None)


def quantize(
    weight: np.ndarray, *, bits: int, block: int | None, scale_dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Integers and scales of a matrix, or of any number of its rows.

    Args:
        weight: Floating point, [out, in]; rows are quantised independently.
        bits: 8 or 4.
        block: Number of weights with a common scale, a divisor of ``in``; None: the whole row.
        scale_dtype: float32, float16 or bfloat16; scales are rounded to it before the integers are chosen.

    Returns:
        int8 [out, in] and ``scale_dtype`` [out, in / block].  Every scale is positive, also for all-zero weights.

    Raises:
        ValueError: if a weight is NaN or infinite, or too large for a scale of ``scale_dtype``.
    """
    limit = LIMITS[bits]
    rows, width = weight.shape
    with np.errstate(over="ignore", invalid="ignore"):
        groups = np.asarray(weight, np.float32).reshape(rows, -1, block or width)
        largest = np.abs(groups).max(axis=2)
        if not np.isfinite(largest).all():
            raise ValueError("has NaN or infinite values")
        scales = (largest / np.float32(limit)).astype(scale_dtype)
        # Scales near the lower end of their range have few bits: one that is rounded down too far would clip the
        # largest weight, so the next larger one is taken.  The bits of positive floats count like integers, in every
        # format.
        short = scales.astype(np.float32) * np.float32(limit + 0.5) < largest
        scales.view(f"u{scales.itemsize}")[...] += short
        if not np.isfinite(scales.astype(np.float32)).all():
            raise ValueError(f"has values too large for {np.dtype(scale_dtype).name} scales")
        # At the upper end, a scale that is rounded up would turn the largest weight into an infinity.
        beyond = scales.astype(np.float64) * limit > ml_dtypes.finfo(scale_dtype).max
        scales.view(f"u{scales.itemsize}")[...] -= beyond
        scales[largest == 0] = 1  # TensorRT refuses a scale of 0
        integers = groups / scales.astype(np.float32)[:, :, None]
    np.rint(integers, out=integers)
    np.clip(integers, -limit, limit, out=integers)
    return integers.astype(np.int8).reshape(rows, width), scales


def dequantize(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [out, in] of int8 [out, in] and scales [out, in / block], as in DequantizeLinear."""
    rows, width = integers.shape
    groups = integers.reshape(rows, scales.shape[1], -1).astype(np.float32)
    return (groups * scales.astype(np.float32)[:, :, None]).reshape(rows, width)


def pack_int4(integers: np.ndarray) -> np.ndarray:
    """uint8 [n / 2] of int8 with an even number n of values in -8..7: two per byte, the first in the low half."""
    flat = integers.reshape(-1).view(np.uint8)
    return (flat[0::2] & 0x0F) | (flat[1::2] << 4)


def unpack_int4(packed: np.ndarray) -> np.ndarray:
    """int8 [2 n] of uint8 [n]; undoes :func:`pack_int4`."""
    flat = packed.reshape(-1)
    halves = np.stack([flat << 4, flat & 0xF0], axis=1).reshape(-1).view(np.int8)
    return halves >> 4  # arithmetic shift: extends the sign
