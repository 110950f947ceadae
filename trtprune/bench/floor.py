"""The machine's speed at the two parts of a request: matrix products, and moving bytes.

A floor says what cannot be undercut, so a rate is the best that was seen: of several repetitions one after the other,
when threads are awake and operands where they are in a long run, and of all rounds, which take turns with the requests.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["ALLOWANCE", "Probe", "Rate", "floor_ms"]

ALLOWANCE = 0.03
"""The part that a time may be below its floor: timers, and a machine that runs faster in one round than in another."""
# The shortest time of a repetition: a shorter one would measure the timer.
LEAST_SECONDS = 1e-3
# The time of a sample: long enough for a quiet moment on a shared machine.
SAMPLE_SECONDS = 0.06
LEAST_REPETITIONS = 3


def floor_ms(flops: float, nbytes: float, flops_per_s: float | None, bytes_per_s: float | None) -> float:
    """Milliseconds of the slower of the two: ``max(flops / rate, bytes / bandwidth)``.

    A rate that was not measured is ignored.
    """
    compute = flops / flops_per_s if flops_per_s else 0.0
    move = nbytes / bytes_per_s if bytes_per_s else 0.0
    return 1000 * max(compute, move)


@dataclass
class Rate:
    """Work per second, in several rounds."""

    work: float
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """Median over the rounds; None before the first."""
        return statistics.median(self.samples) if self.samples else None

    @property
    def best(self) -> float | None:
        """The fastest round; None before the first."""
        return max(self.samples) if self.samples else None

    def to_json(self, unit: float = 1e9) -> dict[str, float]:
        """Median, slowest and fastest round, in billions per second."""
        found = {"p50": statistics.median(self.samples), "min": min(self.samples), "max": max(self.samples)}
        return {name: round(value / unit, 3) for name, value in found.items()}


class Probe:
    """A repeated piece of work; ``work`` is the amount of one run of it."""

    def __init__(self, name: str, work: float, clock: Callable[[], float]) -> None:
        self.name = name
        self.rate = Rate(work)
        self._clock = clock
        self._times = 1

    def once(self) -> None:
        raise NotImplementedError

    def warm_up(self) -> None:
        """Runs it, and finds the number of repetitions of a sample."""
        self.once()
        start = self._clock()
        self.once()
        spent = self._clock() - start
        self._times = max(1, math.ceil(LEAST_SECONDS / spent)) if spent > 0 else 1

    def sample(self) -> None:
        """Records one more sample: the fastest of several repetitions behind one another, the first of which is none.

        Before the first one threads may sleep, and the operands lie where the last cell's run has left them.
        """
        self.once()
        begin, best, done = self._clock(), 0.0, 0
        now = begin
        while done < LEAST_REPETITIONS or now - begin < SAMPLE_SECONDS:
            for _ in range(self._times):
                self.once()
            start, now = now, self._clock()
            if now > start:
                best = max(best, self.rate.work * self._times / (now - start))
            done += 1
        if best:
            self.rate.samples.append(best)
