"""One run of all cells in turn, so that every ratio is between neighbours in time."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trtprune.bench.cells import Cell, Sample
    from trtprune.bench.floor import Probe

__all__ = ["PERCENTILES", "interleave", "ratio", "spread"]

PERCENTILES = (50, 90, 99)
# Threads of the one that ran before spin for a while; they must not take time from the next.
REST = 0.05


def interleave(
    cells: Sequence[Cell],
    probes: Sequence[Probe],
    *,
    rounds: int,
    warmup: int,
    seed: int,
    report: Callable[[str, str], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[list[Sample]]:
    """Runs every cell once a round, in an order drawn anew for each round.

    Args:
        cells: What is measured.
        probes: Sampled once a round, among the cells.
        rounds: That count.
        warmup: Rounds before them, which do not.
        seed: Of the orders.
        report: Called with ("round", "3 of 10") as they begin.
        sleep: Between two runs.

    Returns:
        For each cell its samples, in the order of the rounds.
    """
    rng = random.Random(seed)
    found: list[list[Sample]] = [[] for _ in cells]
    for number in range(-warmup, rounds):
        if report is not None:
            words = f"{number + 1} of {rounds}" if number >= 0 else f"warming up, {number + warmup + 1} of {warmup}"
            report("round", words)
        # Numbers below that of the first probe are cells.
        order = list(range(len(cells) + len(probes)))
        rng.shuffle(order)
        for place in order:
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


def spread(samples: Sequence[float]) -> dict[str, float]:
    """``p50``, ``p90`` and ``p99``, linear between samples as NumPy has it."""
    return {f"p{q}": round(float(np.percentile(samples, q)), 3) for q in PERCENTILES}


def ratio(base: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """``base / other`` round by round: the median, and the middle eight tenths of the rounds.

    The speed of a shared machine drifts; what two neighbours of one round have in common cancels out.
    """
    found = [b / o for b, o in zip(base, other, strict=True)]
    low, high = (float(np.percentile(found, q)) for q in (10, 90))
    return {"p50": round(statistics.median(found), 4), "p10": round(low, 4), "p90": round(high, 4)}
