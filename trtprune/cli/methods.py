"""``trtprune methods``: inputs, options and outputs of each pruning method."""

from __future__ import annotations

import textwrap
from typing import Any

from trtprune import pruning

__all__ = ["describe_methods", "render_methods"]

COLUMN = 13
WIDTH = 118


def describe_methods() -> list[dict[str, Any]]:
    """One entry per method, for ``--json``."""
    return [
        {
            "name": method.name,
            "summary": method.summary,
            "paper": method.paper,
            "needs": sorted(method.needs),
            "needs_in_words": method.describe_needs(),
            "cost": method.cost,
            "merges": method.merges,
            "positions": method.positions,
            "grid_positions": method.positions_of(3),
            "inside_decoder": method.inside,
            "options": {o.name: {"default": o.default, "valid": o.valid, "help": o.help} for o in method.options},
        }
        for method in pruning.all_methods()
    ]


def render_methods(width: int | None = None) -> str:
    """The same as text, at most ``width`` columns wide."""
    width = min(width or WIDTH, WIDTH)
    lines: list[str] = []
    for method in pruning.all_methods():
        lines += _wrapped(f"{method.name:<{COLUMN - 1}} {method.summary}", width)
        needs = ", ".join(method.describe_needs()) or "nothing but the image features"
        lines += _wrapped(f"needs {needs}", width, COLUMN)
        if method.cost:
            lines += _wrapped(f"costs {method.cost}", width, COLUMN)
        if method.merges:
            lines += _wrapped("merges tokens: its rows are not all rows of the image features", width, COLUMN)
        if method.paper:
            lines += [" " * COLUMN + method.paper]
        for option in method.options:
            lines += _wrapped(f"--option {option.name}={option.default}  {option.help} ({option.valid})", width, COLUMN)
    return "\n".join(lines)


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=" " * indent, subsequent_indent=" " * (COLUMN + 2), break_long_words=False
    )
