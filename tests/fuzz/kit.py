"""One attempt in a child process with limits: how long it took, its peak of memory, and how it ended."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from trtprune.errors import TrtpruneError, one_line

SECONDS = 20.0
"""Processor time one case may take, of the child and what it starts."""
MEGABYTES = 2000
"""Resident memory one case may take, in 10**6 bytes."""
# A busy machine slows what is measured; a case that waits instead of computing must end, too.
WALL = 3.0
# So that a case that takes too much does not take the machine: fails it, like any other shortage of memory.
ADDRESS_SPACE = 4


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        ending: ``answered``, ``refused`` (a TrtpruneError), ``traceback``, ``killed`` (by a signal) or ``timeout``.
        seconds: Processor time, of what the attempt started, too; wall time where it was killed.
        megabytes: Peak of resident memory of the largest process; 0 where it was killed.
        message: The error's line, or the traceback.
        hint: The error's hint.
        stderr: What was written to standard error, by libraries, too.
    """

    ending: str
    seconds: float
    megabytes: float
    message: str = ""
    hint: str | None = None
    stderr: str = ""

    def fault(self, seconds: float = SECONDS, megabytes: float = MEGABYTES, *, hint: bool = True) -> str | None:
        """What is wrong with it, None if nothing is."""
        if self.ending in ("traceback", "killed", "timeout"):
            return f"{self.ending}: {self.message[-2000:]}{self.stderr[-500:]}"
        if "Traceback (most recent call last)" in self.stderr or "panicked at" in self.stderr:
            return f"traceback on standard error: {self.stderr[-1000:]}"
        if self.seconds > seconds:
            return f"{self.seconds:.1f} s"
        if self.megabytes > megabytes:
            return f"{self.megabytes:,.0f} MB"
        if self.ending == "refused":
            if not self.message or one_line(self.message) != self.message:
                return f"not a printable line: {self.message[:200]!r}"
            if hint and not self.hint:
                return f"no hint: {self.message}"
        return None


class Attempts:
    """Runs functions in child processes that are forked from one with ``preload`` imported.

    Args:
        preload: Modules; of those that start threads when they are imported, none.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.fuzz.kit", *preload])

    def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        seconds: float = SECONDS,
        megabytes: float = MEGABYTES,
    ) -> Outcome:
        """``function(*arguments)`` in a child; ``function`` is one of a module, its result is dropped."""
        receiver, sender = self._context.Pipe(duplex=False)
        with tempfile.NamedTemporaryFile(prefix="trtprune-fuzz-") as errors:
            given = (sender, errors.name, megabytes, function, arguments)
            child = self._context.Process(target=_child, args=given)
            started = time.monotonic()
            child.start()
            sender.close()
            outcome = None
            try:
                if receiver.poll(seconds * WALL):
                    outcome = Outcome(*receiver.recv())
            except EOFError:
                pass
            finally:
                took = time.monotonic() - started
                if outcome is None and took >= seconds * WALL:
                    child.kill()
                child.join()
                receiver.close()
            said = Path(errors.name).read_text(encoding="utf-8", errors="replace")
        if outcome is None:
            ending = "timeout" if took >= seconds * WALL else "killed"
            return Outcome(ending, took, 0.0, f"exit code {child.exitcode}", None, said)
        return replace(outcome, stderr=said)


def _child(
    sender: Connection,
    errors: str,
    megabytes: float,
    function: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    descriptor = os.open(errors, os.O_WRONLY)
    os.dup2(descriptor, 2)
    size = int(megabytes * 1e6 * ADDRESS_SPACE)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = _used()[0]
    ending, message, hint = "answered", "", None
    try:
        function(*arguments)
    except TrtpruneError as error:
        ending, message, hint = "refused", error.message, error.hint
    except BaseException:  # also what is none of Python's own exceptions, like a panic of a Rust library
        ending, message = "traceback", traceback.format_exc()
    after, peak = _used()
    sender.send((ending, after - before, peak, message, hint))
    # Without the interpreter's own end: nothing of an attempt is to outlive it.
    sender.close()
    os._exit(0)


def _used() -> tuple[float, float]:
    """Processor seconds and peak megabytes, so far, of this process and its ended children."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(p.ru_utime + p.ru_stime for p in parts), max(p.ru_maxrss for p in parts) * 1024 / 1e6


@dataclass(frozen=True)
class Failed:
    """A case that did not pass: ``python -m tests.fuzz NAME --seed SEED --count 1`` makes it again."""

    fuzzer: str
    seed: int
    fault: str

    def __str__(self) -> str:
        return f"{self.fuzzer} --seed {self.seed}: {self.fault}"


def load_fuzzer(name: str) -> ModuleType:
    """The module of a fuzzer."""
    return importlib.import_module(f"tests.fuzz.fuzz_{name}")


def names() -> list[str]:
    """All fuzzers."""
    return sorted(path.stem.removeprefix("fuzz_") for path in Path(__file__).parent.glob("fuzz_*.py"))


def run_case(name: str, seed: int) -> None:
    """In the child: makes the case of a seed and attempts it, in an empty folder."""
    module = load_fuzzer(name)
    with tempfile.TemporaryDirectory(prefix="trtprune-fuzz-") as folder:
        module.attempt(module.make_case(random.Random(f"{name} {seed}")), Path(folder))


def run_seeds(name: str, seeds: Iterable[int], *, seconds: float = SECONDS) -> Iterator[tuple[int, Outcome]]:
    """Attempts the cases of seeds, one after the other."""
    module = load_fuzzer(name)
    attempts = Attempts([*module.PRELOAD, f"tests.fuzz.fuzz_{name}"])
    for seed in seeds:
        yield seed, attempts.run(run_case, name, seed, seconds=seconds)


def failures(name: str, seeds: Iterable[int]) -> list[Failed]:
    """Those of the seeds whose case does not pass."""
    found = []
    for seed, outcome in run_seeds(name, seeds):
        fault = outcome.fault()
        if fault is not None:
            found.append(Failed(name, seed, fault))
    return found
