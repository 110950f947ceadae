"""The result as JSON and as text."""

from __future__ import annotations

import dataclasses
from typing import Any

from trtprune.frontier.choosing import Rule, front, recommend
from trtprune.frontier.joining import Joined, Point
from trtprune.reports.tables import Column, lay_out, wrap

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
    """The recommendation for one set, in one line."""
    chosen = recommend(points, rule)
    named = f"{name}, {max(point.n for point in points):,} questions"
    if chosen is None:
        return f"{named}: none: no method and budget is within {rule.tolerance} of unpruned{_unproven(points, rule)}"
    if chosen.baseline:
        return (
            f"{named}: unpruned ({chosen.first_token_ms:.0f} ms): nothing faster is within {rule.tolerance}"
            f"{_unproven(points, rule)}"
        )
    faster = f"{chosen.speedup:.2f} x as fast to the first token as unpruned, " if chosen.speedup is not None else ""
    return (
        f"{named}: {chosen.label}: {chosen.first_token_ms:.0f} ms, {faster}{100 * chosen.kept:.1f} % of the accuracy "
        f"({100 * chosen.change:+.1f} points, 95 % {100 * chosen.low:+.1f} to {100 * chosen.high:+.1f})"
    )


def _unproven(points: list[Point], rule: Rule) -> str:
    """The point that would be recommended if the change were known exactly: more questions could confirm it."""
    likely = [p for p in points if not p.baseline and 100 * p.change >= -rule.max_loss and not rule.admits(p)]
    if not likely:
        return ""
    best = min(likely, key=lambda p: (p.first_token_ms, -p.accuracy))
    return (
        f" for certain; {best.label} ({best.first_token_ms:.0f} ms) changed {100 * best.change:+.1f} points, but its "
        f"interval begins at {100 * best.low:+.1f}: ask more questions"
    )


def render(joined: Joined, rule: Rule, width: int | None = None) -> str:
    """One table per set, fastest first, and one line with its recommendation; at most ``width`` columns wide."""
    lines = []
    columns = [
        Column("", left=True), Column("first token ms"), Column("x unpruned", 2), Column("accuracy %"),
        Column("change"), Column("95 % interval", 1), Column("front", 3, left=True),
        Column(f"within {rule.max_loss:g}", left=True),
    ]  # fmt: skip
    for name, points in joined.sets.items():
        best, chosen = front(points), recommend(points, rule)
        n = max(point.n for point in points)
        lines += wrap(f"{name}, {n:,} questions", width)
        rows = [
            [
                f"  {point.label}",
                f"{point.first_token_ms:.1f}",
                "" if point.speedup is None else f"{point.speedup:.2f}",
                f"{100 * point.accuracy:.1f}",
                f"{100 * point.change:+.1f}",
                "" if point.baseline else f"{100 * point.low:+.1f} to {100 * point.high:+.1f}",
                "  *" if point in best else "",
                ("yes" if rule.admits(point) else "no") + (" <-" if point is chosen else ""),
            ]
            for point in sorted(points, key=lambda p: (p.first_token_ms, -p.accuracy))
        ]
        lines += lay_out(columns, rows, width=width, more="--json has all")
    words = [f"rule: {rule.words}", *joined.notes]
    words += [recommendation(name, points, rule) for name, points in joined.sets.items()]
    return "\n".join([*lines, *(part for line in words for part in wrap(line, width, "  "))])
