"""From marks to figures: accuracy with its interval, and the questions that pruning broke and repaired."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trtprune.errors import BudgetError, InputError
from trtprune.eval.planning import CONTROLS, UNPRUNED, MethodBudget
from trtprune.eval.rows import DataSet, Row
from trtprune.eval.scoring import yes_no_report
from trtprune.eval.store import Record, Store
from trtprune.reports.statistics import interval, paired

__all__ = ["ALL", "Evaluation", "Example", "Figure", "evaluate_marks", "write_files"]

ALL = "all"
"""The set of all rows, beside the groups."""
EXAMPLES = 5
"""Number of examples of each kind in the report's JSON, in the data's order."""


@dataclass(frozen=True)
class Example:
    """A question whose mark the pruning changed."""

    id: str
    question: str
    answers: tuple[str, ...]
    unpruned: str
    pruned: str


@dataclass(frozen=True)
class Figure:
    """A method at a budget, on one set.

    Attributes:
        method, keep: Which; "none" is the unpruned run.
        set: A group of the data, or "all".
        n: Number of questions that both it and the unpruned run answered.
        pictures: Number of different images of these; intervals treat questions about one image as dependent.
        accuracy, low, high: Mean mark and its 95 % interval: Wilson's, or the bootstrap's for soft marks.
        unpruned: Mean mark of the unpruned run on the same questions.
        mcnemar_p: Two-sided exact p of "as many broken as repaired"; for soft marks that is the sign test.
        broken, repaired: Numbers of questions with a lower and a higher mark than unpruned.
        change, change_low, change_high: accuracy - unpruned and its 95 % paired interval.
        kept: Visual tokens per layer, on average over layers and questions.
        visual: Visual tokens of an image, on average over the questions.
        cut: Number of answers that --max-new-tokens ended.
        controls: Mean mark with a wrong and a grey image, if asked.
        yes_no: If every question has metric pope: precision, recall and F1 of the answer yes, and its frequency
            (yes_ratio); see :class:`trtprune.eval.scoring.YesNo`.
        broken_examples, repaired_examples: The first few.
    """

    method: str
    keep: int
    set: str
    n: int
    pictures: int
    accuracy: float
    low: float
    high: float
    unpruned: float
    mcnemar_p: float
    broken: int
    repaired: int
    change: float
    change_low: float
    change_high: float
    kept: float
    visual: float
    cut: int
    controls: dict[str, float] = field(default_factory=dict)
    yes_no: dict[str, float] = field(default_factory=dict)
    broken_examples: tuple[Example, ...] = ()
    repaired_examples: tuple[Example, ...] = ()

    @property
    def share(self) -> float:
        """Fraction of the visual tokens that was kept."""
        return self.kept / self.visual


@dataclass(frozen=True)
class Evaluation:
    """The result of ``trtprune eval``.

    Attributes:
        command: The command line; empty from Python.
        engine: Model and build.
        data: Name, digest, counts and metric of the questions, with the rejected ones and the reasons.
        settings: Settings of the answers.
        figures: The unpruned run first in each set.
        notes: Notes for the reader.
    """

    command: str
    engine: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets with figures."""
        return tuple(dict.fromkeys(figure.set for figure in self.figures))

    def to_json(self) -> dict[str, Any]:
        """The data of ``--json`` and report.json."""
        rows = [asdict(figure) | {"share": figure.share} for figure in self.figures]
        return {
            "schema": 1,
            "command": self.command,
            "engine": dict(self.engine),
            "data": dict(self.data),
            "settings": dict(self.settings),
            "rows": rows,
            "notes": list(self.notes),
        }


def evaluate_marks(
    store: Store,
    data: DataSet,
    points: Sequence[MethodBudget],
    *,
    seed: int = 0,
    unread: Mapping[str, str] | None = None,
) -> tuple[list[Figure], list[str]]:
    """The figures of all points on all sets, with notes.

    Args:
        store: The answers; rows without answers of both runs of a pair do not count.
        data: The questions.
        points: The unpruned run and others.
        seed: Seed of the bootstrap.
        unread: Reasons by id for rows that could not be asked.

    Raises:
        BudgetError: if none of the runs dropped a single token of any picture.
        InputError: if nothing was answered.
    """
    notes, pruned = [], []
    base, others = points[0], points[1:]
    for point in others:
        marks = [r for row in data.rows if (r := store.get((row.id, point.label, point.keep, "")))]
        if marks and all(record.kept >= record.visual for record in marks):
            notes.append(f"{point.label} at {point.keep} dropped no token of any picture: not reported")
        else:
            pruned.append(point)
    if not pruned:
        keeps = ",".join(str(point.keep) for point in others)
        raise BudgetError(
            f"--keep {keeps}: no token was dropped from any picture; nothing is reported", hint="a smaller --keep"
        )
    groups = {name: [row for row in data.rows if row.group == name] for name in data.groups}
    sets = {**(groups if len(groups) > 1 else {}), ALL: list(data.rows)}
    if len(groups) == 1 and all(row.group for row in data.rows):
        sets = groups
    figures = [
        figure
        for name, rows in sets.items()
        for point in (base, *pruned)
        if (figure := _figure(store, data, name, rows, base, point, seed)) is not None
    ]
    if not figures:
        if unread:
            key, reason = next(iter(unread.items()))
            raise InputError(
                f"nothing was answered: no picture of {len(unread)} questions could be read, first {key}: {reason}",
                hint="image in each row names its picture, from where the file of questions lies",
            )
        raise InputError("nothing was answered: there is nothing to report", hint="ask the questions without --so-far")
    cut = max(figures, key=lambda figure: figure.cut / figure.n)
    if cut.cut:
        notes.append(f"up to {100 * cut.cut / cut.n:.1f} % of a run's answers were ended by --max-new-tokens")
    return figures, notes


def _figure(
    store: Store, data: DataSet, name: str, rows: Sequence[Row], base: MethodBudget, point: MethodBudget, seed: int
) -> Figure | None:
    pairs: list[tuple[Row, Record, Record]] = []
    for row in rows:
        before = store.get((row.id, UNPRUNED, base.keep, ""))
        after = store.get((row.id, point.label, point.keep, ""))
        if before is not None and after is not None:
            pairs.append((row, before, after))
    if not pairs:
        return None
    before_marks, marks = [b.score for _, b, _ in pairs], [a.score for _, _, a in pairs]
    pictures = [row.picture_key for row, _, _ in pairs]
    low, high = interval(marks, seed=seed, clusters=pictures)
    change = paired(before_marks, marks, seed=seed, clusters=pictures)
    controls = {}
    for control in CONTROLS:
        found = [r.score for row in rows if (r := store.get((row.id, point.label, point.keep, control)))]
        if found:
            controls[control] = sum(found) / len(found)
    yes_no: dict[str, float] = {}
    if all(data.metric_of(row) == "pope" for row, _, _ in pairs):
        yes_no = asdict(yes_no_report((after.answer, row.answers[0].strip().lower()) for row, _, after in pairs))
        del yes_no["accuracy"]
    return Figure(
        method=point.label,
        keep=point.keep,
        set=name,
        n=len(pairs),
        pictures=len(set(pictures)),
        accuracy=sum(marks) / len(marks),
        low=low,
        high=high,
        unpruned=sum(before_marks) / len(marks),
        mcnemar_p=change.p,
        broken=change.broken,
        repaired=change.repaired,
        change=change.difference,
        change_low=change.low,
        change_high=change.high,
        kept=sum(a.kept for _, _, a in pairs) / len(pairs),
        visual=_mean([a.visual for _, _, a in pairs]),
        cut=sum(a.finish == "length" for _, _, a in pairs),
        controls=controls,
        yes_no=yes_no,
        broken_examples=_examples(pairs, -1),
        repaired_examples=_examples(pairs, 1),
    )


def _mean(counts: Sequence[int]) -> float:
    """The mean; of equal counts that whole number."""
    return counts[0] if len(set(counts)) == 1 else sum(counts) / len(counts)


def _examples(pairs: Sequence[tuple[Row, Record, Record]], sign: int) -> tuple[Example, ...]:
    found = (
        Example(row.id, row.question, row.answers, before.answer, after.answer)
        for row, before, after in pairs
        if sign * (after.score - before.score) > 0
    )
    return tuple(example for example, _ in zip(found, range(EXAMPLES), strict=False))


COLUMNS = (
    "set", "method", "keep", "kept", "share", "n", "pictures", "accuracy", "low", "high", "unpruned", "change",
    "change_low", "change_high", "mcnemar_p", "broken", "repaired", "cut", "wrong", "grey",
    "precision", "recall", "f1", "yes_ratio",
)  # fmt: skip


def write_files(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Writes report.json and report.csv.

    Raises:
        InputError: if they cannot be written.
    """
    as_json, as_csv = folder / "report.json", folder / "report.csv"
    rows = evaluation.to_json()
    try:
        _replace(as_json, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        with (folder / "report.csv.part").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | row["controls"] | row["yes_no"] for row in rows["rows"])
        (folder / "report.csv.part").replace(as_csv)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}", hint="choose another -o") from None
    return [as_json, as_csv]


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    part.replace(path)
