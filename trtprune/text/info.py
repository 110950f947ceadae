"""What a directory says of its texts: the tokenizer's facts beside ``tokenizer.json``, and the template as pieces.

With these and ``tokenizer.json`` a runtime makes prompts without jinja and without transformers' rules; the page
``docs/engine-directory.md`` says how, step by step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["AddedToken", "Piece", "Refusal", "Rule", "TemplateInfo", "TextInfo", "TokenizerInfo", "wrong_texts"]

MOST_TOKENS, MOST_PIECES, MOST_CHARS = 1 << 20, 1 << 12, 1 << 20
LARGEST_ID = 1 << 26


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text before the tokenizer's model sees it.

    Attributes:
        id: Its id.
        content: Its text.
        single_word, lstrip, rstrip, normalized: Hugging Face tokenizers' flags, as they finally stand.
        special: Whether it is taken apart like other text if ``encode_special_tokens``.
        skipped: Whether the text of an answer omits it.
        decoded: What the decoder gets for it: its text, or of a normalized token its normal form.
    """

    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool
    skipped: bool
    decoded: str


@dataclass(frozen=True)
class TokenizerInfo:
    """What other files than ``tokenizer.json`` say of the tokenizer, and what follows from all of them.

    Attributes:
        added_tokens: All added tokens, by ascending id; they replace those of ``tokenizer.json``.
        encode_special_tokens: Whether special tokens in a text are taken apart like other text.
        before, after: Ids around those of a text that is encoded with special tokens; None if the post-processor of
            ``tokenizer.json`` does anything else, and has to be run itself.
        bos: Where a prompt of the template begins with this text, it is encoded without special tokens; None: never.
    """

    added_tokens: tuple[AddedToken, ...]
    encode_special_tokens: bool
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None
    bos: str | None


@dataclass(frozen=True)
class Piece:
    """A step in writing a prompt.

    ``literal`` writes ``value``, ``images`` writes ``value`` for each image of the turn, ``text`` writes the turn's
    text and ``system`` the system turn's.  ``close`` removes the characters of ``left`` from the beginning and those
    of ``right`` from the end of what was written since the ``open`` that belongs to it.
    """

    kind: Literal["literal", "images", "text", "system", "open", "close"]
    value: str = ""
    left: str = ""
    right: str = ""


@dataclass(frozen=True)
class Rule:
    """The pieces of a turn, if its conditions hold; None is no condition.

    Attributes:
        system: Whether the conversation has a system turn.
        first: Whether the turn is the first one of its role.
        last: Whether it is the last one of its role.
        images: Whether it has images.
        pieces: What is written.
    """

    system: bool | None
    first: bool | None
    last: bool | None
    images: bool | None
    pieces: tuple[Piece, ...]

    def holds(self, system: bool, first: bool, last: bool, images: bool) -> bool:
        """Whether a turn fulfils the conditions."""
        have = ((self.system, system), (self.first, first), (self.last, last), (self.images, images))
        return all(wanted is None or wanted == found for wanted, found in have)


@dataclass(frozen=True)
class Refusal:
    """An error in place of a prompt, for conversations with (or without) a system turn, of several questions (or one).

    ``error`` is ``input`` where the template refuses the turns, and ``directory`` where it fails.
    """

    system: bool | None
    several: bool | None
    error: Literal["input", "directory"]
    message: str
    hint: str


@dataclass(frozen=True)
class TemplateInfo:
    """A chat template as pieces: refusals, then ``begin`` or ``system``, then a rule for each turn, then ``end``.

    Attributes:
        begin: What is written first without a system turn.
        system: What is written first with one.
        user, assistant: Rules of turns; the first one that holds counts.
        end: Rules by the conditions of the last user turn, for what is written behind it.
        refusals: The first one that holds counts.
        own_images: Whether placeholders stand in literals, whatever the number of images.
    """

    begin: tuple[Piece, ...]
    system: tuple[Piece, ...]
    user: tuple[Rule, ...]
    assistant: tuple[Rule, ...]
    end: tuple[Rule, ...]
    refusals: tuple[Refusal, ...]
    own_images: bool

    def all_pieces(self) -> Iterator[tuple[str, tuple[Piece, ...]]]:
        """Every list of pieces, with the name of its place."""
        yield "begin", self.begin
        yield "system", self.system
        for name in ("user", "assistant", "end"):
            for number, rule in enumerate(getattr(self, name)):
                yield f"{name}[{number}].pieces", rule.pieces


@dataclass(frozen=True)
class TextInfo:
    """Tokenizer and chat template; ``template`` is None where it cannot be written as pieces, ``reason`` says why."""

    tokenizer: TokenizerInfo
    template: TemplateInfo | None
    reason: str | None = None


def wrong_texts(info: TextInfo) -> Iterator[str]:
    """Faults of values, one line each, which begins with the field."""
    tokens = info.tokenizer.added_tokens
    ids = [token.id for token in tokens]
    if len(tokens) > MOST_TOKENS or ids != sorted({*ids}) or not all(0 <= number < LARGEST_ID for number in ids):
        yield "tokenizer.added_tokens must have ascending ids from 0"
    if len({token.content for token in tokens}) < len(tokens) or not all(token.content for token in tokens):
        yield "tokenizer.added_tokens must have texts of their own"
    if (info.tokenizer.before is None) != (info.tokenizer.after is None):
        yield "tokenizer.before and tokenizer.after belong together"
    around = (*(info.tokenizer.before or ()), *(info.tokenizer.after or ()))
    if len(around) > MOST_PIECES or not all(0 <= number < LARGEST_ID for number in around):
        yield "tokenizer.before and tokenizer.after: a token id is at least 0"
    if (info.template is None) != (info.reason is not None):
        yield "reason belongs to a template that is not written as pieces, and to no other"
    if info.template is not None:
        yield from (f"template.{what}" for what in _wrong_template(info.template))


def _wrong_template(template: TemplateInfo) -> Iterator[str]:
    places = list(template.all_pieces())
    pieces = [piece for _, of_place in places for piece in of_place]
    size = sum(len(piece.value) + len(piece.left) + len(piece.right) for piece in pieces)
    if len(pieces) > MOST_PIECES or size > MOST_CHARS or len(template.refusals) > MOST_PIECES:
        yield f"user: more than {MOST_PIECES} pieces, or {MOST_CHARS:,} characters in them"
        return
    for name, of_place in places:
        depth = 0
        for piece in of_place:
            depth += {"open": 1, "close": -1}.get(piece.kind, 0)
            if depth < 0:
                break
        if depth:
            yield f"{name}: an open piece without its close, or the other way round"
        if name in ("begin", "system") and any(piece.kind in ("images", "text") for piece in of_place):
            yield f"{name}: images and text belong to the turns of user and assistant"
    both = (False, True)
    turns = [(system, first, last, images) for system in both for first in both for last in both for images in both]
    for name in ("user", "assistant", "end"):
        rules: tuple[Rule, ...] = getattr(template, name)
        if not all(any(rule.holds(*turn) for rule in rules) for turn in turns):
            yield f"{name}: there are turns that no rule holds for"
