"""Random cases: the same ones in CI, where a change must be judged by itself; new ones on every run elsewhere."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

import trtprune.reports.installer

# Before any test imports ONNX Runtime; see trtprune/backends/__init__.py.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Tables are as wide as a terminal; a run in several processes tells each of them of one.
os.environ.pop("COLUMNS", None)

settings.register_profile("ci", derandomize=True, database=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

# Some tests interrupt a child. What is started in the background by a shell without job control ignores SIGINT, and
# hands that down.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _installed_by_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in hints are pip's, whatever installed this environment."""
    monkeypatch.setattr(trtprune.reports.installer, "installed_by", lambda: "pip")
