"""The points that no other point beats, and the recommended one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trtprune.frontier.joining import Point

__all__ = ["Rule", "front", "recommend"]

# Decimals in a report: a limit that equals the tolerance up to rounding is within it.
EPSILON = 1e-9


@dataclass(frozen=True)
class Rule:
    """The condition of a recommendation: the limit of a point's change of accuracy is at least ``-max_loss``.

    Attributes:
        max_loss: Points of accuracy (1 is one question of a hundred).
        limit: The limit of the 95 % paired interval of the change: ``low``, for points that are shown to lose no more;
            ``high``, for points that are not shown to lose more.
    """

    max_loss: float = 1.0
    limit: Literal["low", "high"] = "low"

    def admits(self, point: Point) -> bool:
        """Whether a point may be recommended; always true with all tokens."""
        return point.baseline or 100 * (point.low if self.limit == "low" else point.high) >= -self.max_loss - EPSILON

    @property
    def tolerance(self) -> str:
        """``1 point``, ``1.5 points``."""
        return f"{self.max_loss:g} point{'' if self.max_loss == 1 else 's'}"

    @property
    def words(self) -> str:
        """The condition as a sentence."""
        name = {"low": "lower", "high": "upper"}[self.limit]
        return (
            f"the fastest to the first token (median) of those where the {name} limit of the 95 % paired interval of "
            f"(accuracy - unpruned accuracy) is at least -{self.tolerance}; unpruned, if none of them is faster"
        )


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, fastest first: none is as fast and as accurate and better in one of the two."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.first_token_ms, -p.accuracy)):
        best = found[-1] if found else None
        same = best is not None and (best.first_token_ms, best.accuracy) == (point.first_token_ms, point.accuracy)
        if best is None or point.accuracy > best.accuracy or same:
            found.append(point)
    return found


def recommend(points: Sequence[Point], rule: Rule) -> Point | None:
    """The fastest point that the rule admits; of equally fast ones the most accurate, then the first by name.

    None, if nothing is admitted and there is no point with all tokens.
    """
    admitted = [point for point in points if rule.admits(point)]
    order = lambda p: (p.first_token_ms, -p.accuracy, not p.baseline, p.method, p.keep)  # noqa: E731
    return min(admitted, key=order, default=None)
