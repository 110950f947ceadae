"""Reads the reports of ``eval`` and ``bench`` and joins their rows by method and budget.

The interval of a change of accuracy is that of the *paired* difference, because both answered the same questions: the
report's own, or else the one from its counts (:func:`trtprune.reports.statistics.paired_interval`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtprune.errors import InputError
from trtprune.reports.statistics import paired_interval

__all__ = ["ALL", "Joined", "Point", "join", "read_report"]

ALL = "all"
MAX_BYTES = 1 << 28
NEEDED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "eval": {
        "method": str, "keep": int, "set": str, "n": int, "accuracy": (int, float), "unpruned": (int, float),
        "broken": int, "repaired": int,
    },
    "bench": {"method": str, "keep": int, "first_token_ms": dict},
}  # fmt: skip
OTHER = {"eval": "bench", "bench": "eval"}


@dataclass(frozen=True)
class Point:
    """A method at a budget, on one set of questions.

    Attributes:
        method, keep: Method and budget.
        first_token_ms: Median time to the first token, in milliseconds.
        n: Number of questions.
        accuracy: Accuracy, 0 to 1.
        unpruned: Accuracy on the same questions with all tokens.
        change: ``accuracy - unpruned``.
        low, high: Limits of the change's 95 % paired interval.
        baseline: Whether all visual tokens are kept.
        speedup: Ratio of the unpruned time to the first token to this one, if the bench has it.
    """

    method: str
    keep: int
    first_token_ms: float
    n: int
    accuracy: float
    unpruned: float
    change: float
    low: float
    high: float
    baseline: bool = False
    speedup: float | None = None

    @property
    def label(self) -> str:
        """The name in tables and messages."""
        return "unpruned" if self.baseline else f"{self.method} {self.keep}"

    @property
    def kept(self) -> float:
        """Accuracy divided by the unpruned accuracy."""
        return self.accuracy / self.unpruned

    @property
    def kept_limits(self) -> tuple[float, float]:
        """:attr:`kept` at the limits of the change."""
        return 1 + self.low / self.unpruned, 1 + self.high / self.unpruned


@dataclass
class Joined:
    """Set → points, the one with all tokens first; and notes for the reader."""

    sets: dict[str, list[Point]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_report(path: Path, kind: str) -> dict[str, Any]:
    """A report of ``eval`` or ``bench``.

    Raises:
        InputError: if it cannot be read, or is not such a report.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than {MAX_BYTES} bytes", hint=f"the report of trtprune {kind}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror or error}", hint=f"the JSON that trtprune {kind} wrote"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}", hint=f"the JSON that trtprune {kind} wrote") from None
    rows = data.get("rows") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: has no rows", hint=f"the JSON that trtprune {kind} wrote")
    if data.get("schema") != 1:
        raise InputError(f"{path}: schema {data.get('schema')} is not known here", hint="upgrade trtprune")
    for number, row in enumerate(rows, 1):
        for name, wanted in NEEDED[kind].items():
            if not isinstance(row.get(name), wanted) or isinstance(row[name], bool):
                swapped = all(key in row for key in NEEDED[OTHER[kind]])
                hint = "the order is EVAL BENCH" if swapped else f"the JSON that trtprune {kind} wrote"
                raise InputError(f"{path}: row {number}: '{name}' is missing or not valid", hint=hint)
        _check_numbers(row, f"{path}: row {number}", kind)
    if kind == "bench":
        _check_ratios(data.get("ratios", []), path)
    return dict(data)


def _check_numbers(row: Mapping[str, Any], where: str, kind: str) -> None:
    if kind == "bench":
        first = row["first_token_ms"].get("p50")
        if not _within(first, 0, math.inf):
            raise InputError(f"{where}: first_token_ms.p50 is {first}", hint="measure it again")
        return
    shares = all(0 <= row[name] <= 1 for name in ("accuracy", "unpruned"))
    counts = row["n"] > 0 and min(row["broken"], row["repaired"]) >= 0 and row["broken"] + row["repaired"] <= row["n"]
    limits = [row.get("change_low"), row.get("change_high")]
    known = limits == [None, None] or all(_within(limit, -1.001, 1.001) for limit in limits)
    if not shares or not counts or not known:
        raise InputError(f"{where}: accuracies and counts do not go together", hint="run trtprune eval again")


def _check_ratios(ratios: Any, path: Path) -> None:
    """Checks the ratios to the unpruned row; only these are read."""
    rows = ratios if isinstance(ratios, list) else [None]
    for number, row in enumerate(rows, 1):
        valid = isinstance(row, dict)
        if valid and row.get("against") == "unpruned":
            first = row.get("first_token")
            valid = isinstance(row.get("method"), str) and isinstance(row.get("keep"), int)
            valid &= isinstance(first, dict) and _within(first.get("p50"), 0, math.inf)
        if not valid:
            raise InputError(f"{path}: ratio {number} is not valid", hint="the JSON that trtprune bench wrote")


def _within(number: Any, low: float, high: float) -> bool:
    """Whether it is a number between the limits; NaN is not."""
    return isinstance(number, int | float) and not isinstance(number, bool) and low < number < high


def join(evaluated: Sequence[Mapping[str, Any]], benched: Mapping[str, Any]) -> Joined:
    """The rows that the reports have in common, set by set.

    Args:
        evaluated: One report of ``eval``, or several of different questions, whose sets then have the data's name.
        benched: The report of ``bench``.

    Sets without common questions are also joined as :data:`ALL`, unless a report has done so.

    Raises:
        InputError: if the reports are of different models, or have no method and budget in common.
    """
    joined = Joined()
    for found in evaluated:
        for note in _compare_engines(found.get("engine"), benched.get("engine")):
            if note not in joined.notes:
                joined.notes.append(note)
    asked, parts = _merge(evaluated)
    rows = [row for row in benched["rows"] if not row.get("peer")]
    unpruned = next((row for row in rows if row.get("unpruned") or row["method"] == "none"), None)
    times = {(row["method"], row["keep"]): row["first_token_ms"]["p50"] for row in rows if row is not unpruned}
    speed = {
        (ratio["method"], ratio["keep"]): ratio["first_token"]["p50"]
        for ratio in benched.get("ratios", [])
        if ratio.get("against") == "unpruned"
    }
    have = {(row["method"], row["keep"]) for row in asked if row["method"] != "none"}
    _name_lonely(joined.notes, have - times.keys(), "the bench report lacks")
    _name_lonely(joined.notes, times.keys() - have, "the eval report lacks")
    if not have & times.keys():
        raise InputError(
            "the reports have no method and budget in common", hint="give eval and bench the same --methods and --keep"
        )
    for name in dict.fromkeys(row["set"] for row in asked):
        points = []
        for row in asked:
            key = (row["method"], row["keep"])
            if row["set"] == name and row["method"] != "none" and key in times:
                points.append(_point(row, times[key], speed.get(key)))
        if not points:
            joined.notes.append(f"{name}: nothing of it was timed")
            continue
        _check_base(name, points, joined.notes)
        if unpruned is not None:
            points.insert(0, _all_tokens(unpruned, points))
        joined.sets[name] = points
    parts = [name for name in parts if name in joined.sets]
    if ALL in joined.sets:
        joined.sets = {ALL: joined.sets.pop(ALL), **joined.sets}
    elif len(parts) > 1:
        pooled = _pool([joined.sets[name] for name in parts], [row for row in asked if row["set"] in parts])
        if pooled:
            joined.sets = {ALL: pooled, **joined.sets}
    if unpruned is None:
        joined.notes.append("the bench report has no unpruned row: nothing is compared with its time")
    return joined


def _merge(reports: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """All rows, with different names for all sets; and the sets that together have every question once."""
    rows: list[dict[str, Any]] = []
    parts: list[str] = []
    taken: set[str] = set()
    for number, found in enumerate(reports, 1):
        sets = list(dict.fromkeys(row["set"] for row in found["rows"]))
        names = {name: name for name in sets}
        if len(reports) > 1:
            data = found.get("data")
            title = str((data.get("name") if isinstance(data, Mapping) else data) or f"data {number}")
            title = title if title not in taken else f"{title} {number}"
            taken.add(title)
            names = {name: title if name == ALL or len(sets) == 1 else f"{title}: {name}" for name in sets}
        rows += [{**row, "set": names[row["set"]]} for row in found["rows"]]
        parts += [names[ALL]] if ALL in names else list(names.values())
    return rows, parts


def _compare_engines(first: Any, second: Any) -> list[str]:
    """The differences between the directories of two reports."""
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return ["a report does not say which engine directory it is of: that they are of the same one is not checked"]
    if first.get("digest") != second.get("digest"):
        raise InputError(
            f"the reports are of different models: eval of {first.get('model')} ({_short(first)}), bench of "
            f"{second.get('model')} ({_short(second)})",
            hint="run both on the same engine directory",
        )
    if first.get("build_digest") != second.get("build_digest"):
        return ["the reports are of different builds of the same model"]
    return []


def _short(engine: Mapping[str, Any]) -> str:
    return str(engine.get("digest"))[:19]


def _name_lonely(notes: list[str], keys: Iterable[tuple[str, int]], what: str) -> None:
    names = [f"{method} {keep}" for method, keep in sorted(keys)]
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        notes.append(f"{what} {', '.join(names[:8])}{more}")


def _binary(row: Mapping[str, Any]) -> bool:
    """Whether the change of accuracy follows from the counts of broken and repaired questions."""
    return abs((row["repaired"] - row["broken"]) / row["n"] - (row["accuracy"] - row["unpruned"])) < 5e-4


def _point(row: Mapping[str, Any], first_token_ms: float, speedup: float | None) -> Point:
    change = row["accuracy"] - row["unpruned"]
    limits = [row.get("change_low"), row.get("change_high")]
    if all(isinstance(limit, int | float) for limit in limits):
        low, high = (float(limit) for limit in limits if limit is not None)
    elif _binary(row):
        low, high = paired_interval(row["broken"], row["repaired"], row["n"])
    else:
        raise InputError(
            f"{row['set']}: {row['method']} {row['keep']}: its marks are not just right and wrong, and the report "
            "has no interval of the change",
            hint="run trtprune eval of this version",
        )
    return Point(
        row["method"], row["keep"], float(first_token_ms), row["n"], float(row["accuracy"]), float(row["unpruned"]),
        change, low, high, speedup=speedup,
    )  # fmt: skip


def _all_tokens(row: Mapping[str, Any], points: Sequence[Point]) -> Point:
    most = max(points, key=lambda point: point.n)
    accuracy = most.unpruned
    return Point(
        row["method"], row["keep"], float(row["first_token_ms"]["p50"]), most.n, accuracy, accuracy, 0.0, 0.0, 0.0,
        baseline=True, speedup=1.0,
    )  # fmt: skip


def _check_base(name: str, points: Sequence[Point], notes: list[str]) -> None:
    if any(point.unpruned == 0 for point in points):
        raise InputError(f"{name}: the unpruned model answers nothing right", hint="there is no accuracy to keep")
    if len({(point.n, point.unpruned) for point in points}) > 1:
        notes.append(f"{name}: methods were asked different questions; each is held against unpruned on its own")


def _pool(sets: Sequence[Sequence[Point]], rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """All questions of all sets as one set, with the methods and budgets that every set has."""
    counts: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        counts.setdefault((row["method"], row["keep"]), []).append(row)
    pooled = []
    for first in sets[0]:
        same = [[p for p in points if (p.method, p.keep, p.baseline) == _key(first)] for points in sets]
        if not all(same):
            continue
        parts = [points[0] for points in same]
        n = sum(part.n for part in parts)
        accuracy, unpruned = (
            sum(getattr(part, name) * part.n for part in parts) / n for name in ("accuracy", "unpruned")
        )
        if first.baseline:
            low = high = 0.0
        elif all(_binary(row) and "change_low" not in row for row in counts[first.method, first.keep]):
            mine = counts[first.method, first.keep]
            low, high = paired_interval(sum(r["broken"] for r in mine), sum(r["repaired"] for r in mine), n)
        else:  # of independent sets, variances add up
            reach = math.sqrt(sum((part.n / n * (part.high - part.low) / 2) ** 2 for part in parts))
            low, high = accuracy - unpruned - reach, accuracy - unpruned + reach
        pooled.append(
            Point(
                first.method,
                first.keep,
                first.first_token_ms,
                n,
                accuracy,
                unpruned,
                accuracy - unpruned,
                low,
                high,
                baseline=first.baseline,
                speedup=first.speedup,
            )
        )
    return pooled


def _key(point: Point) -> tuple[str, int, bool]:
    return point.method, point.keep, point.baseline
