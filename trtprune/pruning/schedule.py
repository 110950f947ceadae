"""How many visual tokens a method that prunes inside the decoder keeps, and where.

Two averages over the layers are told apart.  A pruning layer runs on all its tokens and cuts its output, so the tokens
*processed* (and cached) fall one layer later than the *nominal* count of the literature, which books the pruning layer
itself with its pruned tokens: SparseVLM's "192 tokens" are 192.03 nominally and 206.50 processed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trtprune.arguments import arg
from trtprune.errors import BudgetError

__all__ = ["Schedule", "nearest", "parse_schedule", "scale_points", "solve"]


@dataclass(frozen=True)
class Schedule:
    """What becomes of an image of ``visual_tokens`` tokens in a decoder of ``depth`` layers.

    Attributes:
        points: Layers behind which tokens are pruned, ascending from 0.
        kept: Tokens kept at each point.
        after: Tokens behind each point: the kept ones and those that pruned ones were merged into.
        nominal_shift: 0 where the method's literature books a pruning layer with its pruned tokens, 1 where it does
            not.
    """

    visual_tokens: int
    depth: int
    points: tuple[int, ...]
    kept: tuple[int, ...]
    after: tuple[int, ...]
    nominal_shift: int = 1

    @property
    def per_layer(self) -> tuple[int, ...]:
        """Visual tokens that each layer processes and caches."""
        return self._layers(1)

    @property
    def processed(self) -> float:
        """Visual tokens processed and cached, averaged over the layers."""
        return sum(self.per_layer) / self.depth

    @property
    def nominal(self) -> float:
        """The average as the method's literature counts it; this is what ``keep`` asks for."""
        return sum(self._layers(self.nominal_shift)) / self.depth

    def _layers(self, shift: int) -> tuple[int, ...]:
        counts, current, behind = [], self.visual_tokens, dict(zip(self.points, self.after, strict=True))
        for layer in range(self.depth):
            if layer - shift in behind:
                current = behind[layer - shift]
            counts.append(current)
        return tuple(counts)

    def describe(self) -> str:
        """For the line a command prints, e.g. ``576 → 82, 32, 18 behind layers 2, 6, 15; …``."""
        after, points = ", ".join(map(str, self.after)), ", ".join(map(str, self.points))
        return (
            f"{self.visual_tokens} → {after} behind layers {points}; "
            f"{self.nominal:.1f} a layer as papers count, {self.processed:.1f} processed and cached"
        )


def scale_points(points: Sequence[int], depth: int, of: int = 32) -> tuple[int, ...]:
    """Points of a decoder of ``of`` layers, at the same share of ``depth`` layers; a point stays behind layer 0."""
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


def parse_schedule(text: str, visual_tokens: int, depth: int, method: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """``"2:66,6:30,15:17"``: points and tokens kept at each.

    Raises:
        BudgetError: if it is not of that form or does not fit.
    """
    try:
        pairs = [tuple(int(part) for part in entry.split(":")) for entry in text.split(",")]
        points, kept = (tuple(column) for column in zip(*pairs, strict=True))
    except ValueError:
        raise BudgetError(
            f"{arg('options', {'schedule': text})}: not LAYER:TOKENS,LAYER:TOKENS,…",
            hint="for example schedule=2:66,6:30,15:17",
        ) from None
    check_points(points, depth, method, "schedule")
    if list(kept) != sorted(set(kept), reverse=True) or kept[-1] < 1 or kept[0] >= visual_tokens:
        raise BudgetError(
            f"{arg('options', {'schedule': text})}: counts must fall, from below {visual_tokens} to at least 1",
            hint="for example schedule=2:66,6:30,15:17",
        )
    return points, kept


def solve(make: Callable[[int], Schedule], keep: int, visual_tokens: int, method: str, option: str) -> Schedule:
    """The schedule whose nominal average comes nearest to ``keep``; the smaller of two equally near.

    Args:
        make: The schedule for a number of tokens kept at the first point; its average must not fall with it.
        keep: The average that is asked for.
        visual_tokens: N.
        method, option: For the error: which option moves the points.

    Raises:
        BudgetError: if even one token at each point is more than ``keep``, or everything is less.
    """
    least, most = make(1), make(visual_tokens - 1)
    points = ", ".join(map(str, least.points))
    if keep < least.nominal - 0.5 or keep > most.nominal + 0.5:
        bound = (
            f"at least {least.nominal:.0f}" if keep < least.nominal else f"at most {most.nominal:.0f}"
        ) + f" of {visual_tokens} visual tokens"
        raise BudgetError(
            f"{arg('keep', keep)}: {method} prunes behind layers {points} of {least.depth} and counts the average over "
            f"all layers, which is then {bound}",
            hint=f"such a {arg('keep')}, or other layers with {arg('options')} {option}",
        )
    return nearest(make, keep, visual_tokens)


def nearest(make: Callable[[int], Schedule], keep: int, limit: int) -> Schedule:
    """The schedule whose nominal average comes nearest to ``keep``, however far; the smaller of two equally near.

    Args:
        make: The schedule for a number from 1 to below ``limit``; its average must not fall with it.
        keep: The average that is asked for.
        limit: Of the numbers.
    """
    low, high = 1, limit - 1
    while low < high:
        middle = (low + high) // 2
        if make(middle).nominal < keep:
            low = middle + 1
        else:
            high = middle
    near = [make(number) for number in (low - 1, low) if number >= 1]
    return min(near, key=lambda schedule: abs(schedule.nominal - keep))
