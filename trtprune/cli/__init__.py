"""The command line: click commands only. Nothing imports it.

``main`` is imported when it is asked for: the program's entry point must not import click before it listens for Ctrl-C.
"""

from __future__ import annotations

from typing import Any

__all__ = ["main"]


def __getattr__(name: str) -> Any:
    if name == "main":
        from trtprune.cli.program import main

        return main
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
