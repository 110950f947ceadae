"""No table is wider than the terminal, none is wrapped into rubble, and what is left out is named."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.frontier.test_frontier import both, two
from tests.reports.test_figures import figures
from trtprune.bench.report import render as render_bench
from trtprune.cli.methods import render_methods
from trtprune.compare.answers import Agreement, AnswerPair
from trtprune.compare.report import show_agreement, show_comparison
from trtprune.compare.results import Comparison, ComponentResult, Layers, OutputResult, PointResult
from trtprune.doctor.report import Check, Report
from trtprune.eval.table import render_evaluation
from trtprune.frontier import Rule
from trtprune.frontier.report import render as render_frontier
from trtprune.reports import tables
from trtprune.reports.tables import Column, lay_out, terminal_width

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
WIDTHS = (80, 100, 140)
NAMES = st.text("abcdefgh ", min_size=1, max_size=9).map(str.strip).filter(bool)


@given(
    st.lists(st.builds(Column, NAMES, st.integers(0, 3), st.booleans()), min_size=2, max_size=7),
    st.integers(40, 120), st.data(),
)  # fmt: skip
def test_any_table_fits_or_is_written_row_by_row(columns: list[Column], width: int, data: st.DataObject) -> None:
    cell = st.text("xyz0189.-", max_size=30)
    rows = data.draw(st.lists(st.lists(cell, min_size=len(columns), max_size=len(columns)), min_size=1, max_size=5))
    lines = lay_out(columns, rows, width=width)
    assert all(len(line) <= max(width, 34 + 9) for line in lines)
    said = "\n".join(lines)
    for row in rows:
        for column, text in zip(columns, row, strict=True):
            if not column.drop or column is columns[0]:
                assert text in said
    whole = lay_out(columns, rows, width=None)
    # A table keeps every cell where there is no width, and what it lacks elsewhere is named.
    assert all(text in "\n".join(whole) for row in rows for text in row)
    if "not shown at" in said:
        left = [column for column in columns if column.drop]
        assert any(column.name in said.split("not shown at")[1].replace("\n", " ") for column in left)


def bench(width: int | None) -> str:
    return render_bench(json.loads((RESULTS / "bench-demo.json").read_text()), width)


def evaluation(width: int | None) -> str:
    made = figures(["adafv", "divprune center=true", "pyramiddrop first=2"], ("non-salient", "salient", "all"))
    blind = [
        dataclasses.replace(f, controls={"wrong": 0.4, "grey": 0.3}, yes_no={"f1": 0.8, "yes_ratio": 0.5})
        for f in made.figures
    ]
    notes = ("7 questions were left out of all runs, and this note goes on for longer than a terminal is wide",)
    return render_evaluation(dataclasses.replace(made, figures=tuple(blind), notes=notes), width)


def frontier(width: int | None) -> str:
    return render_frontier(both(*two()), Rule(1.0, "low"), width)


def methods(width: int | None) -> str:
    return render_methods(width)


def doctor(width: int | None) -> str:
    check = Check("onnxruntime", "problem", "not installed " * 12, "pip install trtprune[cpu]", "run and show " * 9)
    return Report((check,)).render(width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("report", [bench, evaluation, frontier, methods, doctor])
def test_reports_fit(report: Any, width: int) -> None:
    text = report(width)
    for line in text.splitlines():
        assert len(line) <= width, line
        assert line == line.rstrip()
    if report is not methods:
        assert "…" not in text
        assert max(map(len, report(None).splitlines())) > 80, "into a pipe goes everything"


@pytest.mark.parametrize("width", WIDTHS)
def test_what_must_stay_stays(width: int) -> None:
    """Method, budget, speed and accuracy are in every width, each number on the line of its method."""
    result = json.loads((RESULTS / "bench-demo.json").read_text())
    lines = bench(width).splitlines()
    for row in result["rows"]:
        (line,) = [x for x in lines if re.match(rf"{re.escape(row['method'])} +{row['keep']} ", x)]
        assert f" {row['first_token_ms']['p50']:.1f}" in line
    head = " ".join(lines[:3])
    assert "unpruned" in head, "a ratio says against what"
    assert "x unpruned: times as fast to the first token as with all visual tokens" in " ".join(
        part.strip() for part in lines
    )
    made = evaluation(width)
    assert len([line for line in made.splitlines() if "divprune center=true" in line and "-10.0" in line]) == 6
    assert "x unpruned" in frontier(140)


def comparison() -> Comparison:
    outputs = tuple(
        OutputResult(name, name != "logits", "elemwise", 1e-4, 1e-5, 1.25e-6, 1e-3, 1.25e-6, 1e-7, 1e-7, "prefill")
        for name in ("logits", *(f"present.{n}.key" for n in range(3)))
    )
    points = tuple(PointResult(f"layers.{n}.self_attn.o_proj", n < 3, 1e-5, 0.1, 1e-5, 1e-6, 1.0) for n in range(6))
    layers = Layers(points, first="layers.3.self_attn.o_proj", tensors=points, note="a note " * 20)
    component = ComponentResult("decoder", False, outputs, ("prefill",), (1.0, 1.0), "a", "b", layers=layers)
    return Comparison("out", "onnxruntime", "random", ("float32", "float32"), (component,))


def agreement(length: int) -> Agreement:
    rows = tuple(
        AnswerPair(prompt=f"What is number {n} ?", pruned="red " * length, unpruned="blue " * length, same=False,
            counted=True, why="", right=None, common_tokens=0, kept_tokens=64, visual_tokens=576)
        for n in range(3)
    )  # fmt: skip
    return Agreement("adafv", 64, 576, rows, None, (1, 2))


@pytest.mark.parametrize("width", WIDTHS)
def test_comparisons_fit(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show_comparison(comparison())
    for length in (1, 5, 60):
        show_agreement(agreement(length))
    text = capsys.readouterr().out
    assert all(len(line) <= width for line in text.splitlines())
    assert len(re.findall(r"logits .*FAILED$", text, re.M)) == 1
    assert len(re.findall(r"present\.\*\.key .*PASSED$", text, re.M)) == 1
    assert text.count("beyond") >= 3
    assert text.count("What is number 2 ?") == 3
    assert text.count("red") == 3 * (1 + 5 + 60)
    assert "\x1b" not in text


def test_colour_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show_comparison(comparison())
    assert "\x1b[32mPASSED" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    show_comparison(comparison())
    assert "\x1b[3" not in capsys.readouterr().out


def test_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal_width() is None, "a pipe has none"
    assert terminal_width(120) == 120
    monkeypatch.setenv("COLUMNS", "97")
    assert terminal_width() == 97
    monkeypatch.setenv("COLUMNS", "3")
    assert terminal_width() == tables.NARROWEST
