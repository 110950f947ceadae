"""The picture of a bench: where the time to the first token goes, cell by cell, and its floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtprune.errors import BackendError, InputError

__all__ = ["draw_stages", "require_matplotlib", "save_figure"]

COLOURS = {
    "preprocess": "#9aa3ad",
    "vision": "#2f6db3",
    "prune": "#c8352b",
    "prefill": "#e0a030",
    "other": "#d9dde1",
}
FLOOR = "#222222"


def require_matplotlib(flag: str, path: Path) -> Any:
    """``pyplot``, ready to write ``path``.

    Raises:
        BackendError: if matplotlib is missing.
        InputError: if it does not write this kind of file, or there is no such directory.
    """
    try:
        import matplotlib
    except ImportError:
        raise BackendError(
            f"{flag} needs matplotlib, which is not installed", hint="pip install 'trtprune[compare]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in kinds:
        raise InputError(f"{flag} {path}: not a kind of picture that can be written", hint=".png, .svg or .pdf")
    return pyplot


def save_figure(figure: Any, flag: str, path: Path) -> None:
    """Writes and closes it.

    Raises:
        InputError: if the file cannot be written.
    """
    from matplotlib import pyplot

    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise InputError(f"{flag} {path}: cannot be written: {error}", hint="a .png, .svg or .pdf file") from None
    finally:
        pyplot.close(figure)


def draw_stages(result: dict[str, Any], path: Path) -> None:
    """Stacked bars of the stages up to the first token, a bar a cell, with the floor of each as a mark.

    Args:
        result: What :func:`trtprune.bench.report.to_json` gives.
        path: The file to write; its suffix says the format.

    Raises:
        BackendError: if matplotlib is missing.
        InputError: if the file cannot be written.
    """
    pyplot = require_matplotlib("--plot", path)
    rows = result["rows"]
    figure, axis = pyplot.subplots(figsize=(9, 1.3 + 0.34 * len(rows)))
    places = list(range(len(rows)))[::-1]
    begin = [0.0] * len(rows)
    for stage, colour in COLOURS.items():
        lengths = [_length(row, stage) for row in rows]
        axis.barh(places, lengths, left=begin, color=colour, height=0.72, label=stage)
        begin = [a + b for a, b in zip(begin, lengths, strict=True)]
    speed = {(r["method"], r["keep"]): r["first_token"]["p50"] for r in result["ratios"] if r["against"] == "unpruned"}
    for place, row in zip(places, rows, strict=True):
        first = row["first_token_ms"]
        axis.plot([first["p50"], first["p90"]], [place, place], color=FLOOR, lw=1)
        times = speed.get((row["method"], row["keep"]))
        words = f"{first['p50']:.0f} ms" + (f", {times:.2f} x" if times is not None else "")
        axis.annotate(words, (max(first["p90"], first["p50"]), place), (5, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    floors = [(place, row["floor_ms"]) for place, row in zip(places, rows, strict=True) if row["floor_ms"]]
    if floors:
        axis.vlines(
            [ms for _, ms in floors], [p - 0.36 for p, _ in floors], [p + 0.36 for p, _ in floors],
            color=FLOOR, lw=2, label="floor",
        )  # fmt: skip
    axis.set_yticks(places, [f"{row['method']} {row['keep']}" for row in rows], fontsize=8)
    axis.set_xlim(0, 1.22 * max(row["first_token_ms"]["p90"] for row in rows))
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_xlabel("milliseconds to the first token: medians of each stage; the line reaches to the 90th percentile")
    axis.grid(True, axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    inch = 1 / figure.get_figheight()
    title = f"{result['engine']['model']}, {result['provider']}, {result['machine']['cpu']}"
    figure.suptitle(title, fontsize=10, y=1 - 0.1 * inch, va="top")
    handles = axis.get_legend_handles_labels()
    figure.legend(
        *handles, ncols=6, fontsize=8, loc="upper center", frameon=False, bbox_to_anchor=(0.5, 1 - 0.3 * inch)
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.6 * inch))
    save_figure(figure, "--plot", path)


def _length(row: dict[str, Any], stage: str) -> float:
    """Median milliseconds of a stage; ``other`` is what the median to the first token has beyond all of them."""
    known = {name: row["stages_ms"][name]["p50"] for name in COLOURS if name != "other"}
    return max(0.0, row["first_token_ms"]["p50"] - sum(known.values())) if stage == "other" else known[stage]
