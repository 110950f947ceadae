"""The interface of a backend, as the runtime sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from trtprune.engine_dir import ComponentInfo

__all__ = ["Backend", "CacheBuffers", "Session"]


class CacheBuffers(Protocol):
    """The KV cache of one batch, in memory the backend can bind: one buffer for each cache input."""

    batch: int
    capacity: int
    nbytes: int

    def zero(self) -> None:
        """Set every byte to 0."""


class Session(Protocol):
    """One graph, ready to run."""

    def run(self, inputs: Mapping[str, np.ndarray], cache: Any = None) -> dict[str, np.ndarray]:
        """Runs the graph.

        Args:
            inputs: All inputs but the cache, by name, in the graph's dtypes.
            cache: From :meth:`new_cache`; read and updated in place.

        Returns:
            All outputs but the cache.
        """

    def new_cache(self, batch: int, capacity: int, reuse: Any = None) -> Any:
        """Zeroed cache buffers for ``batch`` rows of ``capacity`` tokens.

        ``reuse`` may be a cache of this session that nobody needs any more; its memory is used if it fits.
        """

    def grow_cache(self, cache: Any, capacity: int) -> Any:
        """A cache of ``capacity`` tokens that begins with the content of ``cache``, which is not to be used again."""


class Backend(Protocol):
    """Opens components of an engine directory."""

    name: str

    def session(self, component: ComponentInfo, root: Path) -> Session:
        """Opens one component; ``root`` is the engine directory."""
