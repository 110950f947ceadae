"""What the tests of ``trtprune eval`` share: answers without a model, and a process that gives them until it is killed.

Run as ``python -m tests.kit.eval_kit FILE ROWS`` it answers questions into a file, as fast as it can.
"""

from __future__ import annotations

import contextlib
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trtprune.eval.planning import MethodBudget, Subject, subjects
from trtprune.eval.rows import DataSet, Row, digest_of
from trtprune.eval.runner import run
from trtprune.eval.store import Store
from trtprune.runtime import Result
from trtprune.variants import Variant

VISUAL = 16
FINGERPRINT = {"engine": "e", "data": "d", "seed": 0}
POINTS = [
    MethodBudget(Variant.make("none"), VISUAL, "none"),
    MethodBudget(Variant.make("fastervlm"), 4, "fastervlm"),
]


def result(text: str, kept: float, finish: str = "stop") -> Result:
    """An answer that no model gave."""
    whole = int(kept)
    return Result(text, [2], finish, "stub", VISUAL, whole, [list(range(whole))], {}, 0.0, 0, tokens_per_layer=kept)


class Planted:
    """Says what ``say(point, subject, question)`` says, and counts."""

    def __init__(self, say: Any) -> None:
        self.say = say
        self.calls: list[tuple[str, int, str]] = []
        self.opened: list[list[str]] = []

    @contextlib.contextmanager
    def open(self, points: Sequence[MethodBudget]) -> Iterator[Planted]:
        self.opened.append([f"{point.label} {point.keep}" for point in points])
        yield self

    def ask(self, points: Sequence[MethodBudget], subject: Subject, question: str) -> list[Result]:
        found = []
        for point in points:
            self.calls.append((point.label, point.keep, question))
            said = self.say(point, subject, question)
            found.append(said if isinstance(said, Result) else result(said, point.keep))
        return found


def rows(count: int, pictures: int = 0, groups: Sequence[str] = ("",)) -> list[Row]:
    """Questions whose right answer is "yes", about pictures that nobody opens."""
    pictures = pictures or count
    return [
        Row(f"q{i}", Path(f"p{i % pictures}.png"), f"question {i} ?", ("yes",), groups[i % len(groups)])
        for i in range(count)
    ]


def data_of(questions: Sequence[Row], metric: str = "exact") -> DataSet:
    return DataSet("planted", tuple(questions), (), metric, digest_of(questions, metric))


def answer_into(path: Path, count: int) -> None:
    """Two runs over ``count`` questions; each question's answer is a function of run and question."""

    def say(point: MethodBudget, subject: Subject, question: str) -> str:
        return f"{zlib.crc32(f'{point.label} {question}'.encode())} é\n\u2028"

    with Store(path, FINGERPRINT) as store:
        asked = subjects(rows(count, max(1, count // 3)), controls=False, seed=0)
        run(POINTS, asked, store, Planted(say).open, ask=lambda row: row.question, metric=lambda row: "exact")


if __name__ == "__main__":
    answer_into(Path(sys.argv[1]), int(sys.argv[2]))
