"""The drivers of ``cpp/tests/drivers`` for tests that hold the C++ library to Python."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kit import cpp_build


@pytest.fixture(scope="session")
def driver() -> Callable[..., cpp_build.Driver]:
    """``driver(name)`` builds the program and returns it as a function from a list of JSON values to such a list."""
    return cpp_build.driver


@pytest.fixture(autouse=True)
def _onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that a test starts itself load the ONNX Runtime library that Python uses, too."""
    monkeypatch.setenv("TRTPRUNE_ONNXRUNTIME", str(cpp_build.onnxruntime()))
