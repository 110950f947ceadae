"""Memory of the KV cache in ONNX Runtime, and arrays as OrtValues.

The decoder graph alone decides what is written into the cache, and when.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trtprune.arguments import arg
from trtprune.backends.binding import CachePair, numpy_dtype, resolve_shape
from trtprune.errors import BackendError

__all__ = ["OrtCache", "new_cache", "to_value"]

ONNX_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}  # onnx.TensorProto.DataType, without importing onnx
ALIGNMENT = 64


def to_value(ort: Any, array: np.ndarray) -> Any:
    """An OrtValue that is a view of a C-contiguous array on the CPU; the array must outlive it."""
    if array.dtype.name == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), ONNX_TYPES["bfloat16"])
    return ort.OrtValue.ortvalue_from_numpy(array)


class OrtCache:
    """KV buffers as OrtValues: ``values[input name]``, each [batch, heads, capacity, head_dim] of ``kinds[name]``."""

    def __init__(
        self,
        ort: Any,
        values: dict[str, Any],
        kinds: dict[str, np.dtype],
        batch: int,
        capacity: int,
        nbytes: int,
        *,
        slab: np.ndarray | None = None,
        arrays: dict[str, np.ndarray] | None = None,
    ) -> None:
        self._ort = ort
        self.values = values
        self.binding: Any = None  # the session's, with these buffers bound
        self.kinds = kinds
        self.batch = batch
        self.capacity = capacity
        self.nbytes = nbytes
        # On the CPU all buffers are views of one block of bytes, which must outlive them.
        self.slab, self.arrays = slab, arrays

    def zero(self) -> None:
        """Sets every byte to 0: masked slots are multiplied by a zero weight, and 0 × NaN would be NaN."""
        if self.slab is not None:
            self.slab[:] = 0
            return
        for name, value in self.values.items():
            value.update_inplace(to_value(self._ort, np.zeros(value.shape(), self.kinds[name])))

    def peek(self, name: str) -> np.ndarray:
        """One buffer for reading: itself on the CPU, a copy of one on a device."""
        return self.read(name) if self.arrays is None else self.arrays[name]

    def read(self, name: str) -> np.ndarray:
        """A copy of one buffer."""
        array = np.empty(self.values[name].shape(), self.kinds[name])
        to_value(self._ort, array).update_inplace(self.values[name])
        return array


def new_cache(
    ort: Any,
    pairs: Sequence[CachePair],
    batch: int,
    capacity: int,
    *,
    device: tuple[str, int] = ("cpu", 0),
    reuse: OrtCache | None = None,
) -> OrtCache:
    """Zeroed buffers for every cache input of a graph.

    Args:
        ort: The onnxruntime module.
        pairs: The graph's cache inputs.
        batch: Rows.
        capacity: Tokens per row.
        device: Type and number.
        reuse: A cache that is no longer used; its memory is taken if it is large enough.

    Raises:
        BackendError: if there is no memory for it.
    """
    dims = {"batch": batch, "capacity": capacity}
    shapes: dict[str, tuple[int, ...]] = {}
    for pair in pairs:
        shape = resolve_shape(pair.spec, dims)
        if shape is None:
            raise BackendError(f"{pair.past}: shape {list(pair.spec.shape)} has unknown dimensions")
        shapes[pair.past] = shape
    kinds = {pair.past: numpy_dtype(pair.spec.dtype) for pair in pairs}
    sizes = {name: math.prod(shape) * kinds[name].itemsize for name, shape in shapes.items()}
    total = sum(sizes.values())
    try:
        if device[0] != "cpu":
            if reuse is not None and (reuse.batch, reuse.capacity) == (batch, capacity):
                reuse.zero()
                return reuse
            found, slab, arrays = _on_device(ort, shapes, kinds, device), None, None
        else:
            padded = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values())
            block = reuse.slab if reuse is not None else None
            # A much larger block would stay allocated for ever after one long request.
            if block is None or not padded <= block.nbytes <= 4 * padded:
                block = np.empty(padded, np.uint8)
            slab, arrays = block, _views(block, shapes, kinds, sizes)
            found = {name: to_value(ort, view) for name, view in arrays.items()}
    except (MemoryError, RuntimeError) as error:
        raise BackendError(
            f"no memory for a KV cache of {total / 1e6:.0f} MB ({error})".splitlines()[0],
            hint=f"a smaller batch, {arg('keep')} or {arg('max_new_tokens')}",
        ) from None
    cache = OrtCache(ort, found, kinds, batch, capacity, total, slab=slab, arrays=arrays)
    cache.zero()
    return cache


def _views(
    block: np.ndarray, shapes: dict[str, tuple[int, ...]], kinds: dict[str, np.dtype], sizes: dict[str, int]
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    start = 0
    for name, shape in shapes.items():
        found[name] = block[start : start + sizes[name]].view(kinds[name]).reshape(shape)
        start += -(-sizes[name] // ALIGNMENT) * ALIGNMENT
    return found


def _on_device(
    ort: Any, shapes: dict[str, tuple[int, ...]], kinds: dict[str, np.dtype], device: tuple[str, int]
) -> dict[str, Any]:
    make = ort.OrtValue.ortvalue_from_shape_and_type
    return {name: make(list(shape), ONNX_TYPES[kinds[name].name], *device) for name, shape in shapes.items()}
