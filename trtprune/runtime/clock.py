"""Milliseconds spent in each stage of an answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Clock"]


class Clock:
    """Milliseconds spent, by stage."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = dict.fromkeys(("preprocess", "vision", "prune", "prefill", "decode"), 0.0)
        self._start = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ms[name] += 1000 * (time.perf_counter() - start)

    def add(self, other: Clock) -> None:
        """Adds the times of another clock's stages."""
        for name, ms in other.ms.items():
            self.ms[name] += ms

    def read(self) -> dict[str, float]:
        """All stages and ``total``, the time since the clock's creation."""
        return {name: round(ms, 3) for name, ms in self.ms.items()} | {
            "total": round(1000 * (time.perf_counter() - self._start), 3)
        }
