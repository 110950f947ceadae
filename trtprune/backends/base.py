"""The interface of a backend, as the runtime sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from trtprune.engine_dir import ComponentInfo

__all__ = ["Array", "Backend", "CacheBuffers", "CachedRow", "Memory", "Session", "Step"]


class Array(Protocol):
    """An array in a backend's memory: a NumPy array, or one on a device.

    Every backend can index the first axis only: ``a[2]``, ``a[3:7]``, ``a[None]``, and ``a[rows]`` with an
    integer array.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""

    @property
    def dtype(self) -> np.dtype:
        """The data type as a NumPy dtype."""

    def __getitem__(self, key: Any) -> Any:
        """Part of the array; may be a view."""

    def __len__(self) -> int:
        """Size of the first axis."""


class Memory(Protocol):
    """The memory of a backend's arrays, and the few operations on them outside of graphs."""

    def join(self, rows: Sequence[Sequence[Array]], width: int) -> Array:
        """The pieces [n, D] of each row in sequence, followed by zeros: [rows, width, D]."""

    def concatenate(self, pieces: Sequence[Array]) -> Array:
        """The pieces [n, …], at least one, behind one another along the first axis."""

    def to_host(self, array: Array) -> np.ndarray:
        """The array as NumPy's, readable by Python."""

    def wait(self) -> None:
        """Returns when all requested work is done; a device works asynchronously."""


class CacheBuffers(Protocol):
    """The KV cache of one batch, in memory the backend can bind: one buffer for each cache input."""

    batch: int
    capacity: int
    nbytes: int

    def zero(self) -> None:
        """Set every byte to 0."""


@dataclass(frozen=True)
class CachedRow:
    """The beginning of one row of a cache.

    Attributes:
        cache: The cache.
        row: The row's number.
        tokens: Tokens from its first slot on.
    """

    cache: Any
    row: int
    tokens: int


class Session(Protocol):
    """One graph, ready to run."""

    max_batch: int
    """The largest number of rows of one run."""

    @property
    def capacity(self) -> int | None:
        """Tokens that a row of its caches holds, where that is fixed, as in an engine; None: as :meth:`new_cache` is
        asked."""

    def run(self, inputs: Mapping[str, Any], cache: Any = None) -> Mapping[str, Any]:
        """Runs the graph.

        Args:
            inputs: All inputs but the cache, by name, in the graph's dtypes: NumPy arrays, or the backend's own.
            cache: From :meth:`new_cache`; read and updated in place.

        Returns:
            All outputs but the cache, in the backend's memory.
        """

    def new_cache(self, batch: int, capacity: int, reuse: Any = None) -> Any:
        """Zeroed cache buffers for ``batch`` rows of at least ``capacity`` tokens.

        ``reuse`` may be a cache of this session that is no longer used; its memory is taken if it fits.
        """

    def grow_cache(self, cache: Any, capacity: int) -> Any:
        """A cache of ``capacity`` tokens that begins with the content of ``cache``; do not use ``cache`` afterwards."""

    def gather_rows(self, rows: Sequence[CachedRow], capacity: int, reuse: Any = None) -> Any:
        """A new cache of at least ``capacity`` tokens, whose rows are copies of rows of other caches of this session.

        Args:
            rows: The rows; the other caches stay as they are.
            capacity: Tokens of a row; no row has more.
            reuse: As in :meth:`new_cache`; none of the caches of ``rows``.
        """


class Step(Protocol):
    """One step of an answer: the last token of each row as input, the logits of its next token as output."""

    def __call__(self, token: np.ndarray, position: np.ndarray, write_index: np.ndarray) -> np.ndarray:
        """Runs it.

        Args:
            token: int64 [B, 1].
            position: int64 [B, axes, 1].
            write_index: int64 [B], the token's place in the cache.

        Returns:
            Logits float32 [B, V] on the host, which may be overwritten by the next call.
        """


class Backend(Protocol):
    """Opens components of an engine directory."""

    name: str
    memory: Memory

    def session(self, component: ComponentInfo, root: Path) -> Session:
        """Opens one component; ``root`` is the engine directory."""

    def step(self, embed: Any, decoder: Any, cache: Any) -> Step:
        """The decode step over one cache, from two sessions of this backend."""
