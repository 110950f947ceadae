"""Quantised matrices of a checkpoint in a build: the checkpoint's own integers, zero points and scales in the form that
the graphs read, or, where the target has no such form, the weights they stand for.

Nothing is rounded that the checkpoint's own library does not round: a weight is the product of an integer and a scale,
rounded once, to the compute dtype.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from trtprune.checkpoint.quantized.stored import ALIGNED, bad_tensor
from trtprune.compiler.rounding import pack_int4
from trtprune.graph.tensors import QuantizedMatrix

if TYPE_CHECKING:
    from trtprune.checkpoint.checkpoint import Checkpoint
    from trtprune.checkpoint.quantized import StoredMatrix
    from trtprune.checkpoint.safetensors_writer import FileLayout, SafetensorsWriter

__all__ = ["Carried", "Forms", "carry"]

CHUNK = 1 << 21
"""Weights that are processed at a time."""
BLOCKS = (128, 64, 32, 16)
"""Blocks that groups are written in, the largest that divides the group; n-bit kernels have no others."""
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Forms:
    """The forms that a build's target computes with.

    Attributes:
        dtype: Compute dtype.
        engines: Whether TensorRT reads the graphs: its matrices have no zero points, positive scales of the compute
            dtype, 4 bits in blocks, and 8 bits with one scale an output.
        four_bits: Whether there are products with 4-bit weights.
    """

    dtype: str
    engines: bool = False
    four_bits: bool = True

    @classmethod
    def of(cls, backend: str, dtype: str, targets: Sequence[str]) -> Forms:
        """The forms of a backend; ``targets`` are the GPUs of its engines."""
        return cls(dtype, backend != "onnxruntime", not (backend == "tensorrt-rtx" and "sm75" in targets))

    @property
    def numpy(self) -> np.dtype:
        """The compute dtype in NumPy."""
        return np.dtype(ml_dtypes.bfloat16 if self.dtype == "bfloat16" else self.dtype)


@dataclass(frozen=True)
class Carried:
    """One matrix in a build.

    Attributes:
        matrix: The checkpoint's.
        block: Inputs with a common scale in the build; None: all.
        zeros: Whether zero points are other than the middle.
        scales: Safetensors dtype of the scales.
        order: int64 [in], the inputs in the order of their groups; None: as they are.
        why_not: The reason why the weights are dequantised; empty if they are not.
    """

    matrix: StoredMatrix
    block: int | None
    zeros: bool
    scales: str
    order: np.ndarray | None
    why_not: str

    @property
    def order_digest(self) -> str:
        """Equal for equal orders; empty without one."""
        return "" if self.order is None else hashlib.sha256(self.order.tobytes()).hexdigest()

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """End of the name → (dtype, shape) of what is written, without the order."""
        rows, width = self.matrix.shape
        blocks = 1 if self.block is None else width // self.block
        places = (rows,) if self.block is None else (blocks, rows)
        if self.matrix.bits == 8:
            found: dict[str, tuple[str, tuple[int, ...]]] = {"": ("U8" if self.zeros else "I8", (width, rows))}
        else:
            found = {"": ("U8", (width, rows // 2) if rows % 2 == 0 else (-(-width * rows // 2),))}
        found["_scale"] = (self.scales, places)
        if self.zeros:
            found["_zero"] = ("U8", places if self.matrix.bits == 8 else (-(-blocks * rows // 2),))
        return found

    def placed(self, layout: FileLayout, order: str | None) -> QuantizedMatrix:
        """The matrix as the graphs read it from a file; ``order`` is the name of its order's tensor."""
        name, at = self.matrix.name, layout.tensors
        rows, width = self.matrix.shape
        return QuantizedMatrix(
            at[name],
            at[f"{name}_scale"],
            (width, rows),
            self.matrix.bits,
            self.block,
            zeros=at[f"{name}_zero"] if self.zeros else None,
            order=None if order is None else at[order],
        )

    def write(self, checkpoint: Checkpoint, writer: SafetensorsWriter) -> None:
        """Writes the tensors of :meth:`tensors`.

        Needs some 30 MB, and with an order a byte per weight.
        """
        matrix, name = self.matrix, self.matrix.name
        repeat = matrix.group // (self.block or matrix.group)
        scales = np.asarray(matrix.scales(checkpoint.map), _numpy(self.scales))
        writer.append(f"{name}_scale", np.repeat(scales, repeat, axis=0))
        if self.zeros:
            zeros = matrix.zeros(checkpoint.map)
            assert zeros is not None
            writer.append(f"{name}_zero", self._packed(np.repeat(zeros, repeat, axis=0)))
        middle = np.uint8(0 if self.zeros else 1 << (matrix.bits - 1))
        for integers in self._rows(checkpoint):
            # With the middle's bit turned, an unsigned number is the signed one with the same distance from it.
            writer.append(name, self._packed(integers ^ middle))

    def write_weights(self, checkpoint: Checkpoint, dtype: np.dtype, writer: SafetensorsWriter) -> None:
        """Writes the dequantised weights [out, in]; raises CheckpointError for a weight beyond the dtype's range."""
        for weights in self.matrix.dequantized(checkpoint.map):
            with np.errstate(over="ignore"):
                rounded = weights.astype(dtype)
            if not np.isfinite(rounded.astype(np.float32)).all():
                raise bad_tensor(self.matrix.scale_info, f"makes weights too large for {dtype.name}", "--dtype float32")
            writer.append(self.matrix.name, rounded)

    def _rows(self, checkpoint: Checkpoint) -> Iterator[np.ndarray]:
        """uint8 [k, out], an even number of weights each but for the last."""
        rows, width = self.matrix.shape
        step = max(ALIGNED, CHUNK // rows // ALIGNED * ALIGNED)
        outputs = slice(0, rows)
        if self.order is None:
            for start in range(0, width, step):
                yield self.matrix.integers(checkpoint.map, slice(start, min(start + step, width)), outputs)
            return
        whole = np.empty((width, rows), np.uint8)
        for start in range(0, width, step):
            some = slice(start, min(start + step, width))
            whole[some] = self.matrix.integers(checkpoint.map, some, outputs)
        for start in range(0, width, step):
            yield whole[self.order[start : start + step]]

    def _packed(self, integers: np.ndarray) -> np.ndarray:
        if self.matrix.bits == 8:
            return integers
        flat = np.ascontiguousarray(integers).reshape(-1)
        return pack_int4((np.append(flat, 0) if flat.size % 2 else flat).astype(np.int8))


def carry(checkpoint: Checkpoint, matrix: StoredMatrix, forms: Forms, *, linear: bool) -> Carried:
    """How a matrix is written; reads its zero points, scales and order, no integer.

    Args:
        checkpoint: Its checkpoint.
        matrix: The matrix.
        forms: The forms of the build.
        linear: Whether it is one of the decoder's matrices, which graphs read in another form than float.

    Raises:
        CheckpointError: for scales that are no numbers, or groups that are none.
    """
    zeros = _has_zeros(checkpoint, matrix)
    scales, positive = _scale_dtype(checkpoint, matrix, forms)
    index = matrix.group_index(checkpoint.map)
    carried = Carried(matrix, _block(matrix), zeros, scales, _order(matrix, index), "")
    why_not = _why_not(carried, forms, index is not None, positive) if linear else "outside of the decoder"
    return replace(carried, why_not=why_not)


def _why_not(carried: Carried, forms: Forms, ordered: bool, positive: bool) -> str:
    """The reason why a form cannot have a matrix; empty if there is none."""
    matrix = carried.matrix
    if ordered and carried.order is None:
        return "act-order with groups of several sizes"
    if carried.block is None and matrix.group != matrix.shape[1]:
        return f"groups of {matrix.group} are no multiple of {BLOCKS[-1]}"
    if not forms.engines:
        return ""
    if carried.zeros:
        return "TensorRT has no zero points"
    if matrix.bits == 4 and not forms.four_bits:
        return "TensorRT-RTX has no 4-bit weights for sm75"
    if (matrix.bits == 8) != (carried.block is None):
        return f"TensorRT has no {matrix.bits}-bit weights {'in groups' if matrix.bits == 8 else 'of whole rows'}"
    if carried.scales != DTYPES[forms.dtype] or not positive:
        return f"scales that are no positive {forms.dtype} numbers"
    return ""


def _block(matrix: StoredMatrix) -> int | None:
    """The block of a matrix; None: whole rows, or that no block divides the groups."""
    if matrix.bits == 8 and matrix.group == matrix.shape[1]:
        return None
    return next((block for block in BLOCKS if matrix.group % block == 0), None)


def _order(matrix: StoredMatrix, index: np.ndarray | None) -> np.ndarray | None:
    """The inputs sorted by group; None if they are, or groups have several sizes."""
    if index is None or np.any(np.bincount(index, minlength=matrix.groups) != matrix.group):
        return None
    return np.argsort(index, kind="stable").astype(np.int64)


def _has_zeros(checkpoint: Checkpoint, matrix: StoredMatrix) -> bool:
    zeros = matrix.zeros(checkpoint.map)
    return zeros is not None and bool(np.any(zeros != 1 << (matrix.bits - 1)))


def _scale_dtype(checkpoint: Checkpoint, matrix: StoredMatrix, forms: Forms) -> tuple[str, bool]:
    """The dtype that holds all scales exactly, the compute dtype if possible, and whether all are positive."""
    scales, exact, positive = matrix.scales(checkpoint.map), True, True
    step = max(1, CHUNK // max(1, scales.shape[1]))
    for start in range(0, len(scales), step):
        values = np.asarray(scales[start : start + step], np.float32)
        if not np.isfinite(values).all():
            raise bad_tensor(matrix.scale_info, "has NaN or infinite values")
        with np.errstate(over="ignore"):
            exact &= bool((values.astype(forms.numpy).astype(np.float32) == values).all())
        positive &= bool((values > 0).all())
    return DTYPES[forms.dtype] if exact else "F32", positive


def _numpy(dtype: str) -> np.dtype:
    return np.dtype({"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype])
