"""Commands on builds with packed towers: compare beside transformers, inspect, show, bench, eval's features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import trtprune
from tests.kit import tiny
from tests.kit.runtime_kit import picture
from tests.kit.tiny_files import complete
from trtprune.cli import main
from trtprune.compare import Draw, Question, compare
from trtprune.compare.draw import random_feeds
from trtprune.engine_dir import open_engine_dir

CASES = {family: tiny.Tiny(family=family, seed=41, max_positions=1024) for family in tiny.PACKED}


@pytest.fixture(
    scope="module", params=[pytest.param(f, marks=pytest.mark.slow) if f == "qwen2-vl" else f for f in CASES]
)
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    picture(1, (200, 130)).save(folder / "large.png")
    picture(2, (60, 60)).save(folder / "small.png")
    complete(folder / "source", CASES[request.param])
    trtprune.build(
        str(folder / "source"), folder / "out", method="hiprune", options={"object_layer": 1}, keep=6, weights="copy"
    )
    return folder / "out"


def command(*words: Any) -> Any:
    found = CliRunner().invoke(main, [str(word) for word in words])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    assert found.exit_code == 0, found.output
    return found


def test_against_transformers(out: Path) -> None:
    """Every component, the saliency of a layer with windows among the outputs."""
    found = compare(out, "transformers", checkpoint=str(out.parent / "source"), draw=Draw(iterations=3))
    assert found.passed, [o for c in found.components for o in c.outputs if not o.passed]
    assert [c.name for c in found.components] == ["vision", "embed", "pruner", "decoder"]
    assert {o.name for o in found.components[0].outputs} == {"image_features", "shallow_attention", "deep_attention"}
    question = Question([str(out.parent / "large.png")], "What is it?")
    assert compare(out, "transformers", checkpoint=str(out.parent / "source"), question=question).passed


def test_random_images_differ_in_their_size(out: Path) -> None:
    made = open_engine_dir(out)
    feeds, _ = random_feeds(made, made.component("vision"), Draw(iterations=8), ("float32", "float32"))
    assert len({feed["pixel_values"].shape for feed in feeds}) > 3
    assert all(len(feed["pixel_values"]) == 4 * len(feed["token_positions"]) for feed in feeds)


def test_inspect(out: Path) -> None:
    found = json.loads(command("inspect", out, "--verify", "none", "--json").stdout)
    assert found["model"]["image_size"] is None
    assert "any size, processor qwen2_vl, 4 to 154 visual tokens" in command("inspect", out, "--verify", "none").stdout


def test_run_and_show(out: Path) -> None:
    """Each image has its own number of visual tokens, and the sheet is drawn at their places."""
    for name, total in (("large", 35), ("small", 4)):
        ran = command("run", out, "--image", out.parent / f"{name}.png", "--prompt", "?", "--json")
        assert json.loads(ran.stdout)["visual_tokens"] == total
    sheet = out.parent / "sheet.png"
    command("show", out, "--image", out.parent / "large.png", "--prompt", "?", "-o", sheet)
    assert sheet.stat().st_size > 1000
    command(
        "show", out, "--image", out.parent / "large.png", "--method", "uniform,divprune", "--keep", "5", "-o", sheet
    )


def test_evaluation(out: Path, tmp_path: Path) -> None:
    """Each image counts with its own tokens, pruned and whole."""
    rows = [{"id": name, "image": f"{name}.png", "question": "Why?", "answer": "x"} for name in ("large", "small")]
    (out.parent / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command("eval", out, "--data", out.parent / "q.jsonl", "--keep", "12", "--max-new-tokens", 2, "-o", tmp_path / "e")
    lines = [json.loads(line) for line in (tmp_path / "e/results.jsonl").read_text().splitlines()]
    found = {(line["id"], line["method"]): (line["visual"], line["kept"]) for line in lines if "answer" in line}
    assert {name: seen for (name, method), seen in found.items() if method == "none"} == {
        "large": (35, 35),
        "small": (4, 4),
    }
    assert {seen for (_, method), seen in found.items() if method != "none"} == {(35, 12), (4, 4)}


def test_bench(out: Path) -> None:
    """Operations are counted for the question's image, more for a larger one."""
    found = []
    for name in ("large", "small"):
        report = out.parent / f"{name}.json"
        command(
            *("bench", out, "--image", out.parent / f"{name}.png", "--prompt", "?", "--keep", "3", "--rounds", 1),
            *("--warmup", 1, "--max-new-tokens", 2, "--no-memory", "--report", report),
        )
        found.append(json.loads(report.read_text()))
    large, small = ([row["flops"]["vision"] for row in rows["rows"]] for rows in found)
    assert len(large) == len(small) == 2
    assert large[0] > 2 * small[0]
