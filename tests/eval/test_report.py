"""The figures of ``trtprune eval``, from planted answers, beside sums written out here; its files and its picture."""

from __future__ import annotations

import csv
import json
import math
import random
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from tests.kit import eval_kit as kit
from trtprune import pruning
from trtprune.errors import BackendError, BudgetError
from trtprune.eval.planning import MethodBudget, subjects
from trtprune.eval.plot import draw_accuracy
from trtprune.eval.progress import Meter
from trtprune.eval.report import Evaluation, Figure, evaluate_marks, write_files
from trtprune.eval.rows import DataSet, Row
from trtprune.eval.runner import run
from trtprune.eval.store import Store
from trtprune.eval.table import describe_examples, show_evaluation
from trtprune.reports.figures import styles_of
from trtprune.variants import Variant

POINTS = [kit.POINTS[0], *(MethodBudget(Variant.make(m), k, m) for m in ("adafv", "random") for k in (8, 4))]
Right = Callable[[str, int, int, str], bool]
"""Whether a run (label, budget) answers question number n rightly, with its own picture or a control's."""


def answered(path: Path, right: Right, questions: list[Row], *, controls: bool = False) -> tuple[Store, DataSet]:
    data = kit.data_of(questions)

    def say(point: MethodBudget, subject: Any, question: str) -> str:
        number = int(question.split()[1])
        if subject.source is None:
            control = "grey"
        else:
            control = "" if subject.source.image == questions[number].image else "wrong"
        return "Yes." if right(point.label, point.keep, number, control) else "no"

    store = Store(path, {})
    asked = subjects(questions, controls=controls, seed=0)
    run(POINTS, asked, store, kit.Planted(say).open, ask=lambda row: row.question, metric=data.metric_of)
    return store, data


def pick(figures: list[Figure], method: str, keep: int, name: str = "all") -> Figure:
    (found,) = [f for f in figures if (f.method, f.keep, f.set) == (method, keep, name)]
    return found


def as_evaluation(figures: list[Figure], notes: list[str] | None = None) -> Evaluation:
    engine = {"model": "tiny", "digest": "sha256:0", "build_digest": "1"}
    facts = {"name": "planted", "digest": "2", "rows": figures[0].n, "metric": "exact"}
    return Evaluation("trtprune eval out", engine, facts, {"seed": 0}, tuple(figures), tuple(notes or ()))


def coins(b: int, c: int) -> float:
    """Both tails of b of b + c fair coins: every outcome no likelier than this one, added up in fractions."""
    n = b + c
    return float(Fraction(sum(math.comb(n, k) for k in range(n + 1) if math.comb(n, k) <= math.comb(n, b)), 2**n))


def score_interval(right: int, n: int) -> tuple[float, float]:
    """The proportions q that the score test does not reject: roots of (p - q)^2 = z^2 q (1 - q) / n."""
    z, p = 1.959963984540054, right / n
    low, high = sorted(np.roots([1 + z * z / n, -2 * p - z * z / n, p * p]).real)
    return float(low), float(high)


def test_figures_are_those_of_a_table_counted_by_hand(tmp_path: Path) -> None:
    """300 questions; 240 right unpruned; adafv at 4 loses the first 30 of them and gains the last 8."""

    def right(label: str, keep: int, n: int, control: str) -> bool:
        if (label, keep) == ("adafv", 4):
            return 30 <= n < 240 or n >= 292
        return n < 240

    store, data = answered(tmp_path / "a.jsonl", right, kit.rows(300, 100))
    figures, notes = evaluate_marks(store, data, POINTS)
    assert [(f.method, f.keep, f.set) for f in figures] == [
        ("none", 16, "all"), ("adafv", 8, "all"), ("adafv", 4, "all"), ("random", 8, "all"), ("random", 4, "all"),
    ]  # fmt: skip
    assert notes == []
    lost = pick(figures, "adafv", 4)
    assert (lost.n, lost.broken, lost.repaired) == (300, 30, 8)
    assert lost.accuracy == pytest.approx(218 / 300)
    assert lost.unpruned == pytest.approx(240 / 300)
    assert lost.change == pytest.approx(-22 / 300)
    assert (lost.low, lost.high) == pytest.approx(score_interval(218, 300))
    assert lost.mcnemar_p == pytest.approx(coins(30, 8))
    assert lost.mcnemar_p < 0.001
    # The paired interval: of 300 differences, 30 are -1, 8 are +1; its normal approximation is near enough.
    spread = 1.96 * math.sqrt((38 / 300 - (22 / 300) ** 2) / 300)
    assert lost.change_low == pytest.approx(-22 / 300 - spread, abs=0.008)
    assert lost.change_high == pytest.approx(-22 / 300 + spread, abs=0.008)
    assert (lost.kept, lost.share, lost.cut) == (4, 0.25, 0)
    assert [e.id for e in lost.broken_examples] == [f"q{i}" for i in range(5)]
    assert [e.id for e in lost.repaired_examples] == [f"q{i}" for i in range(292, 297)]
    assert (lost.broken_examples[0].unpruned, lost.broken_examples[0].pruned) == ("Yes.", "no")
    same = pick(figures, "random", 4)
    assert (same.broken, same.repaired, same.mcnemar_p, same.change) == (0, 0, 1.0, 0.0)
    store.close()


def test_sets_and_controls(tmp_path: Path) -> None:
    """Of two groups and together; with a wrong picture every third answer is right, with a grey one every fifth."""

    def right(label: str, keep: int, n: int, control: str) -> bool:
        return {"wrong": n % 3 == 0, "grey": n % 5 == 0}.get(control, keep > 4 or n % 2 == 0)

    store, data = answered(tmp_path / "a.jsonl", right, kit.rows(60, 20, ("b", "a")), controls=True)
    figures, _ = evaluate_marks(store, data, POINTS)
    assert list(dict.fromkeys(f.set for f in figures)) == ["b", "a", "all"]
    assert [f.n for f in figures if f.method == "none"] == [30, 30, 60]
    assert pick(figures, "adafv", 4, "b").accuracy == 1.0  # group b is the even questions
    assert pick(figures, "adafv", 4, "a").accuracy == 0.0
    assert pick(figures, "adafv", 4, "a").broken == 30
    for figure in figures:
        numbers = [n for n in range(60) if figure.set in ("all", "ba"[n % 2])]
        assert figure.controls["wrong"] == pytest.approx(sum(n % 3 == 0 for n in numbers) / figure.n)
        assert figure.controls["grey"] == pytest.approx(sum(n % 5 == 0 for n in numbers) / figure.n)
    store.close()


def test_soft_marks(tmp_path: Path) -> None:
    """Ten people, of whom two said yes: 0.6 by the VQA rule; the interval is no longer a proportion's."""
    questions = [Row(f"q{i}", Path(f"{i}.png"), f"question {i} ?", ("yes",) * 2 + ("no",) * 8) for i in range(50)]
    data = kit.data_of(questions, "vqa")
    store = Store(tmp_path / "a.jsonl", {})

    def say(point: MethodBudget, subject: Any, question: str) -> str:
        return "no" if point.label == "none" or int(question.split()[1]) < 20 else "yes"

    asked = subjects(questions, controls=False, seed=0)
    run(POINTS[:2], asked, store, kit.Planted(say).open, ask=lambda row: row.question, metric=data.metric_of)
    figures, _ = evaluate_marks(store, data, POINTS[:2])
    soft = pick(figures, "adafv", 8)
    assert soft.unpruned == 1.0
    assert soft.accuracy == pytest.approx((20 + 30 * 0.6) / 50)
    assert (soft.broken, soft.repaired) == (30, 0)
    assert soft.mcnemar_p == pytest.approx(coins(30, 0))
    deviation = math.sqrt((20 * (1 - 0.76) ** 2 + 30 * (0.6 - 0.76) ** 2) / 50 / 50)
    assert soft.low == pytest.approx(0.76 - 1.96 * deviation, abs=0.01)
    assert soft.high == pytest.approx(0.76 + 1.96 * deviation, abs=0.01)
    store.close()


def test_yes_and_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """POPE's figures, of each part and of all; 40 questions, of which every fourth is to be answered with no."""
    questions = [
        Row(f"q{i}", Path(f"{i}.png"), f"question {i} ?", ("no" if i % 4 == 0 else "yes",), "ab"[i % 2])
        for i in range(40)
    ]
    data = kit.data_of(questions, "pope")
    store = Store(tmp_path / "a.jsonl", {})

    def say(point: MethodBudget, subject: Any, question: str) -> str:
        number = int(question.split()[1])
        return ("No", "Yes, there is.")[number % 4 != 0 if point.label == "none" else number % 8 != 1]

    asked = subjects(questions, controls=False, seed=0)
    run(POINTS[:2], asked, store, kit.Planted(say).open, ask=lambda row: row.question, metric=data.metric_of)
    figures, notes = evaluate_marks(store, data, POINTS[:2])
    assert pick(figures, "none", 16).yes_no == {"precision": 1, "recall": 1, "f1": 1, "yes_ratio": 0.75}
    # Pruned, it says no to 1, 9, 17, 25 and 33 only: 25 hits, 10 false alarms, 5 misses.
    lost = pick(figures, "adafv", 8)
    assert lost.accuracy == 25 / 40
    wanted = {"precision": 25 / 35, "recall": 25 / 30, "f1": 2 * 25 / (2 * 25 + 10 + 5), "yes_ratio": 35 / 40}
    assert lost.yes_no == pytest.approx(wanted)
    # Part b, of the odd questions, has no question to be answered with no: precision is 1, five are missed.
    assert pick(figures, "adafv", 8, "b").yes_no == pytest.approx(
        {"precision": 1, "recall": 0.75, "f1": 1.5 / 1.75, "yes_ratio": 0.75}
    )
    _, table = write_files(as_evaluation(figures, notes), tmp_path)
    with table.open(newline="") as stream:
        last = list(csv.DictReader(stream))[-1]
    assert {name: float(last[name]) for name in wanted} == pytest.approx(wanted)
    show_evaluation(as_evaluation(figures, notes))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[-3:] == ["F1", "says", "yes"]
    assert lines[-1].split()[-2:] == ["76.9", "87.5"]

    # A set with other questions in it has no such figures.
    data = kit.data_of([*questions, Row("q40", Path("40.png"), "question 40 ?", ("yes",), "b", metric="exact")], "pope")
    run(POINTS[:2], subjects(data.rows, controls=False, seed=0), store, kit.Planted(say).open,
        ask=lambda row: row.question, metric=data.metric_of)  # fmt: skip
    figures, notes = evaluate_marks(store, data, POINTS[:2])
    assert pick(figures, "adafv", 8).yes_no == pick(figures, "adafv", 8, "b").yes_no == {}
    assert pick(figures, "adafv", 8, "a").yes_no
    assert write_files(as_evaluation(figures, notes), tmp_path)
    store.close()


def test_only_questions_both_runs_answered_count(tmp_path: Path) -> None:
    store, data = answered(tmp_path / "a.jsonl", lambda *_: True, kit.rows(10))
    store.close()
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    kept = [
        line for line in lines if not ('"q3"' in line and '"none"' in line) and '"q5", "method": "random"' not in line
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(kept) + "\n")
    with Store(tmp_path / "a.jsonl", {}) as again:
        figures, _ = evaluate_marks(again, data, POINTS)
    assert [(f.method, f.n) for f in figures] == [
        ("none", 9), ("adafv", 9), ("adafv", 9), ("random", 8), ("random", 8),
    ]  # fmt: skip


def test_nothing_pruned_is_nothing_to_report(tmp_path: Path) -> None:
    """A budget says what shall be kept; whether anything was dropped, only the answers do."""
    data = kit.data_of(kit.rows(5))
    for kept, reported in ((16.0, False), (15.9, True)):
        with Store(tmp_path / f"{kept}.jsonl", {}) as store:

            def say(point: MethodBudget, subject: Any, question: str, kept: float = kept) -> Any:
                return kit.result("yes", kept if (point.label, point.keep) == ("adafv", 8) else 16.0)

            asked = subjects(data.rows, controls=False, seed=0)
            run(POINTS, asked, store, kit.Planted(say).open, ask=lambda row: row.question, metric=data.metric_of)
            if reported:
                figures, notes = evaluate_marks(store, data, POINTS)
                assert [f.method for f in figures] == ["none", "adafv"]
                assert len(notes) == 3
                assert all("dropped no token" in note for note in notes)
            else:
                with pytest.raises(BudgetError, match=r"--keep 8,4,8,4: no token was dropped") as caught:
                    evaluate_marks(store, data, POINTS)
                assert caught.value.hint == "a smaller --keep"


def test_answers_that_were_cut_off_are_said(tmp_path: Path) -> None:
    data = kit.data_of(kit.rows(8))
    with Store(tmp_path / "a.jsonl", {}) as store:

        def say(point: MethodBudget, subject: Any, question: str) -> Any:
            return kit.result("yes", point.keep, "length" if "question 1" in question and point.keep == 4 else "stop")

        asked = subjects(data.rows, controls=False, seed=0)
        run(POINTS, asked, store, kit.Planted(say).open, ask=lambda row: row.question, metric=data.metric_of)
        figures, notes = evaluate_marks(store, data, POINTS)
    assert pick(figures, "adafv", 4).cut == 1
    assert notes == ["up to 12.5 % of a run's answers were ended by --max-new-tokens"]


# -- files, table and picture


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    rng = random.Random(1)
    marks: dict[Any, bool] = {}

    def right(label: str, keep: int, n: int, control: str) -> bool:
        chance = {"wrong": 0.3, "grey": 0.25}.get(control, 0.7 if label == "random" else 0.85 if keep == 4 else 0.9)
        return marks.setdefault((label, keep, n, control), rng.random() < chance)

    store, data = answered(tmp_path / "a.jsonl", right, kit.rows(200, 50, ("small [b]", "large")), controls=True)
    with store:
        return as_evaluation(*evaluate_marks(store, data, POINTS))


def test_json_and_csv_say_the_same(evaluation: Evaluation, tmp_path: Path) -> None:
    written = write_files(evaluation, tmp_path)
    assert [path.name for path in written] == ["report.json", "report.csv"]
    report = json.loads(written[0].read_text())
    assert report["schema"] == 1
    assert report["engine"]["digest"] == "sha256:0"
    with written[1].open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == len(report["rows"]) == 15
    for line, row in zip(table, report["rows"], strict=True):
        assert (line["method"], line["set"], int(line["keep"])) == (row["method"], row["set"], row["keep"])
        for name in ("accuracy", "low", "high", "unpruned", "mcnemar_p", "change", "kept", "share"):
            assert float(line[name]) == row[name]
        assert float(line["wrong"]) == row["controls"]["wrong"]
        assert row["low"] <= row["accuracy"] <= row["high"]
    needed = {"method", "keep", "set", "n", "accuracy", "low", "high", "unpruned", "mcnemar_p", "broken", "repaired"}
    assert needed <= report["rows"][0].keys()
    assert not list(tmp_path.glob("*.part"))


def test_the_table(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    show_evaluation(evaluation)
    lines = capsys.readouterr().out.splitlines()
    assert all(word in lines[1] for word in ("set", "method", "kept", "broken", "interval", "of the change"))
    assert [line.split()[-2:] for line in (lines[0], lines[1])] == [["wrong", "grey"], ["picture", "picture"]]
    (line,) = [line for line in lines if line.startswith("small [b] (100)")]
    assert " none " in line
    small = next(f for f in evaluation.figures if (f.method, f.keep, f.set) == ("adafv", 4, "small [b]"))
    row = lines[lines.index(line) + 2]
    assert row.split()[:4] == ["adafv", "4", "25.0", "%"]
    assert f"{100 * small.accuracy:.1f}" in row
    assert f"{100 * small.change:+.1f}" in row
    assert "…" not in "".join(lines)
    assert sum(bool(line.strip()) for line in lines) == 17
    examples = describe_examples(evaluation)
    assert any(line.startswith("random 4, broken: q") and "unpruned 'Yes.', pruned 'no'" in line for line in examples)


def test_the_picture(evaluation: Evaluation, tmp_path: Path) -> None:
    draw_accuracy(evaluation, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        array = np.asarray(image.convert("RGB")).reshape(-1, 3)
    # Both methods' lines and the unpruned one are there, in their colours.
    styles = styles_of(sorted({f.method for f in evaluation.figures}), pruning.names())
    assert len(styles) == 3
    for style in styles.values():
        colour = 255 * np.array(to_rgb(style.color))
        assert (np.abs(array.astype(int) - colour).max(1) < 12).sum() > 200


def test_without_matplotlib(evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendError, match="matplotlib") as caught:
        draw_accuracy(evaluation, tmp_path / "a.png")
    assert caught.value.hint == "pip install 'trtprune[plot]'"


def test_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not caplog: whether it hears this logger once, twice or not at all depends on what ran before and on pytest.
    lines: list[str] = []
    monkeypatch.setattr("trtprune.eval.progress.logger.info", lambda text, *given: lines.append(text % given))
    now = [0.0]
    with Meter(1000, 400, clock=lambda: now[0], terminal=False) as meter:
        for _ in range(300):
            now[0] += 1.0
            meter.advance(1)
    assert len(lines) == 5
    assert lines[0] == "answers   460 of 1,000 (46.0 %), 1.0 a second, 9 min left"
    assert lines[4] == "answers   700 of 1,000 (70.0 %), 1.0 a second, 5 min left"
