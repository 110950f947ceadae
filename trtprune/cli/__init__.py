"""The command line: click commands only. Nothing imports it.

``main`` is imported on first use: the program's entry point must listen for Ctrl-C before it imports click.
"""

from __future__ import annotations

from typing import Any

__all__ = ["main"]


def __getattr__(name: str) -> Any:
    if name == "main":
        from trtprune.cli.program import main

        return main
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
