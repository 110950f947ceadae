"""benchmarks/fidelity.py, and what eval_demo.py makes of answers that are not all there."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

import tests.kit.bench  # noqa: F401
from tests.kit import engine_dirs
from trtprune import pruning
from trtprune.eval.store import Record, Store

import eval_demo  # isort: skip
import fidelity  # isort: skip
import tables  # isort: skip


def test_overlap_of_kept_sets() -> None:
    found = fidelity.overlap([([1, 2, 3, 4], [4, 3, 2, 1]), ([1, 2, 3, 4], [1, 2, 8, 9])])
    assert found == {"cases": 2, "equal": 1, "shared": 0.75, "least": 0.5}


def test_vispruner_in_float64_is_the_reference_where_nothing_is_rounded() -> None:
    """Features whose cosines are far apart: what decides is the rule, not the type."""
    rng = np.random.default_rng(4)
    features = rng.standard_normal((64, 3)).astype(np.float32)
    attention = rng.permutation(64).astype(np.float32) / 64
    given = {"cls_attention": attention, "vision_features": features}
    for keep in (8, 12, 32):
        reference = pruning.get("vispruner").reference(features, keep=keep, **given)
        assert fidelity.vispruner64(given, keep).tolist() == reference.tolist()


def test_official_forms_stand_behind_their_methods() -> None:
    (before, keeps), _ = eval_demo.asked()
    place = before.index("adafv")
    assert before[place + 1] == "adafv:mode=official"
    assert keeps == (192, 128, 64, 32, 16)
    assert pruning.get("adafv").validate_options()["mode"] == "distinct"


def test_a_row_of_fewer_questions_replaces_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_demo, "RESULTS", tmp_path)

    def row(method: str, keep: int, n: int) -> dict[str, object]:
        return {"set": "all", "method": method, "keep": keep, "n": n}

    before = [row("none", 576, 2000), row("adafv", 64, 2000), row("adafv mode=official", 64, 10)]
    (tmp_path / "eval-x.json").write_text(json.dumps({"rows": before}))
    fresh = [row("none", 576, 50), row("adafv mode=official", 64, 50), row("adafv mode=official", 16, 50)]
    assert eval_demo.fuller("x", fresh) == [before[0], before[1], fresh[1], fresh[2]]


def test_forms_are_compared_question_by_question(tmp_path: Path) -> None:
    rows = {row.id: row for row in eval_demo.load_data("scenes", limit=12, seed=0).rows}
    right = {"adafv": [1, 1, 1, 0, 1, 0], "adafv mode=official": [1, 0, 0, 0, 1, 1]}
    with Store(tmp_path / "scenes" / "results.jsonl", {}) as store:
        for method, marks in right.items():
            for key, mark in zip(rows, marks, strict=False):
                store.add(Record(key, method, 64, "", float(mark), 64.0, 576))
    marks = eval_demo.marks_of(tmp_path, "scenes")
    found = eval_demo.compared("scenes", rows, marks, 64, "adafv mode=official", "adafv", "all")
    assert (found["n"], found["better"], found["worse"]) == (6, 1, 2)
    assert found["difference"] == pytest.approx(-1 / 6)
    kept = {}
    eval_demo.keep_fuller(kept, found)
    eval_demo.keep_fuller(kept, eval_demo.compared("scenes", rows, marks, 32, "adafv mode=official", "adafv", "all"))
    eval_demo.keep_fuller(kept, found | {"n": 5, "difference": 0.0})
    assert list(kept.values()) == [found]


def test_deviations_name_the_schedule_that_is_published_nowhere() -> None:
    """``first=2`` of 30: two layers read all 576, then nine, ten and nine layers r, r² and r³ of them."""
    text = tables.deviations()
    ratio = 74 / 576
    assert f"576 → 74 → {int(576 * ratio**2)} → {max(1, int(576 * ratio**3))} at 64" in text
    layers = [576] * 2 + [74] * 9 + [int(576 * ratio**2)] * 10 + [1] * 9
    assert len(layers) == 30
    assert sum(layers) / 30 == pytest.approx(64, abs=0.5)
    assert "published nowhere" in text


def test_published_answers_are_counted_with_another_build(tmp_path: Path) -> None:
    """What was answered stays what it was; whose answers they are is said."""
    made = engine_dirs.make(tmp_path / "out")
    packed = eval_demo.RESULTS / "answers-easy-vqa.jsonl.xz"
    head, *lines = lzma.decompress(packed.read_bytes()).splitlines()
    gave = json.loads(head)["fingerprint"]["engine"]
    assert eval_demo.gave_published("easy-vqa") == gave != made.build_digest
    for so_far, engine in ((True, made.build_digest), (False, gave)):
        folder = tmp_path / str(so_far)
        eval_demo.begin_with_published(tmp_path / "out", folder, "easy-vqa", so_far)
        first, *rest = (folder / "easy-vqa" / "results.jsonl").read_bytes().splitlines()
        assert json.loads(first)["fingerprint"] == json.loads(head)["fingerprint"] | {"engine": engine}
        assert rest == lines
