"""Shares of an evaluation, so that several processes can answer it side by side, each into a file of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trtprune.errors import InputError

if TYPE_CHECKING:
    from trtprune.eval.planning import Subject

__all__ = ["ANSWERS", "Share", "answer_files", "answers_file"]

ANSWERS = "results.jsonl"
PARTS = re.compile(r"results-\d+of\d+\.jsonl")


@dataclass(frozen=True)
class Share:
    """One of ``of`` shares, the first is number 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """``2/4`` is the second of four.

        Raises:
            InputError: for anything else.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--part {text}: is no share of the work", hint="--part 1/2 and --part 2/2, for two")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def file(self) -> str:
        """Where its answers go, beside those of the others."""
        return f"results-{self.number}of{self.of}.jsonl"

    def of_subjects(self, subjects: Sequence[Subject]) -> list[Subject]:
        """Every ``of``-th picture; the grey one, which all questions are asked about, is everybody's in part."""
        pictures = [subject for subject in subjects if subject.source is not None]
        grey = [subject for subject in subjects if subject.source is None]
        mine = slice(self.number - 1, None, self.of)
        return pictures[mine] + [replace(subject, asked=subject.asked[mine]) for subject in grey]


def answers_file(folder: Path, part: str | None) -> Path:
    """Where a run's answers go.

    Raises:
        InputError: for a ``part`` that is none.
    """
    return folder / (ANSWERS if part is None else Share.parse(part).file)


def answer_files(folder: Path) -> list[Path]:
    """The files of answers in a folder, of a whole run and of parts."""
    parts = sorted(path for path in folder.glob("results-*.jsonl") if PARTS.fullmatch(path.name))
    return [path for path in (folder / ANSWERS, *parts) if path.is_file()]
