"""Tables for a terminal, never wider than it and never wrapped.

A table that is too wide loses its least important columns, and a line names them. If the columns that must stay do not
fit either, each row becomes a paragraph. A pipe has no width and gets the whole table.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Column", "lay_out", "terminal_width", "wrap"]

GAP = "  "
NARROWEST = 40


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Head of the column; a line break makes it two lines.
        drop: 0 for a column that always stays; the highest number is dropped first.
        left: Left-aligned: words. Numbers are right-aligned.
    """

    name: str
    drop: int = 0
    left: bool = False

    @property
    def title(self) -> str:
        """The head on one line."""
        return self.name.replace("\n", " ")


def terminal_width(otherwise: int | None = None) -> int | None:
    """Width of the terminal behind stdout, or the one in ``COLUMNS``; ``otherwise`` without a terminal."""
    if os.environ.get("COLUMNS", "").isdigit() and int(os.environ["COLUMNS"]) > 0:
        return max(NARROWEST, int(os.environ["COLUMNS"]))
    if sys.stdout is not None and sys.stdout.isatty():
        return max(NARROWEST, shutil.get_terminal_size((100, 24)).columns)
    return otherwise


def lay_out(
    columns: Sequence[Column], rows: Sequence[Sequence[str] | None], *, width: int | None, more: str = ""
) -> list[str]:
    """The table as lines without trailing blanks.

    Args:
        columns: Columns of every row.
        rows: Cells; None is an empty line.
        width: Width of the terminal; None: unlimited.
        more: Where all columns can be found, for the line that names the missing ones.
    """
    columns = [replace(columns[0], drop=0), *columns[1:]]  # a row without its name would be meaningless
    shown = [k for k in range(len(columns)) if any(row is not None and row[k] for row in rows) or not columns[k].drop]
    dropped: list[int] = []
    while width is not None and _width(columns, rows, shown) > width and any(columns[k].drop for k in shown):
        worst = max(shown, key=lambda k: (columns[k].drop, k))
        # Columns of one rank belong together: half of them would be useless.
        going = [k for k in shown if columns[k].drop == columns[worst].drop]
        dropped += going
        shown = [k for k in shown if k not in going]
    if width is not None and _width(columns, rows, shown) > width:
        return _records(columns, rows, width)
    lines = _lines(columns, rows, shown)
    if dropped and width is not None:
        names = ", ".join(columns[k].title for k in sorted(dropped))
        lines += wrap(f"not shown at {width} columns: {names}" + (f"; {more}" if more else ""), width)
    return lines


def wrap(text: str, width: int | None, indent: str = "") -> list[str]:
    """A sentence as lines; words that are too long for one, such as paths, stay whole."""
    if width is None:
        return [text]
    filled = textwrap.fill(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
    return filled.split("\n")


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str] | None], shown: Sequence[int]) -> list[int]:
    return [
        max(*map(len, columns[k].name.split("\n")), *(len(row[k]) for row in rows if row is not None), 0) for k in shown
    ]


def _width(columns: Sequence[Column], rows: Sequence[Sequence[str] | None], shown: Sequence[int]) -> int:
    return sum(_widths(columns, rows, shown)) + len(GAP) * (len(shown) - 1)


def _lines(columns: Sequence[Column], rows: Sequence[Sequence[str] | None], shown: Sequence[int]) -> list[str]:
    widths = _widths(columns, rows, shown)
    heads = [columns[k].name.split("\n") for k in shown]
    high = max(map(len, heads))
    cells = [[head[n - high + len(head)] if n >= high - len(head) else "" for head in heads] for n in range(high)]
    cells += [[] if row is None else [row[k] for k in shown] for row in rows]
    return [
        GAP.join(
            f"{cell:<{wide}}" if columns[k].left else f"{cell:>{wide}}"
            for k, cell, wide in zip(shown, line, widths, strict=False)
        ).rstrip()
        for line in cells
    ]


def _records(columns: Sequence[Column], rows: Sequence[Sequence[str] | None], width: int) -> list[str]:
    """Each row as a paragraph: its first cell, then one line per column that is not empty."""
    lines = []
    longest = max(len(column.title) for column in columns[1:])
    for row in rows:
        if row is None:
            lines.append("")
            continue
        lines += wrap(row[0], width, "  ") if row[0] else []
        for column, cell in zip(columns[1:], row[1:], strict=True):
            if cell:
                lines += wrap(f"  {column.title:<{longest}}  {cell}", width, " " * (longest + 4))
    return lines
