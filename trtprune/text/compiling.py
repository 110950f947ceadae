"""From a chat template to pieces, by what it writes for marked turns.

A turn's pieces begin behind the text of the turn before it and end with its own text.  What is written for each image,
and what is trimmed, follow from prompts that differ in one thing; ``verifying`` then compares pieces and template on
other conversations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from trtprune.errors import InputError, TrtpruneError
from trtprune.text.info import Piece, Refusal, TemplateInfo
from trtprune.text.pieces import Writer
from trtprune.text.simplifying import Key, Table, literal, simplified, tidy
from trtprune.text.template import Turn

__all__ = ["WHITE_SPACE", "NotCompilableError", "Render", "compile_pieces", "conversation"]

WHITE_SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""What Python's str.strip() and jinja2's trim remove: 29 characters."""
# Private-use characters, which no template tests for or changes: no case, no white space, no quotes.
SYSTEM_MARK, FIRST_MARK = "\ue000\ue0ff\ue000", 0xE100
MARKED = re.compile("\ue000(.)\ue000")
LENGTHS = (1, 2, 4)
"""Questions of the probed conversations: every turn is first, last, both or neither of its role in one of them."""
TEXTS, SYSTEMS = ("", " ", "\n\n", "\t a \n", "x"), ("", " ", " s\n")
Render = Callable[[Sequence[Turn]], str]
Segments = list[list[Piece]]
"""The pieces of each turn of a conversation, and those behind the last."""
Trims = dict[str, tuple[str, str]]
"""The characters that are removed at the left and at the right of a text, by its mark."""


class NotCompilableError(Exception):
    """A template that pieces cannot express; the message completes "the chat template …"."""


def conversation(system: str | None, texts: Sequence[str], images: Sequence[int]) -> list[Turn]:
    """Turns of these texts, the user's and the assistant's by turns; ``images`` are those of each question."""
    turns = [Turn("assistant", text) if i % 2 else Turn("user", text, images[i // 2]) for i, text in enumerate(texts)]
    return [*([] if system is None else [Turn("system", system)]), *turns]


def compile_pieces(
    render: Render, image_token: str, *, own_images: bool = False, stripped: Sequence[str] = ()
) -> TemplateInfo:
    """The pieces of a template, not yet compared with it on other conversations.

    Args:
        render: The template's prompt for turns.
        image_token: The placeholder.
        own_images: Whether the template writes placeholders by itself.
        stripped: Characters that the template may strip beside white space.

    Raises:
        NotCompilableError: if pieces cannot express what it writes.
    """
    compiler = _Compiler(render, image_token, stripped)
    for system in (False, True):
        for questions in LENGTHS:
            compiler.add(_Case(system, questions))
    parts = simplified(compiler.table, compiler.tails)
    return TemplateInfo(**parts._asdict(), refusals=_refusals(compiler.refusals), own_images=own_images)


def _mark(number: int) -> str:
    return f"\ue000{chr(FIRST_MARK + number)}\ue000"


@dataclass(frozen=True)
class _Case:
    """A kind of conversation: with a system turn or without, and its number of questions."""

    system: bool
    questions: int

    @property
    def turns(self) -> int:
        """The number of turns without the system's."""
        return 2 * self.questions - 1

    def key(self, place: int, images: bool) -> Key:
        """The conditions of a turn."""
        role = ("user", "assistant")[place % 2]
        return Key(role, self.system, place < 2, place >= self.turns - 2, images and role == "user")

    def marked(self, images: int, left: str = "", right: str = "") -> list[Turn]:
        """The conversation with a mark for each text, and these characters around it."""
        texts = [left + _mark(place) + right for place in range(self.turns)]
        system = left + SYSTEM_MARK + right if self.system else None
        return conversation(system, texts, [images] * self.questions)


class _Compiler:
    """The tables of a template: pieces of turns and of what stands behind the last, and refusals."""

    def __init__(self, render: Render, image_token: str, stripped: Sequence[str]) -> None:
        self._render = render
        self._image_token = image_token
        self._stripped = sorted({*stripped} - {*WHITE_SPACE})
        self._some = bool(stripped)
        self.table: Table = {}
        self.tails: Table = {}
        self.refusals: dict[tuple[bool, bool], Refusal | None] = {}

    def add(self, case: _Case) -> None:
        """Adds what a kind of conversation shows."""
        refusal = self._refusal(case.marked(1))
        if self.refusals.setdefault((case.system, case.questions > 1), refusal) != refusal:
            raise NotCompilableError("refuses conversations of some lengths")
        if refusal is not None:
            return
        texts = [self._written(case.marked(count)) for count in (0, 1, 2, 3)]
        if any(self._written(case.marked(1)) != texts[1] for _ in range(2)):
            raise NotCompilableError("does not write the same turns in the same way every time")
        found = [_segments(case, text) for text in texts]
        without: Segments = []
        with_images: Segments = []
        for place in range(case.turns + 1):
            for segments, pieces in zip((without, with_images), self._images([s[place] for s in found]), strict=True):
                segments.append(pieces)
        trims = [self._trims(case, count, texts[count]) for count in (0, 1)]
        for place in range(case.turns):
            for images, pieces in self._trimmed(case, place, (without, with_images), trims):
                _note(self.table, case.key(place, images), pieces)
        for images, segments in ((False, without), (True, with_images)):
            _note(self.tails, case.key(case.turns - 1, images), segments[-1])

    def _written(self, turns: Sequence[Turn]) -> str:
        try:
            return self._render(turns)
        except TrtpruneError:
            raise NotCompilableError("refuses some texts or numbers of images") from None

    def _refusal(self, turns: Sequence[Turn]) -> Refusal | None:
        try:
            self._render(turns)
        except TrtpruneError as error:
            # Errors spell characters of private use out.
            if "ue000" in f"{error.message}{error.hint}":
                raise NotCompilableError("refuses turns with words of theirs") from None
            kind: Literal["input", "directory"] = "input" if isinstance(error, InputError) else "directory"
            return Refusal(None, None, kind, error.message, error.hint or "")
        return None

    # -- images

    def _images(self, found: Sequence[list[Piece]]) -> tuple[list[Piece], list[Piece]]:
        """The pieces without images and with, from those for 0, 1, 2 and 3 images."""
        none, one, two, three = found
        if len({tuple(piece.kind for piece in pieces) for pieces in found}) > 1:
            raise NotCompilableError("writes the parts of a turn in another order if it has images")
        places = [i for i in range(len(two)) if not one[i] == two[i] == three[i]]
        if not places:
            return none, one
        place = places[0]
        values = [pieces[place].value for pieces in found]
        if len(places) > 1 or two[-1].kind == "literal":  # the latter is what stands behind the last question
            raise NotCompilableError("writes images elsewhere than before a turn's text")
        before, unit, after = self._unit(*values)
        written = [*one[:place], literal(before), Piece("images", unit), literal(after), *one[place + 1 :]]
        if before + after == values[0] and none[:place] + none[place + 1 :] == one[:place] + one[place + 1 :]:
            return written, written
        return none, written

    def _unit(self, none: str, one: str, two: str, three: str) -> tuple[str, str, str]:
        """What is written before, for each, and behind images."""
        size, token = len(two) - len(one), two.find(self._image_token)
        found = []
        if size > 0 and token >= 0:
            # It begins with the placeholder if possible.
            for start in range(token, max(token - size, -1), -1):
                before, unit, after = two[:start], two[start : start + size], two[start + 2 * size :]
                if [before + unit * count + after for count in (1, 2, 3)] == [one, two, three]:
                    found.append((before, unit, after))
        if not found:
            raise NotCompilableError("writes several images in a form of its own")
        return next((parts for parts in found if parts[0] + parts[2] == none), found[0])

    # -- trimmed texts

    def _trims(self, case: _Case, images: int, text: str) -> Trims:
        literals, marks = MARKED.split(text)[::2], MARKED.split(text)[1::2]
        removed = {mark: ["", ""] for mark in marks}
        for side in (0, 1):
            # All white space at once: a template that strips no characters of its own removes all of it, or none.
            for characters in (*WHITE_SPACE, *self._stripped) if self._some else (WHITE_SPACE,):
                around = (characters, "") if side == 0 else ("", characters)
                parts = MARKED.split(self._written(case.marked(images, *around)))
                if parts[1::2] != marks:
                    raise NotCompilableError("changes the texts of turns")
                for place, mark in enumerate(marks):
                    base, now = literals[place + side], parts[::2][place + side]
                    if now == base:
                        removed[mark][side] += characters
                    elif now != (base + characters if side == 0 else characters + base):
                        raise NotCompilableError("changes the texts of turns")
        return {mark: (left, right) for mark, (left, right) in removed.items()}

    def _trimmed(
        self, case: _Case, place: int, segments: tuple[Segments, Segments], trims: Sequence[Trims]
    ) -> Iterator[tuple[bool, list[Piece]]]:
        """The pieces of a turn without images and with, with what is trimmed."""
        same = segments[0][place] == segments[1][place]
        for images in (False, True):
            counts = (0, 1, 2) if same else (1, 2) if images else (0,)
            tried = list(self._tries(case, place, counts, segments[0][place]))
            for pieces in _candidates(segments[images][place], trims[0 if same else images], _mark(place)[1]):
                if all(self._writes(pieces, case, place, segments, turns) == text for turns, text in tried):
                    yield images, pieces
                    break
            else:
                raise NotCompilableError("trims texts, or depends on them, in a way of its own")

    def _tries(
        self, case: _Case, place: int, counts: Sequence[int], pieces: list[Piece]
    ) -> Iterator[tuple[list[Turn], str]]:
        """Conversations with other texts at one turn, and what the template writes."""
        systems = (SYSTEM_MARK, *(SYSTEMS if Piece("system") in pieces else ())) if case.system else (None,)
        for system in systems:
            for count in counts if place % 2 == 0 else (0,):
                for text in TEXTS:
                    texts = [_mark(i) if i != place else text for i in range(case.turns)]
                    images = [count if 2 * i == place else 0 for i in range(case.questions)]
                    turns = conversation(system, texts, images)
                    yield turns, self._written(turns)

    @staticmethod
    def _writes(
        pieces: list[Piece], case: _Case, place: int, segments: tuple[Segments, Segments], turns: Sequence[Turn]
    ) -> str:
        """What these pieces of a turn write, among those of the other turns, which have marks and no images."""
        writer, said = Writer(turns[0].text if case.system else ""), turns[case.system :]
        for i, turn in enumerate(said):
            writer.write(pieces if i == place else segments[0][i], turn)
        writer.write(segments[turns[-1].images > 0][-1], said[-1])
        return writer.text


def _segments(case: _Case, text: str) -> Segments:
    """For each turn a literal and its text, and the literal behind the last; empty literals, too."""
    segments: Segments = []
    current: list[Piece] = []
    parts = MARKED.split(text)
    if len({*parts[1::2]}) < len(parts) // 2:
        raise NotCompilableError("writes a text twice")
    for number, part in enumerate(parts):
        place = ord(part) - FIRST_MARK if number % 2 else 0
        if number % 2 == 0:
            current.append(literal(part))
        elif part == SYSTEM_MARK[1]:
            current.append(Piece("system"))
        elif not len(segments) <= place < case.turns:
            raise NotCompilableError("writes turns in another order")
        else:
            # A turn without its text has no pieces; what is written for it belongs to the next.
            segments += [[] for _ in range(place - len(segments))]
            segments.append([*current, Piece("text")])
            current = []
    segments += [[] for _ in range(case.turns - len(segments))]
    return [*segments, current]


def _candidates(pieces: list[Piece], trims: Trims, mark: str) -> Iterator[list[Piece]]:
    """The pieces with what may be trimmed together: the text alone, with the images, with what stands before them."""
    left, right = trims.get(mark, ("", ""))
    system_left, system_right = trims.get(SYSTEM_MARK[1], ("", ""))
    place = pieces.index(Piece("system")) if Piece("system") in pieces else None
    apart = pieces
    if place is not None and (system_left or system_right):
        apart = [*pieces[:place], *_group([pieces[place]], system_left, system_right), *pieces[place + 1 :]]
    if not (left or right) or Piece("text") not in pieces:
        yield apart
        return
    # The texts of the group's beginning are never empty and never trimmed, or they are what is trimmed at the left.
    for source, sides in ((apart, {left}), (pieces, {left, system_left})):
        split = list(_split(source, left + right))
        for start in range(len(split) - 1, -1, -1):
            for side in sorted(sides, key=len, reverse=True):
                if _balanced(split[start:]):
                    yield [*split[:start], *_group(split[start:], side, right)]


def _group(pieces: Sequence[Piece], left: str, right: str) -> list[Piece]:
    return [Piece("open"), *pieces, Piece("close", left=left, right=right)]


def _balanced(pieces: Sequence[Piece]) -> bool:
    kinds = [piece.kind for piece in pieces]
    return kinds.count("open") == kinds.count("close") and (not kinds or kinds[0] != "close")


def _split(pieces: Sequence[Piece], trimmed: str) -> Iterator[Piece]:
    """The pieces with each literal in two: its end, from the last character on that is not trimmed, apart."""
    for piece in pieces:
        kept = len(piece.value.rstrip(trimmed)) if piece.kind == "literal" and trimmed else 0
        if kept > 1:
            yield literal(piece.value[: kept - 1])
            yield literal(piece.value[kept - 1 :])
        else:
            yield piece


def _note(table: Table, key: Key, pieces: Sequence[Piece]) -> None:
    neat = tidy(pieces)
    if table.setdefault(key, neat) != neat:
        raise NotCompilableError("depends on the number of turns")


def _refusals(found: dict[tuple[bool, bool], Refusal | None]) -> tuple[Refusal, ...]:
    """Refusals with as few conditions as possible."""
    rest = {case: refusal for case, refusal in found.items() if refusal is not None}
    refusals = []
    for system, several in ((None, None), (True, None), (False, None), (None, True), (None, False)):
        cases = [case for case in found if system in (None, case[0]) and several in (None, case[1])]
        first = rest.get(cases[0])
        if first is not None and all(rest.get(case) == first for case in cases):
            refusals.append(Refusal(system, several, first.error, first.message, first.hint))
            rest = {case: refusal for case, refusal in rest.items() if case not in cases}
    refusals += [Refusal(*case, one.error, one.message, one.hint) for case, one in rest.items()]
    return tuple(refusals)
