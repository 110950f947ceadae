"""Which points nobody beats, and which one to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trtprune.frontier.joining import Point

__all__ = ["Rule", "front", "recommend"]

# Decimals in a report: a limit that is the tolerance up to rounding is within it.
EPSILON = 1e-9


@dataclass(frozen=True)
class Rule:
    """What may be recommended: a point whose change of accuracy has a limit of at least ``-max_loss``.

    Attributes:
        max_loss: Points of accuracy (1 is one question of a hundred).
        limit: Which limit of the 95 % paired interval of the change: ``low``, for what is shown to lose no more;
            ``high``, for what is not shown to lose more.
    """

    max_loss: float = 1.0
    limit: Literal["low", "high"] = "low"

    def admits(self, point: Point) -> bool:
        """Whether a point may be recommended; with all tokens always."""
        return point.baseline or 100 * (point.low if self.limit == "low" else point.high) >= -self.max_loss - EPSILON

    @property
    def tolerance(self) -> str:
        """``1 point``, ``1.5 points``."""
        return f"{self.max_loss:g} point{'' if self.max_loss == 1 else 's'}"

    @property
    def words(self) -> str:
        """In full."""
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
