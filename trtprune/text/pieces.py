"""Prompts from a template's pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trtprune.errors import EngineDirError, InputError
from trtprune.text.info import Piece, Refusal, Rule, TemplateInfo
from trtprune.text.limits import MAX_RENDERED_CHARS, too_long
from trtprune.text.template import Rendered, Turn

__all__ = ["PieceTemplate", "Writer", "template_from"]


class PieceTemplate:
    """A chat template as pieces; it writes what the template itself would write.

    Args:
        info: The pieces.

    Attributes:
        own_images: Whether the template writes placeholders by itself.
    """

    def __init__(self, info: TemplateInfo) -> None:
        self.info = info
        self.own_images = info.own_images

    def render(self, turns: Sequence[Turn]) -> Rendered:
        """The prompt for ``turns``: a system turn or none, then the user's and the assistant's, the user's last.

        Raises:
            InputError: if the template refuses these turns.
            EngineDirError: if it fails with them, or writes too much.
        """
        system = turns[0].text if turns[0].role == "system" else None
        said = list(turns[system is not None :])
        roles = [("user", "assistant")[i % 2] for i in range(len(said))]
        if [turn.role for turn in said] != roles or len(said) % 2 == 0:
            raise InputError(
                "the turns are not those of a conversation",
                hint="a system turn or none, then questions and answers by turns; the last is a question",
            )
        self._check(system is not None, len(said) > 1)
        writer = Writer(system or "")
        writer.write(self.info.begin if system is None else self.info.system, said[0])
        for number, turn in enumerate(said):
            end = number == len(said) - 1
            rules = self.info.user if turn.role == "user" else self.info.assistant
            conditions = (system is not None, number < 2, number >= len(said) - 2)
            writer.asked = end
            writer.write(_chosen(rules, *conditions, turn.images > 0), turn)
            writer.asked = False
            if end:
                writer.write(_chosen(self.info.end, *conditions, turn.images > 0), turn)
        return writer.rendered(said[-1])

    def _check(self, system: bool, several: bool) -> None:
        for refusal in self.info.refusals:
            if refusal.system in (None, system) and refusal.several in (None, several):
                kind = InputError if refusal.error == "input" else EngineDirError
                raise kind(refusal.message, hint=refusal.hint)


def _chosen(rules: Sequence[Rule], system: bool, first: bool, last: bool, images: bool) -> tuple[Piece, ...]:
    return next((rule.pieces for rule in rules if rule.holds(system, first, last, images)), ())


class Writer:
    """The prompt as it grows. ``asked``: whether the turn that is written is the last one."""

    def __init__(self, system: str) -> None:
        self.text, self.asked = "", False
        self._system = system
        self._opened: list[int] = []
        self._question: list[tuple[int, int]] = []

    def write(self, pieces: Sequence[Piece], turn: Turn) -> None:
        """Runs the pieces of a turn."""
        for piece in pieces:
            if piece.kind == "open":
                self._opened.append(len(self.text))
            elif piece.kind == "close":
                self._close(self._opened.pop(), piece.left, piece.right)
            else:
                start = len(self.text)
                values = {"literal": piece.value, "text": turn.text, "system": self._system}
                if piece.kind == "images" and len(piece.value) * turn.images > MAX_RENDERED_CHARS:
                    raise too_long()
                self.text += piece.value * turn.images if piece.kind == "images" else values[piece.kind]
                if len(self.text) > MAX_RENDERED_CHARS:
                    raise too_long()
                if piece.kind == "text" and self.asked:
                    self._question.append((start, len(self.text)))

    def rendered(self, last: Turn) -> Rendered:
        """The prompt, with the place of the last turn's text."""
        end = len(self.text)
        if len(self._question) != 1 or not last.text.strip() or self._question[0][0] == self._question[0][1]:
            return Rendered(self.text, end, end)
        return Rendered(self.text, *self._question[0])

    def _close(self, start: int, left: str, right: str) -> None:
        written = self.text[start:]
        # An empty set would mean all white space.
        shorter = written.lstrip(left) if left else written
        removed = len(written) - len(shorter)
        shorter = shorter.rstrip(right) if right else shorter
        self.text = self.text[:start] + shorter

        def moved(place: int) -> int:
            return min(max(place - removed, start), len(self.text)) if place > start else place

        self._question = [(moved(first), moved(end)) for first, end in self._question]


def template_from(data: Mapping[str, Any]) -> TemplateInfo:
    """The pieces from plain data (``dataclasses.asdict`` of them), which has been checked."""

    def pieces(values: Any) -> tuple[Piece, ...]:
        return tuple(Piece(**value) for value in values)

    def rules(values: Any) -> tuple[Rule, ...]:
        return tuple(Rule(**{**value, "pieces": pieces(value["pieces"])}) for value in values)

    return TemplateInfo(
        begin=pieces(data["begin"]),
        system=pieces(data["system"]),
        user=rules(data["user"]),
        assistant=rules(data["assistant"]),
        end=rules(data["end"]),
        refusals=tuple(Refusal(**value) for value in data["refusals"]),
        own_images=data["own_images"],
    )
