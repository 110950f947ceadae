"""The picture of a bench: parts of the time to the first token, and the speed of every method at every budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtprune.reports.figures import INK, require_matplotlib, save_figure

__all__ = ["draw_stages"]

COLOURS = {
    "preprocess": "#9aa3ad",
    "vision": "#2f6db3",
    "prune": "#c8352b",
    "prefill": "#e0a030",
    "other": "#d9dde1",
}
FEW = 16
"""The largest number of cells with a bar each; more of them are in a map of numbers instead."""


def draw_stages(result: dict[str, Any], path: Path) -> None:
    """Draws the picture.

    Bars of the stages up to the first token, each with its floor: for every cell if there are few, otherwise for
    unpruned, the peers and the build's own method. With many cells, also a map of methods and budgets with the time to
    the first token and its speed-up over unpruned, and one of the pruner's time.

    Args:
        result: The result of :func:`trtprune.bench.report.to_json`.
        path: The file to write; its suffix is the format.

    Raises:
        BackendError: if matplotlib is missing.
        InputError: if the file cannot be written.
    """
    pyplot = require_matplotlib("--plot", path)
    rows = result["rows"]
    speed = {(r["method"], r["keep"]): r["first_token"]["p50"] for r in result["ratios"] if r["against"] == "unpruned"}
    few = len(rows) <= FEW
    barred = rows if few else [row for row in rows if row["unpruned"] or row["peer"] or _own(row, result)]
    mapped = [] if few else [row for row in rows if not row["peer"] and not row["unpruned"]]
    methods = list(dict.fromkeys(row["method"] for row in mapped))
    tall = 1.0 + 0.30 * len(barred)
    maps = 0.9 + 0.27 * len(methods) if mapped else 0.0
    figure = pyplot.figure(figsize=(10.5, 0.9 + tall + maps), layout="constrained")
    heights = [tall, maps] if mapped else [tall]
    grid = figure.add_gridspec(len(heights), 2, width_ratios=[3, 1.7], height_ratios=heights)
    bars = figure.add_subplot(grid[0, :])
    _draw_bars(bars, barred, speed)
    handles, names = bars.get_legend_handles_labels()
    found = dict(zip(names, handles, strict=True))
    figure.legend(found.values(), found.keys(), ncols=len(found), fontsize=8, frameon=False, loc="outside upper center")
    if mapped:
        first, pruner = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
        _draw_speed(first, mapped, methods, speed)
        _draw_pruner(pruner, mapped, methods)
    title = f"{result['engine']['model']}, {result['provider']}, {result['machine']['cpu']}"
    bars.set_title(title, fontsize=11, loc="left", pad=16)
    save_figure(figure, "--plot", path)


def _own(row: dict[str, Any], result: dict[str, Any]) -> bool:
    """Whether it is the build's own method; if that was not measured, always true."""
    own = result["engine"].get("method")
    return bool(row["method"] == own)


def _draw_bars(axis: Any, rows: Sequence[dict[str, Any]], speed: dict[tuple[str, int], float]) -> None:
    places = list(range(len(rows)))[::-1]
    begin = [0.0] * len(rows)
    for stage, colour in COLOURS.items():
        lengths = [_length(row, stage) for row in rows]
        axis.barh(places, lengths, left=begin, color=colour, height=0.72, label=stage)
        begin = [a + b for a, b in zip(begin, lengths, strict=True)]
    for place, row in zip(places, rows, strict=True):
        first = row["first_token_ms"]
        axis.plot([first["p50"], first["p90"]], [place, place], color=INK, lw=1, label="to the 90th percentile")
    floors = [(place, row["floor_ms"]) for place, row in zip(places, rows, strict=True) if row["floor_ms"]]
    if floors:
        axis.vlines(
            [ms for _, ms in floors], [p - 0.36 for p, _ in floors], [p + 0.36 for p, _ in floors],
            color=INK, lw=2, label="floor",
        )  # fmt: skip
    # Numbers are in columns of their own: beside the bars they would overlap the marks.
    columns = {"first token": 0.83, "vs unpruned": 0.925, "pruner": 1.0}
    head = len(rows) - 0.35
    for name, x in columns.items():
        axis.text(x, head, name, transform=axis.get_yaxis_transform(), ha="right", va="bottom", fontsize=8, color=INK)
    for place, row in zip(places, rows, strict=True):
        times = speed.get((row["method"], row["keep"]))
        prune = row["stages_ms"]["prune"]["p50"]
        words = (
            f"{row['first_token_ms']['p50']:.0f} ms",
            "1" if row["unpruned"] else "" if times is None else f"{times:.2f} x",
            "" if row["peer"] or row["unpruned"] else f"{prune:.1f} ms",
        )
        for text, x in zip(words, columns.values(), strict=True):
            axis.text(x, place, text, transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=8)
    axis.set_yticks(places, [_name(row) for row in rows], fontsize=8)
    longest = max(row["first_token_ms"]["p90"] for row in rows)
    axis.set_xlim(0, longest / 0.74)
    axis.set_xticks([tick for tick in axis.get_xticks() if tick <= longest])
    axis.tick_params(axis="x", labelsize=8)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_xlabel("milliseconds to the first token, medians of each stage", fontsize=9)
    axis.grid(True, axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _name(row: dict[str, Any]) -> str:
    return f"unpruned {row['keep']}" if row["unpruned"] else f"{row['method']} {row['keep']}"


def _draw_speed(
    axis: Any, rows: Sequence[dict[str, Any]], methods: Sequence[str], speed: dict[tuple[str, int], float]
) -> None:
    times = {key: ratio for key, ratio in speed.items() if key in {(row["method"], row["keep"]) for row in rows}}
    words = {}
    for row in rows:
        key = (row["method"], row["keep"])
        ratio = f"\u2002{times[key]:.2f} x" if key in times else ""
        words[key] = f"{row['first_token_ms']['p50']:.0f} ms{ratio}"
    _draw_map(axis, rows, methods, times, words, "Blues")
    axis.set_title("milliseconds to the first token, and times as fast as unpruned", fontsize=9, loc="left")


def _draw_pruner(axis: Any, rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    took = {(row["method"], row["keep"]): row["stages_ms"]["prune"]["p50"] for row in rows}
    # A method inside the decoder has no stage of its own: its prune points are part of the prefill.
    words = {key: f"{ms:.1f}" if ms else "in the prefill" for key, ms in took.items()}
    _draw_map(axis, rows, methods, {key: ms for key, ms in took.items() if ms}, words, "Reds")
    axis.tick_params(labelleft=False)
    axis.set_title("of them in the pruner, milliseconds", fontsize=9, loc="left")


def _draw_map(
    axis: Any,
    rows: Sequence[dict[str, Any]],
    methods: Sequence[str],
    values: dict[tuple[str, int], float],
    words: dict[tuple[str, int], str],
    colours: str,
) -> None:
    """One field per method and budget, with its number; darker is larger."""
    import numpy as np

    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    table = np.full((len(methods), len(keeps)), np.nan)
    for (method, keep), value in values.items():
        table[methods.index(method), keeps.index(keep)] = value
    low, high = (np.nanmin(table), np.nanmax(table)) if np.isfinite(table).any() else (0.0, 1.0)
    # A third of the scale above the largest is unused, so that black letters are readable everywhere.
    axis.pcolormesh(
        np.ma.masked_invalid(table), cmap=colours, vmin=low, vmax=high + 0.7 * (high - low) + 1e-9, edgecolor="white",
        lw=1,
    )  # fmt: skip
    for key, text in words.items():
        method, keep = key
        place = (keeps.index(keep) + 0.5, methods.index(method) + 0.5)
        axis.text(*place, text, ha="center", va="center", fontsize=8 if key in values else 6, color=INK)
    axis.set_xticks([place + 0.5 for place in range(len(keeps))], [str(keep) for keep in keeps], fontsize=8)
    axis.set_yticks([place + 0.5 for place in range(len(methods))], methods, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("visual tokens kept", fontsize=9)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def _length(row: dict[str, Any], stage: str) -> float:
    """Median milliseconds of a stage; ``other`` is the rest of the median time to the first token."""
    known = {name: row["stages_ms"][name]["p50"] for name in COLOURS if name != "other"}
    return max(0.0, row["first_token_ms"]["p50"] - sum(known.values())) if stage == "other" else known[stage]
