"""The cost of pruning in answers: the same questions with all visual tokens, and with the budget.

Only questions that both runs finish are scored: an answer cut off at ``--max-new-tokens`` shows the model's length, not
its perception.  Without pruning there is no report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.errors import BudgetError, InputError

if TYPE_CHECKING:
    from trtprune.runtime import Request, Result, Vlm

__all__ = ["Agreement", "AnswerPair", "Case", "compare_answers", "read_questions"]


@dataclass(frozen=True)
class Case:
    """A question, and its expected answer, if known."""

    request: Request
    answer: str | None = None


@dataclass(frozen=True)
class AnswerPair:
    """One question.

    Attributes:
        counted: Whether both runs finished their answer; ``why`` not.
        common_tokens: Number of equal tokens at the beginning of the two answers.
        right: Whether each of the two (pruned, unpruned) is the expected answer; None if unknown.
    """

    prompt: str
    pruned: str
    unpruned: str
    counted: bool
    why: str
    same: bool
    common_tokens: int
    kept_tokens: int
    visual_tokens: int
    right: tuple[bool, bool] | None = None


@dataclass(frozen=True)
class Agreement:
    """All questions.  ``accuracy`` (pruned, unpruned) is over counted questions with an expected answer."""

    method: str
    keep: int
    visual_tokens: int
    rows: tuple[AnswerPair, ...]
    min_agreement: float | None
    kv_cache_bytes: tuple[int, int]

    @property
    def counted(self) -> int:
        """Number of questions that both runs finished."""
        return sum(row.counted for row in self.rows)

    @property
    def agreement(self) -> float:
        """Fraction of the counted answers that are the same."""
        return sum(row.same for row in self.rows if row.counted) / max(1, self.counted)

    @property
    def accuracy(self) -> tuple[float, float] | None:
        """Fraction of right answers, pruned and unpruned."""
        known = [row.right for row in self.rows if row.counted and row.right is not None]
        if not known:
            return None
        return sum(p for p, _ in known) / len(known), sum(u for _, u in known) / len(known)

    @property
    def passed(self) -> bool:
        """Whether some question was scored, and the agreement reaches ``--min-agreement``."""
        return self.counted > 0 and (self.min_agreement is None or self.agreement >= self.min_agreement)

    def to_json(self) -> dict[str, Any]:
        """The data of ``--json`` and ``--report``."""
        accuracy = self.accuracy
        return {
            "passed": self.passed,
            "counted": self.counted,
            "agreement": self.agreement,
            "accuracy": None if accuracy is None else {"pruned": accuracy[0], "unpruned": accuracy[1]},
            **dataclasses.asdict(self),
        }


def read_questions(path: Path) -> list[Case]:
    """Questions from JSON lines as for ``trtprune run --requests``, with an optional ``"answer"``.

    Raises:
        InputError: naming the line.
    """
    from trtprune.runtime.requests import IN_CALL, RequestFile

    refused = dict.fromkeys(IN_CALL, "all questions are asked alike here") | {"keep": "--keep is the one of all here"}
    found = []
    with RequestFile(path, refused=refused) as rows:
        rows.survey(strict=True)
        for row in rows:
            answer = row.given.get("answer")
            if not isinstance(answer, str | None):
                raise InputError(f"{path}:{row.number}: the answer is no text", hint='"answer": "two"')
            found.append(Case(row.to_request({}), answer))
    return found


def compare_answers(
    vlm: Vlm,
    questions: Sequence[Case],
    *,
    keep: int | None,
    min_agreement: float | None,
    report: Callable[[str, str], None],
    **settings: Any,
) -> Agreement:
    """Asks every question twice.

    Args:
        vlm: The build; it must serve all visual tokens as a budget.
        questions: The questions.
        keep: The budget; None: as built.
        min_agreement: Required fraction of equal answers among the counted ones; None: any.
        report: Called with (what, message).
        settings: Arguments of :meth:`trtprune.runtime.Vlm.generate` for both runs; greedy by default.

    Raises:
        BudgetError: if nothing would be pruned, or the build does not serve all tokens.
    """
    info, total = vlm.config.pruning, vlm.config.model.visual_tokens
    budget = vlm.check_keep(keep)
    if info.method == "none" or budget >= total:
        what = "method none" if info.method == "none" else f"--keep {budget}"
        raise BudgetError(
            f"--against unpruned: {what} keeps all {total} visual tokens; there is nothing to compare",
            hint="a smaller --keep, or a build with a method that prunes",
        )
    if info.keep_range[1] < total:
        raise BudgetError(
            f"--against unpruned: this build serves budgets up to {info.keep_range[1]}, not all {total} tokens",
            hint=f"build with --keep-range {info.keep_range[0]}:{total}",
        )
    settings = {"temperature": 0, **settings}  # random draws would hide the effect of pruning
    rows, caches = [], (0, 0)
    for number, asked in enumerate(questions, 1):
        pruned = vlm.generate_batch([asked.request], keep=budget, **settings)[0]
        try:
            unpruned: Result | InputError = vlm.generate_batch([asked.request], keep=total, **settings)[0]
        except InputError as error:  # a prompt that fits with the budget may be too long without it
            unpruned = error
        row, sizes = _row(asked, pruned, unpruned)
        rows.append(row)
        caches = max(caches[0], sizes[0]), max(caches[1], sizes[1])
        report("question", f"{number} of {len(questions)}: {'same' if row.same else row.why or 'differs'}")
    if all(row.kept_tokens >= row.visual_tokens for row in rows):
        raise BudgetError("--against unpruned: no token was dropped from any picture; nothing is reported")
    return Agreement(info.method, budget, total, tuple(rows), min_agreement, caches)


def _row(asked: Case, pruned: Result, unpruned: Result | InputError) -> tuple[AnswerPair, tuple[int, int]]:
    prompt, tokens = asked.request.prompt, (pruned.kept_tokens, pruned.visual_tokens)
    if isinstance(unpruned, InputError):
        why = f"unpruned: {unpruned.message}"
        return AnswerPair(prompt, pruned.text, "", False, why, False, 0, *tokens), (pruned.kv_cache_bytes, 0)
    cut = [n for n, r in (("pruned", pruned), ("unpruned", unpruned)) if r.finish_reason != "stop"]
    why = f"{' and '.join(cut)} cut off at --max-new-tokens" if cut else ""
    common = 0
    for a, b in zip(pruned.token_ids, unpruned.token_ids, strict=False):
        if a != b:
            break
        common += 1
    correct = None
    if asked.answer is not None:
        correct = (_plain(pruned.text) == _plain(asked.answer), _plain(unpruned.text) == _plain(asked.answer))
    same = not cut and _plain(pruned.text) == _plain(unpruned.text)
    row = AnswerPair(
        prompt,
        pruned.text,
        unpruned.text,
        not cut,
        why,
        same,
        common,
        *tokens,
        correct,
    )
    return row, (pruned.kv_cache_bytes, unpruned.kv_cache_bytes)


def _plain(text: str) -> str:
    """A text without case, outer space and a full stop: exact enough for answers of a word or two."""
    return " ".join(text.lower().split()).rstrip(".")
