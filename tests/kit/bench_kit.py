"""Planted cells and rows for the tests of bench and frontier, and a tiny build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trtprune
from tests.kit import tiny
from tests.kit.tiny_files import add_text_files
from trtprune.bench.cells import STAGES, Sample


def checkpoint(path: Path, **settings: Any) -> Path:
    """A tiny checkpoint with its text files."""
    t = tiny.Tiny(**settings)
    path.mkdir(parents=True, exist_ok=True)
    tiny.make(path, t)
    add_text_files(path, t)
    return path


def build(source: Path, out: Path, **settings: Any) -> Path:
    """An engine directory of it."""
    trtprune.build(str(source), out, **settings)
    return out


class Planted:
    """A cell whose times are known: ``first`` and ``total`` of each run, milliseconds."""

    def __init__(
        self, method: str, keep: int, first: Sequence[float], total: Sequence[float], *, peer: bool = False
    ) -> None:
        self.method, self.keep, self.peer = method, keep, peer
        self._runs = list(zip(first, total, strict=True))
        self.ran: list[int] = []

    def run(self) -> Sample:
        first, total = self._runs[len(self.ran)]
        self.ran.append(len(self.ran))
        stages = {stage: first * share for stage, share in zip(STAGES, (0.1, 0.4, 0.05, 0.4, 0.0), strict=True)}
        stages["decode"] = total - first
        return Sample(stages, first, total, 5, 1000 * self.keep, 20 + self.keep, (1, 2, 3, 4, 5))


class Ticks:
    """A clock that moves on by one step of ``steps`` each time it is read, and by the last one for ever."""

    def __init__(self, *steps: float) -> None:
        self.now, self._steps = 0.0, list(steps)

    def __call__(self) -> float:
        now = self.now
        self.now += self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        return now
