"""``trtprune methods``: what each pruning method needs, takes and returns."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from trtprune import pruning
from trtprune.pruning.inputs import FROM_CLIP, INPUTS

if TYPE_CHECKING:
    from trtprune.pruning import Method

__all__ = ["describe_methods", "needs_in_words", "render_methods"]

COLUMN = 13
WIDTH = 118
WORDS = {"seed": "a seed", "grid": "the grid of patches"}


def needs_in_words(method: Method) -> list[str]:
    """What the method reads beside the image features, each in a few words."""
    if isinstance(method, pruning.InLlmMethod):
        return ["text behind the image, and cuts the decoder into segments"]
    words = [entry.words for name, entry in INPUTS.items() if name in method.needs]
    words += [text for name, text in WORDS.items() if name in method.needs]
    if method.needs & set(FROM_CLIP):
        words.append("a build with CLIP's text tower (--clip)")
    return words


def describe_methods() -> list[dict[str, Any]]:
    """A method a row, for ``--json``."""
    return [
        {
            "name": method.name,
            "summary": method.summary,
            "paper": method.paper,
            "needs": sorted(method.needs),
            "needs_in_words": needs_in_words(method),
            "cost": method.cost,
            "merges": method.merges,
            "positions": method.positions,
            "inside_decoder": isinstance(method, pruning.InLlmMethod),
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
        needs = ", ".join(needs_in_words(method)) or "nothing but the image features"
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
