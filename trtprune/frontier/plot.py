"""The picture: accuracy kept over the time to the first token, a line a method, and the front."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from trtprune.bench.plot import require_matplotlib, save_figure
from trtprune.frontier.choosing import Rule, front, recommend
from trtprune.frontier.joining import Joined, Point

__all__ = ["draw_frontier"]

MARKERS = "osD^vP*Xh<>pd"
COLUMNS = 2


def draw_frontier(joined: Joined, rule: Rule, path: Path) -> None:
    """Draws one panel a set.

    Args:
        joined: What to draw.
        rule: Whose tolerance and recommendation are marked.
        path: The file to write; its suffix says the format.

    Raises:
        BackendError: if matplotlib is missing.
        InputError: if the file cannot be written.
    """
    pyplot = require_matplotlib("-o", path)
    names = list(joined.sets)
    columns = min(COLUMNS, len(names))
    height = -(-len(names) // columns)
    figure, axes = pyplot.subplots(
        height, columns, figsize=(1.6 + 5.4 * columns, 4.4 * height), squeeze=False, sharex=False
    )
    methods = list(dict.fromkeys(p.method for points in joined.sets.values() for p in points if not p.baseline))
    colours = pyplot.get_cmap("tab10" if len(methods) <= 10 else "tab20")
    styles = {
        name: {"color": colours(i % colours.N), "marker": MARKERS[i % len(MARKERS)]} for i, name in enumerate(methods)
    }
    flat = list(axes.flat)
    for axis, name in zip(flat, names, strict=False):
        _panel(axis, name, joined.sets[name], rule, styles)
    for axis in flat[len(names) :]:
        axis.set_visible(False)
    for axis in flat[max(0, len(names) - columns) : len(names)]:
        axis.set_xlabel("milliseconds to the first token")
    for row in axes:
        row[0].set_ylabel("% of the unpruned accuracy")
    found: dict[str, Any] = {}
    for axis in flat[: len(names)]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="center right", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.75 / figure.get_figwidth(), 1))
    save_figure(figure, "-o", path)


def _panel(axis: Any, name: str, points: list[Point], rule: Rule, styles: dict[str, dict[str, Any]]) -> None:
    best = front(points)
    for method, style in styles.items():
        mine = sorted((p for p in points if p.method == method and not p.baseline), key=lambda p: p.keep)
        if not mine:
            continue
        times, kept = [p.first_token_ms for p in mine], [100 * p.kept for p in mine]
        # A set's accuracy can lie outside the interval of its change by the rounding of a report.
        below = [max(0.0, k - 100 * p.kept_limits[0]) for p, k in zip(mine, kept, strict=True)]
        above = [max(0.0, 100 * p.kept_limits[1] - k) for p, k in zip(mine, kept, strict=True)]
        # Twenty lines are too many to look at: those that nobody needs stand back.
        strong = any(p in best for p in mine)
        axis.errorbar(
            times, kept, yerr=[below, above] if strong else None, lw=1, ms=4.5 if strong else 3, elinewidth=0.6,
            alpha=0.9 if strong else 0.35, zorder=2.5 if strong else 2, label=method, **style,
        )  # fmt: skip
    axis.step(
        [p.first_token_ms for p in best], [100 * p.kept for p in best], where="post", color="#222222", lw=1.4,
        ls=(0, (4, 2)), label="front", zorder=1,
    )  # fmt: skip
    whole = [p for p in points if p.baseline]
    if whole:
        axis.plot([whole[0].first_token_ms], [100], "*", ms=12, color="#222222", label="unpruned")
    base = points[0].unpruned
    axis.axhline(100 - rule.max_loss / base, color="#c8352b", lw=0.8, ls=":", label=f"{rule.tolerance} less")
    chosen = recommend(points, rule)
    title = f"{name}, {max(p.n for p in points)} questions, {100 * base:.1f} % unpruned"
    if chosen is not None and not chosen.baseline:
        axis.plot(
            [chosen.first_token_ms], [100 * chosen.kept], "o", ms=13, mfc="none", mec="#c8352b", mew=1.6,
            label="recommended", ls="none",
        )  # fmt: skip
        title += f"\nrecommended: {chosen.label}"
    axis.set_title(title, fontsize=9, loc="left")
    _scale(axis, [p.first_token_ms for p in points])
    axis.grid(True, alpha=0.25)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    _name(axis, best)


def _scale(axis: Any, times: list[float]) -> None:
    """A logarithmic axis of times: budgets are a few times faster than unpruned, and near each other."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axis.set_xscale("log")
    axis.set_xlim(0.9 * min(times), 1.15 * max(times))
    steps = [step * 10**power for power in range(-3, 8) for step in (1, 1.5, 2, 3, 4, 6, 8)]
    axis.set_xticks([step for step in steps if 0.9 * min(times) <= step <= 1.15 * max(times)])
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def _name(axis: Any, best: list[Point]) -> None:
    """Writes method and budget beside the points of the front, from the most accurate down, where there is room."""
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    taken: list[tuple[float, float]] = []
    for p in sorted(best, key=lambda p: -p.accuracy):
        place = math.log(p.first_token_ms / left) / math.log(right / left), (100 * p.kept - bottom) / (top - bottom)
        if p.baseline or any(abs(place[0] - x) < 0.25 and abs(place[1] - y) < 0.045 for x, y in taken):
            continue
        taken.append(place)
        axis.annotate(
            p.label, (p.first_token_ms, 100 * p.kept), (8, -10), textcoords="offset points", fontsize=7,
            color="#222222", bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.7},
        )  # fmt: skip
