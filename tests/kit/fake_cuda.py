"""A GPU made of host memory, for tests: strict about addresses, and as late as a real one.

Work that is asked for is queued and done only when someone waits.  So a copy to the host that is read too early is
seen to be unread, page-locked memory that is overwritten too early arrives overwritten, and a recorded graph works on
what its buffers hold when it is launched.  Fresh memory is full of 0xFF, which is NaN in every float.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from trtprune.backends.tensorrt.cuda import Device

ALIGNMENT = 256


class FakeDriver:
    """See :class:`trtprune.backends.tensorrt.cuda.Driver`.

    Attributes:
        h2d, d2h, d2d: Bytes of each copy, in order.
        allocations: Bytes of each allocation.
        launches: How often a recorded graph was launched; ``recordings`` were made.
        waits: How often someone waited.
    """

    stream = 77

    def __init__(self, total: int = 1 << 30, capability: tuple[int, int] = (9, 0)) -> None:
        self.device = Device("Fake GPU", capability)
        self.total = total
        self.blocks: dict[int, np.ndarray] = {}
        self.pinned: list[np.ndarray] = []
        self.h2d: list[int] = []
        self.d2h: list[int] = []
        self.d2d: list[int] = []
        self.allocations: list[int] = []
        self.launches = self.recordings = self.waits = 0
        self._queue: list[Callable[[], None]] = []
        self._recording = False

    @property
    def used(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())

    def enter(self) -> None:
        self.current = True

    def memory_info(self) -> tuple[int, int]:
        return self.total - self.used, self.total

    def allocate(self, nbytes: int) -> int:
        assert not self._recording, "allocation inside of a recording"
        assert nbytes > 0
        if self.used + nbytes > self.total:
            raise MemoryError
        whole = np.full(nbytes + ALIGNMENT, 0xFF, np.uint8)
        start = -whole.ctypes.data % ALIGNMENT
        block = whole[start : start + nbytes]
        self.blocks[block.ctypes.data] = block
        self.allocations.append(nbytes)
        return block.ctypes.data

    def free(self, address: int) -> None:
        assert not self._recording, "freeing inside of a recording"
        self.synchronize()
        self.blocks.pop(address)[:] = 0xFF

    def allocate_host(self, nbytes: int) -> np.ndarray:
        self.pinned.append(np.full(nbytes, 0xFF, np.uint8))
        return self.pinned[-1]

    def view(self, address: int, nbytes: int) -> np.ndarray:
        """Device memory, which must lie in one living allocation."""
        for start, block in self.blocks.items():
            if start <= address and address + nbytes <= start + block.nbytes:
                return block[address - start : address - start + nbytes]
        raise AssertionError(f"{nbytes} bytes at {address:#x} are in no allocation")

    def to_device(self, address: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self.view(address, array.nbytes)
        pinned = any(array.ctypes.data in range(p.ctypes.data, p.ctypes.data + p.nbytes) for p in self.pinned)
        assert pinned or not self._recording, "a recorded copy would read memory that may be gone"
        source = array if pinned else array.copy()

        def work() -> None:
            self.h2d.append(source.nbytes)
            self.view(address, source.nbytes)[:] = _bytes(source)

        self.push(work)

    def to_host(self, array: np.ndarray, address: int) -> None:
        assert array.flags.c_contiguous
        self.view(address, array.nbytes)

        def work() -> None:
            self.d2h.append(array.nbytes)
            _bytes(array)[:] = self.view(address, array.nbytes)

        self.push(work)

    def on_device(self, target: int, source: int, nbytes: int) -> None:
        self.view(target, nbytes)
        self.view(source, nbytes)

        def work() -> None:
            self.d2d.append(nbytes)
            self.view(target, nbytes)[:] = self.view(source, nbytes).copy()

        self.push(work)

    def clear(self, address: int, nbytes: int) -> None:
        self.view(address, nbytes)
        self.push(lambda: self.view(address, nbytes).fill(0))

    def synchronize(self) -> None:
        assert not self._recording, "waiting inside of a recording"
        self.waits += 1
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        before, self._queue, self._recording = self._queue, [], True
        try:
            work()
        finally:
            recorded, self._queue, self._recording = self._queue, before, False
        self.recordings += 1
        # What cannot be recorded must have been done before: contexts load and compile in their first run.
        for step in recorded:
            assert not getattr(step, "first", False), "the first run of a context cannot be recorded"

        def launch() -> None:
            self.launches += 1
            self._queue += recorded

        return launch

    def push(self, work: Callable[[], None]) -> None:
        """Queues work; an engine's goes this way too."""
        self._queue.append(work)


def _bytes(array: np.ndarray) -> np.ndarray:
    """A view of the array's bytes."""
    if not array.nbytes:
        return np.zeros(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data))
