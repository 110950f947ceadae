"""Tables of pieces in few rules: what all turns share is said once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from trtprune.text.info import Piece, Rule

__all__ = ["Key", "Pieces", "Table", "literal", "simplified", "tidy"]

Pieces = tuple[Piece, ...]
CONDITIONS = ("system", "first", "last", "images")


class Key(NamedTuple):
    """The conditions of a turn, as in :class:`trtprune.text.info.Rule`."""

    role: str
    system: bool
    first: bool
    last: bool
    images: bool


Table = dict[Key, Pieces]


class Simplified(NamedTuple):
    """The parts of a :class:`trtprune.text.info.TemplateInfo` that are pieces."""

    begin: Pieces
    system: Pieces
    user: tuple[Rule, ...]
    assistant: tuple[Rule, ...]
    end: tuple[Rule, ...]


def literal(value: str) -> Piece:
    """A piece of fixed text."""
    return Piece("literal", value)


def tidy(pieces: Iterable[Piece]) -> Pieces:
    """The pieces without empty literals, neighbouring ones joined."""
    joined: list[Piece] = []
    for piece in pieces:
        if piece.kind == "literal" and joined and joined[-1].kind == "literal":
            joined[-1] = literal(joined[-1].value + piece.value)
        elif piece.kind != "literal" or piece.value:
            joined.append(piece)
    return tuple(joined)


def simplified(table: Table, tails: Table) -> Simplified:
    """Few rules for the pieces of ``table`` (turns) and of ``tails`` (what stands behind the last question)."""
    table = dict(table)
    system = _take_system(table)
    begin, system = _take_common(table, system)
    roles = {role: {key: pieces for key, pieces in table.items() if key.role == role} for role in ("user", "assistant")}
    return Simplified(begin, system, _rules(roles["user"]), _rules(roles["assistant"]), _rules(tails))


def _take_system(table: Table) -> Pieces:
    """Takes the system turn out of the first question's pieces, if its text is a whole there."""
    firsts = [key for key in table if key.role == "user" and key.system and key.first]
    prefixes = {_until_system(table[key]) for key in firsts}
    if len(prefixes) != 1 or not (prefix := prefixes.pop()):
        return ()
    for key in firsts:
        table[key] = table[key][len(prefix) :]
    return prefix


def _until_system(pieces: Pieces) -> Pieces:
    """The pieces up to the system turn's text and the end of its own trimming; none, if it is trimmed with others."""
    end = next((i + 1 for i, piece in enumerate(pieces) if piece.kind == "system"), 0)
    if end and end < len(pieces) and pieces[end].kind == "close":
        end += 1
    kinds = [piece.kind for piece in pieces[:end]]
    return pieces[:end] if kinds.count("open") == kinds.count("close") and "images" not in kinds else ()


def _take_common(table: Table, system: Pieces) -> tuple[Pieces, Pieces]:
    """Moves what stands before only some questions to the end of the turn before them.

    A question that is not the first stands behind an answer, the first one behind ``begin`` or the system turn.
    """
    users = [key for key in table if key.role == "user"]
    shared = {
        images: _common_end(_lead(table[key]) for key in users if key.images == images) for images in (False, True)
    }
    rest = {key: _lead(table[key])[: len(_lead(table[key])) - len(shared[key.images])] for key in users}
    behind_answers = {rest[key] for key in users if not key.first}
    begins = {rest[key] for key in users if key.first and not key.system}
    behind_system = {rest[key] for key in users if key.first and key.system}
    if max(len(behind_answers), len(begins), len(behind_system)) > 1:
        return (), system
    for key in users:
        table[key] = tidy([literal(_lead(table[key])[len(rest[key]) :]), *_without_lead(table[key])])
    for key in [key for key in table if key.role == "assistant"]:
        table[key] = tidy([*table[key], *map(literal, behind_answers)])
    return tidy(map(literal, begins)), tidy([*system, *map(literal, behind_system)])


def _lead(pieces: Pieces) -> str:
    return pieces[0].value if pieces and pieces[0].kind == "literal" else ""


def _without_lead(pieces: Pieces) -> Pieces:
    return pieces[1:] if pieces and pieces[0].kind == "literal" else pieces


def _common_end(texts: Iterable[str]) -> str:
    characters = zip(*(reversed(text) for text in texts), strict=False)
    same = itertools.takewhile(lambda of_place: len({*of_place}) == 1, characters)
    end = "".join(of_place[0] for of_place in same)[::-1]
    # No special token (<…>) is cut in two.
    head, closing, tail = end.partition(">")
    return tail if closing and "<" not in head else end


def _rules(table: Mapping[Key, Pieces]) -> tuple[Rule, ...]:
    """Rules with as few conditions as possible; the last one holds for all other turns."""
    if not table:
        return (Rule(None, None, None, None, ()),)
    for names in (names for size in range(5) for names in itertools.combinations(CONDITIONS, size)):
        found: dict[tuple[bool, ...], set[Pieces]] = {}
        for key, pieces in table.items():
            found.setdefault(tuple(getattr(key, name) for name in names), set()).add(pieces)
        if all(len(of_case) == 1 for of_case in found.values()):
            cases = {values: next(iter(of_case)) for values, of_case in sorted(found.items())}
            times = Counter(cases.values())
            usual = max(times, key=lambda pieces: times[pieces])
            rules = [_rule(names, values, pieces) for values, pieces in cases.items() if pieces != usual]
            return (*rules, _rule((), (), usual))
    raise AssertionError("all conditions together tell the turns apart")


def _rule(names: Sequence[str], values: Sequence[bool], pieces: Pieces) -> Rule:
    conditions: dict[str, bool | None] = {**dict.fromkeys(CONDITIONS), **dict(zip(names, values, strict=True))}
    return Rule(**conditions, pieces=pieces)
