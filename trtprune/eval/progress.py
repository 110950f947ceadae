"""Progress of a long run: a bar on a terminal, otherwise one line per minute."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from trtprune.reports.durations import in_words
from trtprune.reports.terminal import is_quiet, stderr_console

__all__ = ["Meter"]

LINE_SECONDS = 60.0

logger = logging.getLogger("trtprune")


class Meter:
    """Counts answers; a context manager.

    Args:
        total: Number of all answers.
        done: Number of answers from earlier runs.
        clock: Clock in seconds.
        terminal: Whether stderr is a terminal; None: checked here.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        terminal: bool | None = None,
    ) -> None:
        self.total, self.done = total, done
        self._before = done
        self._clock = clock
        self._start = self._reported = clock()
        self._bar: Any = None
        if (sys.stderr.isatty() if terminal is None else terminal) and not is_quiet() and total > done:
            self._bar = _bar(total, done)

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, answers: int) -> None:
        """Adds a number of finished answers."""
        self.done += answers
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=answers)
        elif self._clock() - self._reported >= LINE_SECONDS:
            self._reported = self._clock()
            logger.info("%-9s %s", "answers", self.describe())

    def describe(self) -> str:
        """The state in words: ``1,200 of 10,000 (12.0 %), 8.3 a second, 18 min left``."""
        seconds = self._clock() - self._start
        fresh = self.done - self._before
        text = f"{self.done:,} of {self.total:,} ({100 * self.done / max(1, self.total):.1f} %)"
        if fresh and seconds > 0:
            rate = fresh / seconds
            text += f", {rate:.1f} a second, {in_words((self.total - self.done) / rate)} left"
        return text


def _bar(total: int, done: int) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("answers"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr_console(),
        transient=True,
        # Text that is printed meanwhile is a result, and belongs on stdout.
        redirect_stdout=False,
    )
    bar.add_task("answers", total=total, completed=done)
    return bar
