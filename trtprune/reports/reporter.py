"""What long work says while it goes on: lines that stay, and one text that the next replaces.

Callers of the Python API give any function of (component, message), or nothing; :func:`reporter_of` makes the one kind
of object of both that the rest of the package is written for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from trtprune.log import logger

__all__ = ["SILENT", "LogReporter", "Report", "Reporter", "reporter_of"]

Report = Callable[[str, str], None]
"""What callers may give: a function of a component and a message."""


@runtime_checkable
class Reporter(Protocol):
    """Takes what work says; :class:`trtprune.cli.console.TerminalReporter` is the command line's."""

    @property
    def moving(self) -> bool:
        """Whether there is a line on a terminal that :meth:`live` changes."""

    def __call__(self, component: str, message: str) -> None:
        """A line that stays: a component of the work, and what happened to it."""

    def live(self, text: str) -> None:
        """What is being done now, in place of the text before; an empty text ends it."""


class LogReporter:
    """Lines go to the logger ``trtprune``, warnings at their level and the rest at INFO; there is no moving line."""

    moving = False

    def __call__(self, component: str, message: str) -> None:
        level = logging.WARNING if message.startswith("warning") else logging.INFO
        logger.log(level, "%-9s %s", component, message)

    def live(self, text: str) -> None:
        """Nothing."""


class _Silence:
    """Takes what nobody wants to hear."""

    moving = False

    def __call__(self, component: str, message: str) -> None:
        """Nothing."""

    def live(self, text: str) -> None:
        """Nothing."""


SILENT: Reporter = _Silence()
"""The reporter of who wants none."""


class _FunctionReporter:
    """A caller's function, which takes lines; if it has a method ``live``, that takes what is being done now."""

    moving = False

    def __init__(self, report: Report) -> None:
        self._report = report
        self._live: Callable[[str], None] = getattr(report, "live", SILENT.live)

    def __call__(self, component: str, message: str) -> None:
        self._report(component, message)

    def live(self, text: str) -> None:
        """To the function's own, if it has one."""
        self._live(text)


def reporter_of(report: Report | None) -> Reporter:
    """``report`` itself if it is a :class:`Reporter`, else one that calls it; the logger's for None."""
    if report is None:
        return LogReporter()
    return report if isinstance(report, Reporter) else _FunctionReporter(report)
