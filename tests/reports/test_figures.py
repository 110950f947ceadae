"""All plots: one style a method, told apart by any reader, and figures with the axes and words they should have."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure as Page

from tests.frontier.test_frontier import both, two
from trtprune import pruning
from trtprune.bench.plot import FEW, draw_stages
from trtprune.cli import main
from trtprune.errors import BackendError, InputError
from trtprune.eval.plot import draw_accuracy
from trtprune.eval.report import Evaluation, Figure
from trtprune.frontier import Rule
from trtprune.frontier.plot import draw_frontier
from trtprune.reports import figures as figures_module
from trtprune.reports.figures import INK, plot_wanted, styles_of

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
NAMES = pruning.names()
METHODS = [name for name in NAMES if name != "none"]

# Machado, Oliveira and Fernandes (2009), severity 1: what readers without green or without red cones see, linear RGB.
SIGHT = {
    "all": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


def oklab(linear: np.ndarray) -> np.ndarray:
    """Ottosson's Oklab of linear sRGB [N, 3]."""
    cones = np.cbrt(
        np.clip(linear, 0, 1)
        @ np.array(
            [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
             [0.0883024619, 0.2817188376, 0.6299787005]]
        ).T
    )  # fmt: skip
    return cones @ np.array(
        [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]
    ).T  # fmt: skip


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Page]:
    """The figures that are written, by file name; nothing is drawn."""
    found: dict[str, Page] = {}
    for module in ("bench", "eval", "frontier"):
        monkeypatch.setattr(f"trtprune.{module}.plot.save_figure", lambda f, flag, path: found.update({path.name: f}))
    return found


@pytest.mark.parametrize("sight", SIGHT)
def test_methods_are_told_apart(sight: str) -> None:
    colours = [style.color for style in styles_of(METHODS, NAMES).values()]
    assert len(set(colours)) == len(METHODS) >= 19
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = oklab(linear @ SIGHT[sight].T)
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 9 * np.eye(len(seen))
    # 0.02 is a just noticeable difference.
    assert apart.min() > 0.07, (sight, METHODS[apart.argmin() // len(METHODS)], METHODS[apart.argmin() % len(METHODS)])
    assert (seen[:, 0] < 0.87).all(), "too pale for white paper"


def test_a_style_depends_on_nothing_but_the_method() -> None:
    for name in METHODS:
        alone = styles_of([name], NAMES)[name]
        assert alone == styles_of([*METHODS[::-1]], NAMES)[name]
        assert alone.color != INK
    variants = styles_of(["divprune", "divprune center=true", "mmr"], NAMES)
    assert variants["divprune center=true"].color == variants["divprune"].color
    assert variants["divprune center=true"] != variants["divprune"]
    assert styles_of(["of another version"], NAMES)["of another version"].color == figures_module.OTHER
    assert styles_of(["none"], NAMES)["none"].color == INK


def figures(methods: list[str], sets: tuple[str, ...] = ("a", "b"), keeps: tuple[int, ...] = (64, 16)) -> Evaluation:
    """An evaluation of made-up marks."""
    found = []
    for place, name in enumerate(sets):
        whole = Figure("none", 576, name, 100, 50, 0.9, 0.85, 0.95, 0.9, 1.0, 0, 0, 0, 0, 0, 576.0, 576, 0)
        found.append(whole)
        for method in methods:
            for keep in keeps:
                mark = 0.5 + 0.3 * place
                found.append(
                    Figure(method, keep, name, 100, 50, mark, mark - 0.1, mark + 0.1, 0.9, 0.5, 5, 3, -0.1, -0.2, 0,
                           float(keep), 576, 0)
                )  # fmt: skip
    return Evaluation("", {"model": "demo"}, {"name": "made up"}, {}, tuple(found))


def test_accuracy(pages: dict[str, Page], tmp_path: Path) -> None:
    draw_accuracy(figures(["adafv", "divprune", "random"], ("a", "b", "c")), tmp_path / "a.png")
    page = pages["a.png"]
    assert len(page.axes) == 3
    assert len({axis.get_ylim() for axis in page.axes}) == 1, "panels are not on one scale"
    (legend,) = page.legends
    assert {text.get_text() for text in legend.get_texts()} == {"unpruned", "adafv", "divprune", "random"}
    for axis in page.axes:
        assert axis.get_title(loc="left").endswith("100 questions")
        # Equal marks at equal budgets: no two curves lie on each other.
        xs = [tuple(c.lines[0].get_xdata()) for c in axis.containers]
        assert len(set(xs)) == len(xs) == 3
        assert not [c for c in axis.collections if type(c).__name__ == "FillBetweenPolyCollection"]
        assert [tick.get_text() for tick in axis.get_xticklabels() if tick.get_text()] in ([], ["16", "64"])


def benched(name: str = "bench-demo.json") -> dict[str, Any]:
    return dict(json.loads((RESULTS / name).read_text()))


def words(axis: Any) -> set[str]:
    return {text.get_text() for text in axis.texts}


def test_bench_of_many_cells_is_a_map(pages: dict[str, Page], tmp_path: Path) -> None:
    result = benched()
    draw_stages(result, tmp_path / "b.png")
    bars, speed, pruner = pages["b.png"].axes
    own = [row for row in result["rows"] if row["method"] == result["engine"]["method"]]
    peers = [row for row in result["rows"] if row["peer"]]
    assert len(bars.get_yticks()) == 1 + len(own) + len(peers) < FEW
    ours = [row for row in result["rows"] if not row["peer"] and not row["unpruned"]]
    assert [t.get_text() for t in speed.get_yticklabels()] == list(dict.fromkeys(row["method"] for row in ours))
    assert [t.get_text() for t in speed.get_xticklabels()] == ["192", "128", "64", "32", "16"]
    assert len(speed.texts) == len(pruner.texts) == len(ours)
    ratio = {(r["method"], r["keep"]): r["first_token"]["p50"] for r in result["ratios"] if r["against"] == "unpruned"}
    for row in ours:
        assert f"{row['first_token_ms']['p50']:.0f} ms\u2002{ratio[row['method'], row['keep']]:.2f} x" in words(speed)
    assert "unpruned" in speed.get_title(loc="left")
    assert "in the prefill" in words(pruner)
    assert pages["b.png"].get_figheight() < 12


def test_bench_of_few_cells_is_bars(pages: dict[str, Page], tmp_path: Path) -> None:
    result = benched()
    result["rows"] = [row for row in result["rows"] if row["method"] in ("none", "divprune")]
    draw_stages(result, tmp_path / "b.png")
    (bars,) = pages["b.png"].axes
    assert [t.get_text() for t in bars.get_yticklabels()][:2] == ["unpruned 576", "divprune 192"]
    assert {"first token", "vs unpruned", "pruner", "959 ms"} <= words(bars)
    first, unpruned = result["rows"][1]["first_token_ms"]["p50"], result["rows"][0]["first_token_ms"]["p50"]
    assert f"{first:.0f} ms" in words(bars)
    (said,) = [t for t in bars.texts if t.get_text().endswith(" x") and abs(t.get_position()[1] - 4) < 0.1]
    assert float(said.get_text()[:-2]) == pytest.approx(unpruned / first, rel=0.05)
    stages = [c for c in bars.containers if type(c).__name__ == "BarContainer"]
    total = sum(bar[0].get_width() for bar in stages)
    assert total == pytest.approx(unpruned, rel=0.01)


def test_front_is_labelled(pages: dict[str, Page], tmp_path: Path) -> None:
    joined = both(*two())
    draw_frontier(joined, Rule(1.0, "low"), tmp_path / "f.png")
    page = pages["f.png"]
    shown = [axis for axis in page.axes if axis.get_visible()]
    assert len(shown) == len(joined.sets)
    for axis in shown:
        assert axis.get_xlabel() == "milliseconds to the first token"
        assert [t for t in axis.get_xticklabels() if t.get_text()], "no numbers at the ticks"
        boxes = [t.get_window_extent() for t in axis.texts]
        assert boxes
        for k, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[k + 1 :]), "labels collide"
        assert all(text.arrow_patch is not None for text in axis.texts)


def test_a_method_has_one_colour_in_all_plots(pages: dict[str, Page], tmp_path: Path) -> None:
    draw_accuracy(figures(["random", "adafv"]), tmp_path / "a.png")
    draw_frontier(both(*two()), Rule(1.0, "low"), tmp_path / "f.png")
    for page in pages.values():
        for axis in page.axes:
            for container in axis.containers:
                name = container.get_label()
                assert to_hex(container.lines[0].get_color()) == styles_of([name], NAMES)[name].color
                assert container.lines[0].get_marker() == styles_of([name], NAMES)[name].marker


def test_missing_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A picture nobody asked for costs a note; one that was asked for is an error that says what to install."""
    said: list[str] = []
    monkeypatch.setattr("trtprune.reports.figures.logger.warning", lambda text, *given: said.append(text % given))
    assert plot_wanted(None, "-o", tmp_path / "a.png") is True
    assert not said
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot_wanted(None, "-o", tmp_path / "a.png") is False
    assert said == ["plot      no a.png: matplotlib is not installed (pip install 'trtprune[plot]')"]
    assert plot_wanted(False, "-o", tmp_path / "a.png") is False
    with pytest.raises(BackendError, match="-o needs matplotlib") as caught:
        plot_wanted(True, "-o", tmp_path / "a.png")
    assert caught.value.hint == "pip install 'trtprune[plot]'"


def test_a_kind_of_picture_that_is_none(tmp_path: Path) -> None:
    for ask in (
        lambda: plot_wanted(None, "-o", tmp_path / "a.txt"),
        lambda: draw_accuracy(figures(["mmr"]), Path("b")),
    ):
        with pytest.raises(InputError, match="not a kind of picture"):
            ask()


def files_of(place: Path, pair: Callable[[], tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    for name, data in zip(("eval.json", "bench.json"), pair(), strict=True):
        (place / name).write_text(json.dumps(data))
    return [str(place / "eval.json"), str(place / "bench.json")]


def test_frontier_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = files_of(tmp_path, two)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = CliRunner().invoke(main, ["frontier", *given])
    assert found.exit_code == 0, found.stderr
    assert "adafv 192" in found.stdout
    assert "matplotlib is not installed" in found.stderr
    found = CliRunner().invoke(main, ["frontier", *given, "-o", "x.png"])
    assert found.exit_code == 1
    assert "hint:  pip install 'trtprune[plot]'" in found.stderr
