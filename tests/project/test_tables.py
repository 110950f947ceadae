"""Tables in README and docs are what the committed results say."""

from __future__ import annotations

import importlib.util
import json
import lzma
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trtprune.eval.loaders import load_data
from trtprune.eval.scoring import score

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("doc_tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documents_say_what_was_measured(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 0
    found = [m[2] for name in tables.DOCUMENTS for m in tables.MARK.finditer((ROOT / name).read_text())]
    assert sorted(found) == sorted(tables.TABLES), "every table stands in one document"


def test_a_changed_figure_is_noticed(
    tables: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "doc.md"
    document.write_text("before\n<!-- table pruners -->\n| typed | 1.0 |\n<!-- end -->\nafter\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "DOCUMENTS", ("doc.md",))
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 1
    assert "doc.md" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    assert tables.main() == 0
    text = document.read_text()
    rows = json.loads((ROOT / "benchmarks/results/pruners.json").read_text())["rows"]
    first = rows[0]
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "typed" not in text
    assert f"{first['ms']['median']:.1f} ms, {100 * first['share_of_prefill']:.1f} %" in text


@pytest.mark.parametrize("name", ["easy-vqa", "signs"])
def test_published_answers_are_behind_the_results(name: str) -> None:
    """Accuracies of a set, counted from its answers with nothing of the report's code."""
    results = ROOT / "benchmarks" / "results"
    report = json.loads((results / f"eval-{name}.json").read_text())
    questions = {row.id: row for row in load_data(name, limit=2000, seed=0).rows}
    lines = lzma.decompress((results / f"answers-{name}.jsonl.xz").read_bytes()).decode().splitlines()
    marks: dict[tuple[str, int], dict[str, float]] = {}
    for line in map(json.loads, lines[1:]):
        assert line["score"] == score(questions[line["id"]], line["answer"], "exact")
        marks.setdefault((line["method"], line["keep"]), {})[line["id"]] = line["score"]
    unpruned = marks["none", 576]
    for row in report["rows"]:
        mine = marks[row["method"], row["keep"]]
        ids = [i for i in mine if i in unpruned and row["set"] in ("all", questions[i].group)]
        assert row["n"] == len(ids)
        assert row["accuracy"] == pytest.approx(sum(mine[i] for i in ids) / len(ids), abs=1e-12)
        if row["method"] != "none":
            assert row["broken"] == sum(mine[i] < unpruned[i] for i in ids)
            assert row["repaired"] == sum(mine[i] > unpruned[i] for i in ids)


@pytest.mark.parametrize("name", ["scenes", "easy-vqa", "signs"])
def test_official_forms_are_compared_on_the_committed_answers(name: str) -> None:
    """Differences between the authors' form of a method and ours, counted again from the answers."""
    results = ROOT / "benchmarks" / "results"
    rows = [row for row in json.loads((results / "claim.json").read_text())["forms"] if row["data"] == name]
    questions = {row.id: row for row in load_data(name, limit=2000, seed=0).rows}
    marks: dict[tuple[str, int], dict[str, float]] = {}
    for line in map(json.loads, lzma.decompress((results / f"answers-{name}.jsonl.xz").read_bytes()).splitlines()[1:]):
        marks.setdefault((line["method"], line["keep"]), {})[line["id"]] = line["score"]
        if name == "scenes":  # those of the other sets are marked again above
            assert line["score"] == score(questions[line["id"]], line["answer"], "exact")
    for row in rows:
        mine, theirs = marks[row["text_aware"], row["keep"]], marks[row["saliency"], row["keep"]]
        ids = [i for i in mine if i in theirs and row["set"] in ("all", questions[i].group)]
        assert row["n"] == len(ids)
        assert row["better"] == sum(mine[i] > theirs[i] for i in ids)
        assert row["worse"] == sum(mine[i] < theirs[i] for i in ids)
        assert row["difference"] == pytest.approx((sum(mine[i] - theirs[i] for i in ids)) / len(ids), abs=1e-12)
