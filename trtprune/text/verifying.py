"""A comparison of a template's pieces with the template, on random conversations.

Texts are chosen for what templates can depend on: white space of all kinds, nothing, special tokens, and every text,
number and length that the template itself names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from trtprune.errors import TrtpruneError
from trtprune.text.compiling import WHITE_SPACE, NotCompilableError, conversation
from trtprune.text.info import TemplateInfo
from trtprune.text.pieces import PieceTemplate
from trtprune.text.sandbox import Constants
from trtprune.text.template import ChatTemplate, Turn

__all__ = ["check_pieces", "conversations"]

ROUNDS, MOST_QUESTIONS, MOST_IMAGES = 400, 5, 4
LONGEST_CONVERSATION, LONGEST_TEXT = 64, 10_000
"""Larger numbers in a template are not tried, neither as a number of turns nor as the length of a text."""
WORDS = (
    "",
    " ",
    "\n",
    "a",
    "What is this?",
    "{{ x }}",
    "{% if a %}",
    "<|im_end|>",
    "<s>",
    "</s>",
    "[INST]",
    "</think>",
    "USER: ",
    "'type'",
    '"',
    "\\n",
    "é",
    "\u0301",
    "猫",
    "שלום",
    "🐈‍⬛",
    "\u200b",
    "\ufeff",
    "\r\n",
    "0",
    "-1.5",
    "None",
)


def check_pieces(
    info: TemplateInfo,
    template: ChatTemplate,
    watch: Callable[[], object],
    constants: Constants,
    special: Sequence[str],
) -> None:
    """Compares the prompts, with the place of the question, and the errors.

    Args:
        info: The pieces.
        template: The template.
        watch: Called for each conversation; it raises NotCompilableError if there is no more time.
        constants: What it names.
        special: Texts of special tokens.

    Raises:
        NotCompilableError: at the first difference.
    """
    pieces = PieceTemplate(info)
    for turns in conversations(constants, special, template.image_token):
        watch()
        if _outcome(template, turns) != _outcome(pieces, turns):
            raise NotCompilableError("depends on the words or the number of turns")


def conversations(constants: Constants, special: Sequence[str], image_token: str) -> Iterator[list[Turn]]:
    """Random conversations, the same ones every time."""
    draw = random.Random(0)
    named = [*constants.texts, *special]
    lengths = [n for number in constants.numbers for n in (number - 1, number, number + 1)]
    texts = [text for text in named if image_token not in text]
    for text in texts:
        for around in ("{}", "a {}", "{} a", "a{}b{}c"):
            yield conversation(None, [around.replace("{}", text)] * 3, [1, 0])
            yield conversation(text, [around.replace("{}", text)], [1])
    for length in (n for n in lengths if 0 <= n <= LONGEST_TEXT):
        yield conversation("b" * length, ["a" * length] * 3, [1, 0])
    for questions in (n for n in (*range(6, 13), *lengths) if 0 < n <= LONGEST_CONVERSATION):
        yield conversation(None, ["a"] * (2 * questions - 1), [1] * questions)
        yield conversation("b", ["a"] * (2 * questions - 1), [1, *[0] * (questions - 1)])
    words = [*texts, *WORDS, *WHITE_SPACE]

    def random_text() -> str:
        chosen = "".join(draw.choice(words) for _ in range(draw.choice((0, 1, 1, 2, 3, 6))))
        while image_token in chosen:
            chosen = chosen.replace(image_token, "")
        return chosen

    for _ in range(ROUNDS):
        questions = draw.randint(1, MOST_QUESTIONS)
        system = random_text() if draw.random() < 0.4 else None
        images = [draw.randint(0, MOST_IMAGES) for _ in range(questions)]
        yield conversation(system, [random_text() for _ in range(2 * questions - 1)], images)


def _outcome(template: ChatTemplate | PieceTemplate, turns: Sequence[Turn]) -> object:
    try:
        return template.render(turns)
    except TrtpruneError as error:
        return type(error), error.message, error.hint
