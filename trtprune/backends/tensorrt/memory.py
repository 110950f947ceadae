"""Arrays in device memory, and the allocation of that memory.

Freed memory is kept for the next array of about the same size: after the first answer nothing is allocated.  All work
is on one stream, so memory can be reused before the work that uses it is done.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from trtprune.backends.binding import numpy_dtype
from trtprune.backends.tensorrt.cuda import Driver
from trtprune.errors import BackendError

__all__ = ["ALIGNMENT", "DeviceArray", "DeviceMemory", "block_size", "round_up"]

ALIGNMENT = 256
"""Alignment of every bound address, in bytes: TensorRT requires it, and cudaMalloc provides it."""

# A larger block is freed at once: such blocks are mostly caches, which seldom change size.
KEEP_BYTES = 64 << 20


def round_up(size: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-size // step) * step


def block_size(nbytes: int) -> int:
    """Bytes to allocate for ``nbytes``: up to an eighth more, so that few sizes serve all prompt lengths."""
    if nbytes <= 2048:
        return round_up(max(nbytes, 1), ALIGNMENT)
    return round_up(nbytes, max(ALIGNMENT, 1 << (nbytes - 1).bit_length() - 4))


class Block:
    """A block of device memory; it is returned when the last reference to it is gone."""

    def __init__(self, memory: DeviceMemory, address: int, nbytes: int) -> None:
        self.memory = memory
        self.address = address
        self.nbytes = nbytes

    def __del__(self) -> None:
        self.memory.give_back(self.address, self.nbytes)


class DeviceArray:
    """A C-contiguous array in device memory; see :class:`trtprune.backends.base.Array`.

    Args:
        block: The memory that holds it.
        address: Address of the first element.
        shape, dtype: As in NumPy.
    """

    def __init__(self, block: Block, address: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.block = block
        self.address = address
        self.shape = shape
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> DeviceArray:
        """A view: an element or slice of the first axis, or the array with a first axis of one.

        An array of indices selects rows; they are copied unless they are consecutive.
        """
        if key is None:
            return self.view((1, *self.shape))
        length, row = len(self), math.prod(self.shape[1:]) * self.dtype.itemsize
        if isinstance(key, slice):
            start, stop, step = key.indices(length)
            if step != 1:
                raise IndexError("slices of device arrays have step 1")
            return self.view((max(0, stop - start), *self.shape[1:]), start * row)
        if isinstance(key, np.ndarray) and key.ndim:
            return self._rows(key)
        index = int(key)
        if not -length <= index < length:
            raise IndexError(f"{index} is outside of {length}")
        return self.view(self.shape[1:], index % length * row)

    def _rows(self, indices: np.ndarray) -> DeviceArray:
        """The rows of the first axis that ``indices`` names."""
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"rows {indices} of {len(self)}")
        starts = [0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
        runs = [self[int(indices[a]) : int(indices[a]) + b - a] for a, b in pairwise(starts) if b > a]
        if len(runs) == 1:
            return runs[0]
        memory = self.block.memory
        rows = memory.empty((len(indices), *self.shape[1:]), self.dtype)
        address = rows.address
        for run in runs:
            memory.driver.on_device(address, run.address, run.nbytes)
            address += run.nbytes
        return rows

    def view(self, shape: tuple[int, ...], offset: int = 0, dtype: str | None = None) -> DeviceArray:
        """The memory ``offset`` bytes behind the first element, as another array."""
        return DeviceArray(self.block, self.address + offset, shape, numpy_dtype(dtype) if dtype else self.dtype)

    def __repr__(self) -> str:
        return f"DeviceArray({list(self.shape)}, {self.dtype.name}, {self.address:#x})"


class DeviceMemory:
    """The memory of a device; see :class:`trtprune.backends.base.Memory`."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._closed = False

    def empty(self, shape: tuple[int, ...], dtype: np.dtype | str) -> DeviceArray:
        """An array of undefined content.

        Raises:
            BackendError: if the device has no memory left.
        """
        kind = numpy_dtype(dtype) if isinstance(dtype, str) else dtype
        size = block_size(math.prod(shape) * kind.itemsize)
        free = self._free[size]
        address = free.pop() if free else self._allocate(size)
        return DeviceArray(Block(self, address, size), address, shape, kind)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype | str) -> DeviceArray:
        """An array of zeros."""
        array = self.empty(shape, dtype)
        self.driver.clear(array.address, array.nbytes)
        return array

    def upload(self, array: np.ndarray) -> DeviceArray:
        """A copy of a host array."""
        found = self.empty(array.shape, array.dtype)
        self.driver.to_device(found.address, np.ascontiguousarray(array))
        return found

    def aligned(self, array: DeviceArray) -> DeviceArray:
        """The array, or a copy of it if a view is not aligned."""
        if array.address % ALIGNMENT == 0:
            return array
        copy = self.empty(array.shape, array.dtype)
        self.driver.on_device(copy.address, array.address, array.nbytes)
        return copy

    def join(self, rows: Sequence[Sequence[Any]], width: int) -> DeviceArray:
        """Pieces [n, D] of each row, and zeros behind them: [rows, width, D].  Copies within the device only."""
        first = rows[0][0]
        joined = self.empty((len(rows), width, first.shape[1]), first.dtype)
        line = first.shape[1] * first.dtype.itemsize
        for i, pieces in enumerate(rows):
            address, end = joined[i].address, joined[i].address + width * line
            for piece in pieces:
                # Pieces on the host come from callers that build the rows themselves.
                if isinstance(piece, np.ndarray):
                    self.driver.to_device(address, np.ascontiguousarray(piece))
                else:
                    self.driver.on_device(address, piece.address, piece.nbytes)
                address += len(piece) * line
            if address < end:
                self.driver.clear(address, end - address)
        return joined

    def concatenate(self, pieces: Sequence[Any]) -> DeviceArray:
        """The pieces behind one another, copied within the device; a single one as it is."""
        first = pieces[0]
        if len(pieces) == 1:
            return first
        joined = self.empty((sum(map(len, pieces)), *first.shape[1:]), first.dtype)
        address = joined.address
        for piece in pieces:
            self.driver.on_device(address, piece.address, piece.nbytes)
            address += piece.nbytes
        return joined

    def to_host(self, array: Any) -> np.ndarray:
        """A copy on the host, once all work on the array is done."""
        if isinstance(array, np.ndarray):
            return array
        copy = np.empty(array.shape, array.dtype)
        self.driver.to_host(copy, array.address)
        self.driver.synchronize()
        return copy

    def wait(self) -> None:
        """Returns when all work is done."""
        self.driver.synchronize()

    def give_back(self, address: int, size: int) -> None:
        """Takes back memory that is no longer used."""
        if size <= KEEP_BYTES and not self._closed:
            self._free[size].append(address)
        else:
            self.driver.free(address)

    def release(self) -> None:
        """Frees all memory that is not in use."""
        while self._free:
            for address in self._free.popitem()[1]:
                self.driver.free(address)

    def __del__(self) -> None:
        self._closed = True  # the garbage collector frees arrays and their memory in any order
        self.release()

    def _allocate(self, size: int) -> int:
        try:
            return self.driver.allocate(size)
        except MemoryError:
            self.release()
        try:
            return self.driver.allocate(size)
        except MemoryError:
            free = self.driver.memory_info()[0]
            raise BackendError(
                f"no memory on the GPU for {size / 1e6:,.0f} MB more; {free / 1e6:,.0f} MB are free",
                hint="a smaller batch or --keep, or build with a smaller --max-seq-len",
            ) from None
