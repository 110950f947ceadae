"""Progress of downloads: a bar in a terminal or notebook, otherwise a line every few seconds.

    progress = progress_of(report, "model")       # report(component, message) of a command, or None
    progress("looking it up on the hub")           # a permanent line
    with progress.transfer("llava-hf/llava-1.5-7b-hf", total=14_000_000_000) as transfer:
        transfer.advance(len(block))               # from any thread

A :class:`Progress` can replace any function of one line.
"""

from __future__ import annotations

import collections
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from trtprune.reports.reporter import LogReporter, Report, reporter_of

__all__ = ["Progress", "Transfer", "duration", "progress_of", "size"]

LINE_SECONDS = 5.0
RATE_SECONDS = 15.0
"""The window of the shown rate: the mean of an hour says little about the remaining time."""
BAR_CELLS = 20


class Progress:
    """The receiver of lines and bars about a piece of work.

    Args:
        line: Called with a permanent line.
        live: Called with a line that the next one replaces; None without such a place.
        bars: Whether tqdm's bars on stderr or in the notebook replace ``live``.
    """

    def __init__(
        self, line: Callable[[str], None], *, live: Callable[[str], None] | None = None, bars: bool = False
    ) -> None:
        self.line, self.live, self.bars = line, live, bars

    def __call__(self, text: str) -> None:
        self.line(text)

    @classmethod
    def of(cls, progress: Callable[[str], None] | None) -> Progress:
        """``progress`` as a :class:`Progress`: itself, or lines for a plain function, or the default for None."""
        if isinstance(progress, Progress):
            return progress
        return cls(progress) if progress is not None else progress_of(None, "model")

    def transfer(self, what: str, total: int | None = None, done: int = 0) -> Transfer:
        """Begins a download; a context manager.

        Args:
            what: Its name in messages.
            total: Its size in bytes, if known.
            done: Bytes from an earlier attempt.
        """
        return Transfer(self, what, total, done)


def progress_of(report: Report | None, component: str) -> Progress:
    """The progress of one component of a build.

    Args:
        report: Takes the lines; on a terminal's (:class:`trtprune.reports.reporter.Reporter`, ``moving``) a bar moves,
            too.  The log's, or None: bars in a terminal or notebook, else lines to the log.
        component: Component of the lines.
    """
    say = reporter_of(report)
    if isinstance(say, LogReporter):
        return Progress(lambda text: say(component, text), bars=_watched())
    return Progress(lambda text: say(component, text), live=say.live if say.moving else None)


def _watched() -> bool:
    if "ipykernel" in sys.modules:
        return True
    return sys.stderr is not None and sys.stderr.isatty()


class Transfer:
    """One download, from any number of threads."""

    def __init__(self, progress: Progress, what: str, total: int | None, done: int) -> None:
        self._progress, self._what, self.total, self.done = progress, what, total, done
        self._lock = threading.Lock()
        self._first = done
        self._start = self._shown = time.monotonic()
        self._seen = collections.deque([(self._start, done)])
        self._bar: Any = None
        if progress.bars:
            from huggingface_hub.utils import tqdm

            self._bar = tqdm(total=total, initial=done, desc=what, unit="B", unit_scale=True, leave=False)

    def advance(self, count: int) -> None:
        """Adds a number of received bytes; a negative one if a file is begun again."""
        with self._lock:
            self.done += count
            now = time.monotonic()
            self._seen.append((now, self.done))
            while len(self._seen) > 2 and self._seen[0][0] < now - RATE_SECONDS:
                self._seen.popleft()
            if self._bar is not None:
                self._bar.update(count)
                return
            if self._progress.live is None and now - self._shown < LINE_SECONDS:
                return
            self._shown = now
            # Within the lock: lines of two threads must not overtake each other.
            if self._progress.live is not None:
                self._progress.live(self._line(bar=True))
            else:
                self._progress.line(self._line(bar=False))

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._progress.live is not None:
            self._progress.live("")
        came, seconds = self.done - self._first, time.monotonic() - self._start
        if kind is None and came > 0:
            rate = f" ({size(came / seconds)}/s)" if seconds >= 1 else ""
            self._progress.line(f"{self._what}: {size(came)} in {duration(seconds)}{rate}")

    def _line(self, bar: bool) -> str:
        parts = [size(self.done)]
        share = 0.0
        if self.total:
            share = min(1.0, self.done / self.total)
            parts = [f"{size(self.done)} of {size(self.total)}", f"{100 * share:.0f} %"]
        (then, before), (now, here) = self._seen[0], self._seen[-1]
        rate = (here - before) / (now - then) if now > then else 0.0
        if rate > 0:
            parts.append(f"{size(rate)}/s")
            if self.total and self.total > self.done:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        text = ", ".join(parts)
        if not bar or not self.total:
            return f"{self._what}: {text}"
        full = round(share * BAR_CELLS)
        return f"{'━' * full}{'╌' * (BAR_CELLS - full)} {text}  {self._what}"


def size(count: float) -> str:
    """A number of bytes in about three digits, e.g. ``14.1 GB``."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.{0 if count >= 100 * unit else 1}f} {name}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds as ``41 s``, ``4:02`` minutes or ``1:04:02``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d} min"
