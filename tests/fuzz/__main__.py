"""The long run of a fuzzer, by hand; see the package's text."""

from __future__ import annotations

import collections
import itertools
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import click

from tests.fuzz import kit


@click.command()
@click.argument("name", type=click.Choice(kit.names()))
@click.option("--minutes", type=float, default=10.0, show_default=True, help="How long to go on.")
@click.option("--count", type=int, help="Stop after this number of cases.")
@click.option("--seed", type=int, default=1000, show_default=True, help="The first case; the next ones follow.")
@click.option("--workers", type=int, default=1, show_default=True, help="Cases side by side.")
@click.option("--verbose", is_flag=True, help="Print each case.")
def main(name: str, minutes: float, count: int | None, seed: int, workers: int, verbose: bool) -> None:
    """Runs the fuzzer NAME; exits with 1 if a case fails."""
    end = time.monotonic() + minutes * 60
    numbers = itertools.count(seed) if count is None else iter(range(seed, seed + count))
    endings: collections.Counter[str] = collections.Counter()
    faults: list[kit.Failed] = []
    slowest = largest = 0.0

    def seeds() -> Iterator[int]:
        for number in numbers:
            if time.monotonic() > end:
                return
            yield number

    def work(worker: int) -> None:
        nonlocal slowest, largest
        for number, outcome in kit.run_seeds(name, seeds()):
            endings[outcome.ending] += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.megabytes)
            fault = outcome.fault()
            if fault is not None:
                faults.append(kit.Failed(name, number, fault))
                print(f"FAILED {faults[-1]}", flush=True)
            elif verbose:
                print(f"{number}: {outcome.ending}, {outcome.seconds:.2f} s, {outcome.message} / {outcome.hint}")

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    print(f"{sum(endings.values())} cases: {dict(endings)}; at most {slowest:.1f} s, {largest:,.0f} MB")
    print(f"{len(faults)} failed")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
