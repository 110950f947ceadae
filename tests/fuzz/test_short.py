"""The short run of every fuzzer: always the same cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fuzz import kit
from trtprune.errors import InputError


@pytest.mark.parametrize("name", kit.names())
def test_short(name: str) -> None:
    found = kit.failures(name, range(kit.load_fuzzer(name).SHORT))
    assert not found, "\n".join(map(str, found))


def spin() -> None:
    """Never ends."""
    while True:
        pass


def hoard() -> None:
    """Takes more than is allowed."""
    hash(b"x" * 300_000_000)


def blow() -> None:
    """A bug."""
    raise ValueError("seen")


def refuse(message: str, hint: str | None) -> None:
    """As trtprune refuses."""
    raise InputError(message, hint=hint)


@pytest.mark.parametrize(
    ("function", "arguments", "fault"),
    [
        (spin, (), "timeout"),
        (hoard, (), " MB"),
        (blow, (), "ValueError: seen"),
        (refuse, ("no", None), "no hint"),
        (refuse, ("no", "say yes"), None),
        (print, ("fine",), None),
    ],
)
def test_the_kit_sees(function: Callable[..., None], arguments: tuple[Any, ...], fault: str | None) -> None:
    seconds = 0.7 if function is spin else kit.SECONDS  # a busy machine must not end the others
    outcome = kit.Attempts().run(function, *arguments, seconds=seconds, megabytes=200)
    found = outcome.fault(seconds, 200)
    assert found is None if fault is None else fault in (found or ""), (outcome, found)
