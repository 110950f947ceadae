"""The layers at which a method cuts the decoder: read from its options and checked."""

from __future__ import annotations

from collections.abc import Sequence

from trtprune.arguments import arg
from trtprune.errors import BudgetError

__all__ = ["check_points", "parse_schedule", "scale_points"]


def scale_points(points: Sequence[int], depth: int, of: int = 32) -> tuple[int, ...]:
    """Points of a decoder of ``of`` layers, moved to the same share of ``depth`` layers, at least behind layer 0."""
    return tuple(max(0, round(point * depth / of)) for point in points)


def check_points(points: Sequence[int], depth: int, method: str, option: str) -> None:
    """Refuses points that are not ascending layers with a layer behind them.

    Raises:
        BudgetError: naming the option that moves them.
    """
    if list(points) != sorted(set(points)) or not points or points[0] < 0 or points[-1] >= depth - 1:
        listed = ", ".join(map(str, points))
        raise BudgetError(
            f"{arg('method', method)}: cannot prune behind layers {listed}; the decoder has {depth}",
            hint=f"{arg('options')} {option}: ascending layers from 0 to {depth - 2}",
        )


def parse_schedule(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """``"2:66,6:30,15:17"``: layers, and the tokens kept behind each.

    Raises:
        BudgetError: for text of another form, or counts that do not fall.
    """
    hint = "for example schedule=2:66,6:30,15:17"
    try:
        pairs = [tuple(int(part) for part in entry.split(":")) for entry in text.split(",")]
        points, kept = (tuple(column) for column in zip(*pairs, strict=True))
    except ValueError:
        raise BudgetError(f"{arg('options', {'schedule': text})}: not LAYER:TOKENS,LAYER:TOKENS,…", hint=hint) from None
    if list(kept) != sorted(set(kept), reverse=True) or kept[-1] < 1:
        raise BudgetError(f"{arg('options', {'schedule': text})}: counts must fall, to at least 1", hint=hint)
    return points, kept
