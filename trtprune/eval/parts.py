"""Shares of an evaluation for several processes, each with a file of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trtprune.errors import InputError
from trtprune.eval.store import refuse_if_written

if TYPE_CHECKING:
    from trtprune.eval.planning import Subject

__all__ = ["ANSWERS", "Files", "Share", "answer_files"]

ANSWERS = "results.jsonl"
PARTS = re.compile(r"results-\d+of\d+\.jsonl")


@dataclass(frozen=True)
class Share:
    """One of ``of`` shares; the first is number 1."""

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
        """The name of its file of answers."""
        return f"results-{self.number}of{self.of}.jsonl"

    def of_subjects(self, subjects: Sequence[Subject]) -> list[Subject]:
        """Every ``of``-th image; the questions about the grey one, all questions, are shared out."""
        pictures = [subject for subject in subjects if subject.source is not None]
        grey = [subject for subject in subjects if subject.source is None]
        mine = slice(self.number - 1, None, self.of)
        return pictures[mine] + [replace(subject, asked=subject.asked[mine]) for subject in grey]


def answer_files(folder: Path) -> list[Path]:
    """The files of answers in a folder, of a whole run and of parts."""
    parts = sorted(path for path in folder.glob("results-*.jsonl") if PARTS.fullmatch(path.name))
    return [path for path in (folder / ANSWERS, *parts) if path.is_file()]


@dataclass(frozen=True)
class Files:
    """The file of a run's answers, and those of other runs.

    Attributes:
        folder: The folder of an evaluation.
        part: The share of the images; None: all.
        answers: The file of this run.
        beside: The other files of answers in the folder.
    """

    folder: Path
    part: Share | None
    answers: Path
    beside: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path, part: Share | None, *, force: bool, so_far: bool) -> Files:
        """The files of a run.

        Args:
            folder: The folder of the evaluation.
            part: The share of the images; None: all.
            force: Whether existing answers are discarded.
            so_far: Whether the run only reports.

        Raises:
            InputError: for a run that would lose or duplicate answers.
        """
        answers = folder / (ANSWERS if part is None else part.file)
        beside = tuple(path for path in answer_files(folder) if path != answers)
        files = cls(folder, part, answers, beside)
        files._check(force, so_far)
        return files

    def _check(self, force: bool, so_far: bool) -> None:
        if so_far and (force or self.part or not (self.beside or self.answers.is_file())):
            if self.part:
                raise InputError("--so-far reports on all parts", hint="leave out --part")
            reason = "--force leaves nothing to report on" if force else f"{self.folder} holds no answers"
            raise InputError(f"--so-far: {reason}", hint="leave out --so-far")
        if force and (self.part or self.beside):
            reason = "a part cannot start the others anew"
            if self.beside:
                reason = f"{self.beside[0]} holds answers of a part"
            raise InputError(f"--force: {reason}", hint="choose another -o, or remove the old answers")
        if not so_far:
            # Parts are disjoint; a whole run and a part are not.
            for path in self.beside:
                if self.part is None or path.name == ANSWERS:
                    refuse_if_written(path)
