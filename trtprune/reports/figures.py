"""The common part of all plots: matplotlib if installed, one colour and marker per method, writing the file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtprune.errors import BackendError, InputError
from trtprune.reports.installer import to_install

__all__ = ["INK", "Style", "plot_wanted", "require_matplotlib", "save_figure", "styles_of"]

INK = "#222222"
"""Colour of unpruned, floors and fronts."""
OTHER = "#8a8f96"
"""Colour of peers, and of methods that this version does not know."""
# The first six are Okabe's and Ito's. The others are from a search for the largest distance between any two, with and
# without red-green blindness; tests/reports/test_figures.py repeats the measurement.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#751927", "#0d05ba", "#7e7bfe", "#074c6a",
    "#08715e", "#0ae182", "#180bfa", "#6fb87b", "#cc0b3f", "#08d6de", "#556004", "#27328b", "#c613a4", "#3f63e3",
    "#ffbb25", "#1c6483", "#3a9bd7",
)  # fmt: skip
MARKERS = "osD^vPX*<>phd"
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))

logger = logging.getLogger("trtprune")


@dataclass(frozen=True)
class Style:
    """The style of a method in every plot.

    Attributes:
        color: The method's colour, as ``#rrggbb``.
        marker: The method's marker, as in matplotlib.
        dash: Dash of the line; the second variant of a method has another one.
        hollow: Whether the marker is an outline: for a variant with other options than the first one.
    """

    color: str
    marker: str
    dash: Any = "-"
    hollow: bool = False

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of matplotlib's ``plot``."""
        face = {"mfc": "white"} if self.hollow else {}
        return {"color": self.color, "marker": self.marker, "ls": self.dash, **face}


def styles_of(labels: Sequence[str], methods: Sequence[str]) -> dict[str, Style]:
    """The style of each label, a method or ``method option=value``.

    A method's colour and marker follow from its place in ``methods`` alone, so that it looks the same in every plot,
    whatever is drawn beside it; variants of one method share them and differ in their dash.

    Args:
        labels: All labels of the plot.
        methods: All methods, in their order (:func:`trtprune.pruning.names`).
    """
    known = [name for name in methods if name != "none"]
    seen: dict[str, int] = {}
    found = {}
    for label in dict.fromkeys(labels):
        method = label.split(" ", 1)[0]
        number = seen.get(method, 0)
        seen[method] = number + 1
        dash, hollow = DASHES[number % len(DASHES)], number > 0
        if method == "none":
            found[label] = Style(INK, "*", dash, hollow)
        elif method in known:
            place = known.index(method)
            found[label] = Style(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], dash, hollow)
        else:
            found[label] = Style(OTHER, MARKERS[len(found) % len(MARKERS)], dash, hollow)
    return found


def require_matplotlib(flag: str, path: Path) -> Any:
    """``pyplot``, ready to write ``path``.

    Raises:
        BackendError: if matplotlib is missing.
        InputError: if it does not write this kind of file.
    """
    try:
        import matplotlib
    except ImportError:
        raise BackendError(f"{flag} needs matplotlib, which is not installed", hint=to_install(extra="plot")) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in kinds:
        raise InputError(f"{flag} {path}: not a kind of picture that can be written", hint=".png, .svg or .pdf")
    return pyplot


def plot_wanted(asked: bool | None, flag: str, path: Path) -> bool:
    """Whether a picture is to be drawn; with None (no flag) a missing matplotlib only gives a note.

    Raises:
        BackendError: if it was requested and matplotlib is missing.
        InputError: if matplotlib does not write this kind of file.
    """
    if asked is False:
        return False
    try:
        require_matplotlib(flag, path)
    except BackendError:
        if asked:
            raise
        logger.warning("%-9s no %s: matplotlib is not installed (%s)", "plot", path.name, to_install(extra="plot"))
        return False
    return True


def save_figure(figure: Any, flag: str, path: Path) -> None:
    """Writes and closes a figure.

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
