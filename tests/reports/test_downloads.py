"""What downloads say on the way: figures that are right, a bar, lines now and then, and the right place for them."""

from __future__ import annotations

import logging
import sys
import threading

import pytest

from trtprune.reports import downloads
from trtprune.reports.downloads import Progress, duration, progress_of, size
from trtprune.reports.reporter import LogReporter


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(downloads.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_size_rate_and_time_left(clock: Clock) -> None:
    lines: list[str] = []
    with Progress(lines.append).transfer("owner/name", 14_000_000_000) as transfer:
        for _ in range(12):
            clock.now += 1
            transfer.advance(50_000_000)
        assert lines == [
            "owner/name: 250 MB of 14.0 GB, 2 %, 50.0 MB/s, 4:35 min left",
            "owner/name: 500 MB of 14.0 GB, 4 %, 50.0 MB/s, 4:30 min left",
        ]
        clock.now += 100  # a long stall: the rate is that of the last seconds, not the mean
        transfer.advance(1_000_000)
        clock.now += 10
        transfer.advance(1_000_000)
        assert "100 kB/s" in lines[-1]
    assert lines[-1] == "owner/name: 602 MB in 2:02 min (4.9 MB/s)"


def test_a_bar_where_a_line_can_change(clock: Clock) -> None:
    lines: list[str] = []
    shown: list[str] = []
    with Progress(lines.append, live=shown.append).transfer("weights", 1000, done=500) as transfer:
        clock.now += 1
        transfer.advance(250)
    assert shown == ["━━━━━━━━━━━━━━━╌╌╌╌╌ 750 B of 1.0 kB, 75 %, 250 B/s, 1.0 s left  weights", ""]
    assert lines == ["weights: 250 B in 1.0 s (250 B/s)"]


def test_an_unknown_size_and_nothing_to_do(clock: Clock) -> None:
    lines: list[str] = []
    with Progress(lines.append).transfer("x") as transfer:
        clock.now += 6
        transfer.advance(3_000)
    assert lines == ["x: 3.0 kB, 500 B/s", "x: 3.0 kB in 6.0 s (500 B/s)"]
    with Progress(lines.append).transfer("cached", 10, done=10):
        pass
    with pytest.raises(KeyError), Progress(lines.append).transfer("failed", 10) as transfer:
        transfer.advance(5)
        raise KeyError
    assert len(lines) == 2, "what was cached or failed is not said to have been downloaded"


def test_many_threads_lose_no_byte() -> None:
    with Progress(lambda _: None).transfer("x", 4000) as transfer:
        threads = [threading.Thread(target=lambda: [transfer.advance(1) for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert transfer.done == 4000


def test_a_caller_without_a_report(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("trtprune")
    caplog.set_level(logging.INFO, "trtprune")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    progress_of(None, "model")("looked up")
    LogReporter()("model", "warning: odd")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "model     looked up"),
        ("WARNING", "model     warning: odd"),
    ]


def test_bars_only_where_somebody_watches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert not progress_of(None, "model").bars
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = progress_of(LogReporter(), "model")
    assert progress.bars
    with progress.transfer("owner/name", 2_000_000) as transfer:
        transfer.advance(1_000_000)
        transfer.advance(1_000_000)
    assert "owner/name" in capsys.readouterr().err
    # A report of one's own gets lines, not bars.
    assert not progress_of(lambda component, text: None, "model").bars


def test_figures() -> None:
    sizes = [0, 999, 1500, 99_940, 123_456_789, 14_123_000_000]
    assert [size(n) for n in sizes] == ["0 B", "999 B", "1.5 kB", "99.9 kB", "123 MB", "14.1 GB"]
    assert [duration(s) for s in (0.4, 41, 242, 3842)] == ["0.4 s", "41 s", "4:02 min", "1:04:02"]
