"""One run of all cells in turn, so that ratios compare runs of nearly the same time."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.reports.durations import in_words
from trtprune.reports.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from trtprune.bench.cells import Cell, Sample
    from trtprune.bench.floor import Probe

__all__ = ["PERCENTILES", "interleave", "ratio", "spread"]

PERCENTILES = (50, 90, 99)
# Threads of the previous cell spin for a while; they must not take time from the next one.
REST = 0.05
LINE_SECONDS = 60.0


def interleave(
    cells: Sequence[Cell],
    probes: Sequence[Probe],
    *,
    rounds: int,
    warmup: int,
    seed: int,
    report: Reporter = SILENT,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[list[Sample]]:
    """Runs every cell once per round, in a new random order in each round.

    Args:
        cells: The measured cells.
        probes: Probes, each with one sample per round, among the cells.
        rounds: Number of counted rounds.
        warmup: Number of rounds before them, which are not counted.
        seed: Seed of the orders.
        report: Called with ("round", "3 of 10, 4 min left") at the begin of a round, and once per minute within a long
            one; its ``live`` with the current run.
        sleep: Function that pauses between two runs.
        clock: Seconds.

    Returns:
        For each cell its samples, in the order of the rounds.
    """
    rng = random.Random(seed)
    pace = _Pace((rounds + warmup) * (len(cells) + len(probes)), report, clock)
    found: list[list[Sample]] = [[] for _ in cells]
    for number in range(-warmup, rounds):
        words = f"{number + 1} of {rounds}" if number >= 0 else f"warming up, {number + warmup + 1} of {warmup}"
        pace.begin(words)
        # Numbers below that of the first probe are cells.
        order = list(range(len(cells) + len(probes)))
        rng.shuffle(order)
        for turn, place in enumerate(order, 1):
            name = f"{cells[place].method} {cells[place].keep}" if place < len(cells) else "machine"
            pace.next(f"run {turn}/{len(order)}: {name}")
            sleep(REST)
            if place < len(cells):
                sample = cells[place].run()
                if number >= 0:
                    found[place].append(sample)
            elif number >= 0:
                probes[place - len(cells)].sample()
            else:
                probes[place - len(cells)].warm_up()
    return found


class _Pace:
    """Reports the progress of the runs and the remaining time.

    Args:
        total: Number of runs.
        report: As in :func:`interleave`.
        clock: Seconds.
    """

    def __init__(self, total: int, report: Reporter, clock: Callable[[], float]) -> None:
        self._total, self._done, self._report, self._clock = total, 0, report, clock
        self._start = self._reported = clock()
        self._round = ""

    def begin(self, words: str) -> None:
        """Begins a round."""
        self._round = words
        self._say(words + self._left())

    def next(self, words: str) -> None:
        """Begins a run."""
        prefix = "" if self._round.startswith("warming") else "round "
        self._report.live(f"{prefix}{self._round}, {words}{self._left()}")
        if self._clock() - self._reported >= LINE_SECONDS:
            self._say(f"{self._round}, {words}{self._left()}")
        self._done += 1

    def _say(self, words: str) -> None:
        self._reported = self._clock()
        self._report("round", words)

    def _left(self) -> str:
        """``, 4 min left``, as soon as it can be estimated."""
        if not self._done:
            return ""
        spent = self._clock() - self._start
        return f", {in_words(spent * (self._total - self._done) / self._done)} left"


def spread(samples: Sequence[float]) -> dict[str, float]:
    """``p50``, ``p90`` and ``p99``, linear between samples as in NumPy."""
    return {f"p{q}": round(float(np.percentile(samples, q)), 3) for q in PERCENTILES}


def ratio(base: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """``base / other`` round by round: the median, and the middle eight tenths of the rounds.

    The speed of a shared machine drifts; in a ratio of two neighbours of one round the drift cancels.
    """
    found = [b / o for b, o in zip(base, other, strict=True)]
    low, high = (float(np.percentile(found, q)) for q in (10, 90))
    return {"p50": round(statistics.median(found), 4), "p10": round(low, 4), "p90": round(high, 4)}
