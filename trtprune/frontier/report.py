"""What was found, as JSON and as text."""

from __future__ import annotations

import dataclasses
from typing import Any

from trtprune.frontier.choosing import Rule, front, recommend
from trtprune.frontier.joining import Joined, Point

__all__ = ["SCHEMA", "recommendation", "render", "to_json"]

SCHEMA = 1


def to_json(joined: Joined, rule: Rule, command: str) -> dict[str, Any]:
    """Points, front and recommendation of every set."""
    sets = {}
    for name, points in joined.sets.items():
        best = front(points)
        chosen = recommend(points, rule)
        sets[name] = {
            "points": [
                {
                    **dataclasses.asdict(point),
                    "kept": point.kept,
                    "front": point in best,
                    "admitted": rule.admits(point),
                }
                for point in points
            ],
            "recommended": None if chosen is None else {"method": chosen.method, "keep": chosen.keep},
            "words": recommendation(name, points, rule),
        }
    return {
        "schema": SCHEMA,
        "command": command,
        "rule": rule.words,
        "max_loss": rule.max_loss,
        "limit": rule.limit,
        "sets": sets,
        "notes": joined.notes,
    }


def recommendation(name: str, points: list[Point], rule: Rule) -> str:
    """One line."""
    chosen = recommend(points, rule)
    named = f"{name}, {max(point.n for point in points):,} questions"
    if chosen is None:
        return f"{named}: none: no method and budget is within {rule.tolerance} of unpruned{_unproven(points, rule)}"
    if chosen.baseline:
        return (
            f"{named}: unpruned ({chosen.first_token_ms:.0f} ms): nothing faster is within {rule.tolerance}"
            f"{_unproven(points, rule)}"
        )
    faster = f"{chosen.speedup:.2f} x as fast to the first token, " if chosen.speedup is not None else ""
    return (
        f"{named}: {chosen.label}: {chosen.first_token_ms:.0f} ms, {faster}{100 * chosen.kept:.1f} % of the accuracy "
        f"({100 * chosen.change:+.1f} points, 95 % {100 * chosen.low:+.1f} to {100 * chosen.high:+.1f})"
    )


def _unproven(points: list[Point], rule: Rule) -> str:
    """What would be recommended if the change were known and not estimated: then more questions are the way on."""
    likely = [p for p in points if not p.baseline and 100 * p.change >= -rule.max_loss and not rule.admits(p)]
    if not likely:
        return ""
    best = min(likely, key=lambda p: (p.first_token_ms, -p.accuracy))
    return (
        f" for certain; {best.label} ({best.first_token_ms:.0f} ms) changed {100 * best.change:+.1f} points, but its "
        f"interval begins at {100 * best.low:+.1f}: ask more questions"
    )


def render(joined: Joined, rule: Rule) -> str:
    """A table a set, fastest first, and a line each that says what to take."""
    lines = []
    for name, points in joined.sets.items():
        best, chosen = front(points), recommend(points, rule)
        width = max(len(point.label) for point in points)
        n = max(point.n for point in points)
        lines.append(f"{name}, {n} questions")
        title = f"  {'':<{width}}  first token ms      x  accuracy %   change   95 % interval  front"
        lines.append(f"{title}  within {rule.max_loss:g}")
        for point in sorted(points, key=lambda p: (p.first_token_ms, -p.accuracy)):
            speed = "" if point.speedup is None else f"{point.speedup:.2f}"
            interval = "" if point.baseline else f"{100 * point.low:+6.1f} to {100 * point.high:+.1f}"
            lines.append(
                f"  {point.label:<{width}}  {point.first_token_ms:14.1f}  {speed:>5}  {100 * point.accuracy:10.1f}"
                f"  {100 * point.change:+7.1f}  {interval:>14}  {'*' if point in best else '':^5}"
                f"  {'yes' if rule.admits(point) else 'no'}{' <-' if point is chosen else ''}"
            )
    lines.append(f"rule: {rule.words}")
    lines += joined.notes
    return "\n".join([*lines, *(recommendation(name, points, rule) for name, points in joined.sets.items())])
