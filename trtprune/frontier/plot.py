"""The picture: accuracy kept over the time to the first token, one line per method, and the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtprune import pruning
from trtprune.frontier.choosing import Rule, front, recommend
from trtprune.frontier.joining import Joined, Point
from trtprune.reports.figures import INK, Style, require_matplotlib, save_figure, styles_of

__all__ = ["draw_frontier"]

COLUMNS = 2
RULE = "#c8352b"
CROWDED = 11
"""The distance on the page below which points share a label."""
# Possible offsets of a label from its point, in points: near ones first, below and to the right first.
WAYS = ((1, 0), (1, -0.5), (1, 0.4), (0.9, -0.9), (0.5, -1.1), (1, 0.8), (-1, 0.5), (-1, -0.5), (0, -1.2), (0, 1.2))
NEAR = [(x * far, y * far) for far in (12, 20, 30, 42, 56, 72, 90) for x, y in WAYS]


def draw_frontier(joined: Joined, rule: Rule, path: Path) -> None:
    """Draws one panel per set.

    Args:
        joined: The points.
        rule: The rule with the tolerance and recommendation to mark.
        path: The file to write; its suffix is the format.

    Raises:
        BackendError: if matplotlib is missing.
        InputError: if the file cannot be written.
    """
    pyplot = require_matplotlib("-o", path)
    names = list(joined.sets)
    columns = min(COLUMNS, len(names))
    height = -(-len(names) // columns)
    figure, axes = pyplot.subplots(
        height, columns, figsize=(1.6 + 5.4 * columns, 0.4 + 4.5 * height), squeeze=False, layout="constrained"
    )
    styles = styles_of([p.method for points in joined.sets.values() for p in points if not p.baseline], pruning.names())
    flat = list(axes.flat)
    for axis, name in zip(flat, names, strict=False):
        _panel(axis, name, joined.sets[name], rule, styles)
        # Each panel has its own times, so each has an axis label.
        axis.set_xlabel("milliseconds to the first token", fontsize=9)
    for axis in flat[len(names) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel("% of the unpruned accuracy", fontsize=9)
    found: dict[str, Any] = {}
    for axis in flat[: len(names)]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="outside right upper", fontsize=8, frameon=False)
    # Labels need free places on the page, so they come last.
    figure.canvas.draw()
    for axis, name in zip(flat, names, strict=False):
        _name(axis, joined.sets[name])
    save_figure(figure, "-o", path)


def _panel(axis: Any, name: str, points: list[Point], rule: Rule, styles: Mapping[str, Style]) -> None:
    best = front(points)
    for method, style in styles.items():
        mine = sorted((p for p in points if p.method == method and not p.baseline), key=lambda p: p.keep)
        if not mine:
            continue
        times, kept = [p.first_token_ms for p in mine], [100 * p.kept for p in mine]
        # By the rounding of a report, a set's accuracy can lie outside the interval of its change.
        below = [max(0.0, k - 100 * p.kept_limits[0]) for p, k in zip(mine, kept, strict=True)]
        above = [max(0.0, 100 * p.kept_limits[1] - k) for p, k in zip(mine, kept, strict=True)]
        # Twenty lines are too many to read: less important ones are drawn paler.
        strong = any(p in best for p in mine)
        axis.errorbar(
            times, kept, yerr=[below, above] if strong else None, lw=1 if strong else 0.8, ms=4.5 if strong else 3.5,
            elinewidth=0.6, alpha=0.95 if strong else 0.45, zorder=2.5 if strong else 2, label=method, **style.line,
        )  # fmt: skip
    axis.step(
        [p.first_token_ms for p in best], [100 * p.kept for p in best], where="post", color=INK, lw=1.4,
        ls=(0, (4, 2)), label="front", zorder=1,
    )  # fmt: skip
    whole = [p for p in points if p.baseline]
    if whole:
        axis.plot([whole[0].first_token_ms], [100], "*", ms=12, color=INK, label="unpruned")
    base = points[0].unpruned
    axis.axhline(100 - rule.max_loss / base, color=RULE, lw=0.8, ls=":", label=f"{rule.tolerance} less")
    chosen = recommend(points, rule)
    title = f"{name}, {max(p.n for p in points):,} questions, {100 * base:.1f} % right unpruned"
    if chosen is not None and not chosen.baseline:
        axis.plot(
            [chosen.first_token_ms], [100 * chosen.kept], "o", ms=13, mfc="none", mec=RULE, mew=1.6,
            label="recommended", ls="none",
        )  # fmt: skip
        title += f"\nrecommended: {chosen.label}"
        if chosen.speedup is not None:
            title += f", {chosen.speedup:.2f} times as fast as unpruned"
    axis.set_title(title, fontsize=9, loc="left")
    _scale(axis, [p.first_token_ms for p in points])
    axis.grid(True, alpha=0.25)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _scale(axis: Any, times: list[float]) -> None:
    """A logarithmic axis of times: budgets are a few times faster than unpruned, and near each other."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axis.set_xscale("log")
    axis.set_xlim(0.9 * min(times), 1.15 * max(times))
    steps = [step * 10**power for power in range(-3, 8) for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]
    axis.set_xticks([step for step in steps if 0.9 * min(times) <= step <= 1.15 * max(times)])
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(labelsize=8)


def _name(axis: Any, points: Sequence[Point]) -> None:
    """Writes method and budget of the points of the front in free places, with a line to each.

    Of points at the same place on the page, the most accurate one has a label; the report has all.
    """
    marks = [_place(axis, p) for p in points]
    renderer = axis.figure.canvas.get_renderer()
    frame = axis.get_window_extent(renderer)
    scale = axis.figure.dpi / 72
    named: list[tuple[float, float]] = []
    boxes: list[Any] = []
    lines: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for p in sorted(front(points), key=lambda p: -p.accuracy):
        x, y = _place(axis, p)
        if p.baseline or any(math.hypot(x - a, y - b) < CROWDED * scale for a, b in named):
            continue
        named.append((x, y))
        text = axis.annotate(
            p.label, (p.first_token_ms, 100 * p.kept), (0, 0), textcoords="offset points", fontsize=7, color=INK,
            ha="left", va="center", zorder=4,
            arrowprops={"arrowstyle": "-", "color": "#777777", "lw": 0.5, "shrinkA": 0, "shrinkB": 2},
            bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
        )  # fmt: skip
        size = text.get_window_extent(renderer).size
        offset, box = min(
            ((offset, _box((x, y), offset, size, scale)) for offset in NEAR),
            key=lambda found: _cost(found[1], frame, boxes, lines, marks, (x, y), scale),
        )
        boxes.append(box)
        lines.append(((x, y), _nearest(box, (x, y))))
        text.set_position((offset[0] if offset[0] >= 0 else offset[0] - size[0] / scale, offset[1]))


def _box(place: tuple[float, float], offset: tuple[float, float], size: Any, scale: float) -> Any:
    from matplotlib.transforms import Bbox

    left = place[0] + scale * offset[0] - (0 if offset[0] >= 0 else size[0])
    return Bbox.from_bounds(left, place[1] + scale * offset[1] - size[1] / 2, *size)


def _cost(
    box: Any,
    frame: Any,
    boxes: Sequence[Any],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    marks: Sequence[tuple[float, float]],
    place: tuple[float, float],
    scale: float,
) -> float:
    """The cost of a place: out of the panel, on another label, across its line, on a mark."""
    outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
    own = (place, _nearest(box, place))
    hit = sum(box.padded(3 * scale).overlaps(other) for other in boxes)
    crossed = sum(_cross(own, line) or _through(box, line) for line in lines)
    crossed += sum(_through(other, own) for other in boxes)
    return 50 * outside + 20 * hit + 5 * crossed + sum(box.padded(2 * scale).contains(*mark) for mark in marks)


def _nearest(box: Any, place: tuple[float, float]) -> tuple[float, float]:
    return min(max(place[0], box.x0), box.x1), min(max(place[1], box.y0), box.y1)


def _cross(
    a: tuple[tuple[float, float], tuple[float, float]], b: tuple[tuple[float, float], tuple[float, float]]
) -> bool:
    """Whether two segments cross."""

    def side(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(*a, b[0]) * side(*a, b[1]) < 0 and side(*b, a[0]) * side(*b, a[1]) < 0


def _through(box: Any, line: tuple[tuple[float, float], tuple[float, float]]) -> bool:
    """Whether a line segment goes through a box, by the box's diagonals."""
    corners = [(box.x0, box.y0), (box.x1, box.y1), (box.x0, box.y1), (box.x1, box.y0)]
    return _cross(line, (corners[0], corners[1])) or _cross(line, (corners[2], corners[3]))


def _place(axis: Any, point: Point) -> tuple[float, float]:
    """The place of a point on the page, in pixels."""
    x, y = axis.transData.transform((point.first_token_ms, 100 * point.kept))
    return float(x), float(y)
