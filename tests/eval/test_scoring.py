"""Marks against the sets' own scripts: vectors they gave, and their formulas written out from the papers."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtprune.eval import scoring
from trtprune.eval.rows import Row
from trtprune.eval.scoring import letter, normalise, normalise_textvqa, score, soft_accuracy, yes_no, yes_no_report

# What vqaEval.py (GT-Vision-Lab/VQA) and EvalAIAnswerProcessor (Pythia, as in lmms-eval 0.7.3) returned for these
# texts and answers when they were run on them.
VECTORS = [json.loads(line) for line in Path(__file__).with_name("eval_vectors.jsonl").read_text().splitlines()]


def row(*answers: str, **more: Any) -> Row:
    return Row("1", Path("a.png"), "what?", answers, **more)


def test_normalisation_is_that_of_the_scripts() -> None:
    texts = [vector for vector in VECTORS if "text" in vector]
    assert len(texts) > 300
    for vector in texts:
        assert normalise(vector["text"]) == vector["vqa"], vector
        assert normalise_textvqa(vector["text"]) == vector["textvqa"], vector


def test_soft_accuracy_is_that_of_the_script() -> None:
    marked = [vector for vector in VECTORS if "answers" in vector]
    assert len({vector["score"] for vector in marked}) == 5  # 0, 0.3, 0.6, 0.9, 1
    for vector in marked:
        assert score(row(*vector["answers"]), vector["answer"], "vqa") == pytest.approx(vector["score"], abs=1e-9)


@given(st.text("ab", min_size=1, max_size=12), st.sampled_from("ab"))
def test_soft_accuracy_leaves_one_out(people: str, said: str) -> None:
    # The sum as the VQA page defines it, in exact arithmetic.
    others = [[p for j, p in enumerate(people) if j != i] for i in range(len(people))]
    mean = sum(min(Fraction(1), Fraction(rest.count(said), 3)) for rest in others) / len(people)
    assert soft_accuracy(said, list(people)) == pytest.approx(float(mean), abs=1e-12)


@pytest.mark.parametrize(("count", "mark"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy_of_ten(count: int, mark: float) -> None:
    assert soft_accuracy("cat", ["cat"] * count + ["dog"] * (10 - count)) == pytest.approx(mark)


def test_unanimous_people_are_normalised_too() -> None:
    # vqaEval.py compares unanimous answers letter for letter; LLaVA and lmms-eval normalise before, and so do we.
    assert score(row(*["yes"] * 10), "Yes.", "vqa") == 1


def test_normalisation_is_idempotent_on_words_and_never_raises() -> None:
    rng = random.Random(3)
    for _ in range(500):
        text = "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x20, 0x3000)])) for _ in range(12))
        assert normalise(text) == " ".join(normalise(text).split())
        normalise_textvqa(text)


def test_exact() -> None:
    assert score(row("two"), "2", "exact") == 1
    assert score(row("a red star", "star"), "The star.", "exact") == 1
    assert score(row("circle"), "square", "exact") == 0
    # Articles alone normalise to nothing; they must not all be equal then.
    assert score(row("a"), "the", "exact") == 0
    assert score(row("A"), "a", "exact") == 1
    assert score(row("circle"), "", "exact") == 0


def test_gqa() -> None:
    assert score(row("t-shirt"), "T-shirt.", "gqa") == 1
    assert score(row("man"), "the man", "gqa") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("No", "no"),
        ("no, there is none", "no"),
        ("Yes. There is no dog", "yes"),
        ("There is not one", "no"),
        ("NO", "yes"),  # as the script has it: only these spellings count
        ("nothing", "yes"),
        ("", "yes"),
        ("No.", "no"),
    ],
)
def test_yes_no(text: str, said: str) -> None:
    assert yes_no(text) == said


def test_pope_figures() -> None:
    # 3 hits, 1 false alarm, 4 right rejections, 2 misses.
    pairs = [("Yes", "yes")] * 3 + [("Yes", "no")] + [("No", "no")] * 4 + [("No", "yes")] * 2
    report = yes_no_report(pairs)
    assert (report.accuracy, report.precision, report.recall) == pytest.approx((0.7, 0.75, 0.6))
    assert report.f1 == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert report.yes_ratio == pytest.approx(0.4)
    assert score(row("yes"), "Yes, there is.", "pope") == 1
    assert score(row("No"), "Yes", "pope") == 0
    assert yes_no_report([]).accuracy == 0
    assert yes_no_report([("No", "yes")]).precision == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        ("B. a plant", "B"),
        ("B.", "B"),
        ("b", "B"),
        (" C\n", "C"),
        ("The answer is C.", "C"),
        ("I think. The answer is C because", "C"),
        ("A\nbecause", "A"),
        ("D", None),  # three choices only
        ("The answer is D. No: The answer is B.", None),  # the script reads D, then finds no such choice
        ("Because B", None),
        ("(B)", None),
        ("", None),
        ("b.", None),
        ("1", None),
    ],
)
def test_letter(text: str, found: str | None) -> None:
    assert letter(text, 3) == found
    if found:
        assert score(row(found, choices=("x", "y", "z")), text, "letter") == 1
        wrong = "A" if found != "A" else "B"
        assert score(row(wrong, choices=("x", "y", "z")), text, "letter") == 0


def test_a_rows_own_metric_goes_first() -> None:
    assert score(row("yes", metric="pope"), "Yes, there is a dog", "exact") == 1
    with pytest.raises(ValueError, match="none of exact"):
        score(row("yes"), "yes", "bleu")
    assert set(scoring.METRICS) == {"exact", "vqa", "textvqa", "gqa", "pope", "letter"}
