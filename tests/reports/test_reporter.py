"""What long work says, and to whom."""

from __future__ import annotations

import logging

from trtprune.cli.console import TerminalReporter
from trtprune.log import logger
from trtprune.reports.reporter import SILENT, LogReporter, Reporter, reporter_of


def test_a_function_takes_lines() -> None:
    lines: list[tuple[str, str]] = []
    report = reporter_of(lambda component, message: lines.append((component, message)))
    report("vision", "exported")
    report.live("half way")
    assert lines == [("vision", "exported")]
    assert not report.moving


def test_a_function_with_a_moving_text() -> None:
    """An object of a caller that has ``live`` but does not say whether anything moves."""

    class Both:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def __call__(self, component: str, message: str) -> None:
            self.seen.append(f"{component}: {message}")

        def live(self, text: str) -> None:
            self.seen.append(text)

    both = Both()
    report = reporter_of(both)
    report("vision", "exported")
    report.live("half way")
    assert both.seen == ["vision: exported", "half way"]
    assert not report.moving


def test_reporters_stay_what_they_are() -> None:
    for report in (SILENT, LogReporter(), TerminalReporter("build")):
        assert isinstance(report, Reporter)
        assert reporter_of(report) is report


def test_nobody_asked_is_the_log() -> None:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        report = reporter_of(None)
        report("model", "looked up")
        report("model", "warning: odd")
        SILENT("model", "unheard")
    finally:
        logger.removeHandler(handler)
    assert [(record.levelname, record.getMessage()) for record in records] == [
        ("INFO", "model     looked up"),
        ("WARNING", "model     warning: odd"),
    ]
