"""Marks of answers, as in the sets' own evaluation scripts.

The rules are facts of those scripts, oddities included; each function names its script.  A mark lies in [0, 1].
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "LETTERS",
    "METRICS",
    "Known",
    "YesNo",
    "letter",
    "normalise",
    "normalise_gqa",
    "normalise_textvqa",
    "score",
    "soft_accuracy",
    "yes_no",
    "yes_no_report",
]

METRICS = {
    "exact": "any of the answers, after the VQA normalisation",
    "vqa": "soft accuracy over the people asked, as VQAv2 is marked",
    "textvqa": "soft accuracy as TextVQA is marked",
    "gqa": "the answer, without case and punctuation",
    "pope": "yes or no, whichever the first sentence says",
    "letter": "the letter of the right choice",
}
MIN_SOFT_ANSWERS = 4
"""Number of other people with the same answer for the full mark."""

LETTERS = string.ascii_uppercase
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}
_NUMBERS["none"] = "0"
_ARTICLES = frozenset(("a", "an", "the"))
# Words with an apostrophe.  The script's table has each of them without any one of its apostrophes, except
# "let's" and "she's" (so that "lets" and "shes" stay), and has "somebody'd" the wrong way round.
_APOSTROPHES = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're "
    "there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're "
    "you've 'ow's'at couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've "
    "someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've "
)
_CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in _APOSTROPHES.split() for i, sign in enumerate(word) if sign == "'"
}
_CONTRACTIONS["somebody'd"] = "somebodyd"

# The scripts mean "a period with no digit before or after it" but write the look-behind as "(?!<=\d)", which is
# always true; and they pass re.UNICODE (32) to ``sub`` as the number of replacements.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_REMOVED = 32
_NUMBER_COMMA = re.compile(r"\d,\d")


def _punctuation(text: str) -> str:
    number = _NUMBER_COMMA.search(text) is not None
    result = text
    for sign in _PUNCTUATION:
        # A sign beside a blank is removed, between letters it becomes a blank; with "1,000" every sign is removed.
        beside = f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if beside or number else " ")
    return _PERIOD.sub("", result, count=_PERIODS_REMOVED)


def _words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalise(text: str) -> str:
    """The VQA normalisation: lower case, no punctuation, no articles, digits for small numbers, apostrophes set.

    Source: ``vqaEval.py`` of github.com/GT-Vision-Lab/VQA (``processPunctuation``, ``processDigitArticle``).
    """
    return _words(_punctuation(_one_line(text)))


def normalise_textvqa(text: str) -> str:
    """The normalisation of TextVQA: as :func:`normalise`, but commas and question marks are removed first and
    " 's" is separated.

    Source: ``EvalAIAnswerProcessor`` of Pythia/MMF, as in LLaVA's and lmms-eval's scripts.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_punctuation(_one_line(text)))


def soft_accuracy(answer: str, answers: Sequence[str]) -> float:
    """The mean over all people of min(1, number of others with this answer / 3).

    Both sides must be normalised already.  Antol et al., "VQA: Visual Question Answering" (2015), as published by
    visualqa.org/evaluation.html; the scripts average over leaving one person out.
    """
    if not answers:
        raise ValueError("no answers to mark against")
    matches = sum(1 for given in answers if given == answer)
    # Without a person who gave it, one fewer remains; the sum over people is two products.
    inside, outside = min(1.0, (matches - 1) / 3), min(1.0, matches / 3)
    return (matches * max(0.0, inside) + (len(answers) - matches) * outside) / len(answers)


def normalise_gqa(text: str) -> str:
    """Lower case without punctuation, as lmms-eval's ``gqa`` task compares answers.

    LLaVA's script for GQA only removes a final period; for GQA's answers of one or two words that is the same.
    """
    return text.strip().lower().translate(str.maketrans("", "", string.punctuation))


def yes_no(text: str) -> str:
    """ "no" if the first sentence has the word no, No or not; otherwise "yes".

    Source: ``evaluate.py`` of github.com/RUCAIBox/POPE and LLaVA's ``eval_pope.py``.
    """
    words = text.strip().split(".")[0].replace(",", "").split(" ")
    return "no" if {"no", "No", "not"} & set(words) else "yes"


def letter(text: str, choices: int) -> str | None:
    """The letter in an answer to a multiple-choice question, or None.

    In this order: the answer is a letter; it begins with a letter, a period and a blank; it says "The answer is X"
    (LLaVA's ``eval_science_qa.py``); it is a lower-case letter, or begins with a letter and a period (lmms-eval's
    ``scienceqa`` task).  A letter beyond the choices is None.
    """
    line = text.strip().replace("\n", ". ")
    known = LETTERS[: max(5, choices)]  # the script knows A to E, however many choices there are
    patterns = (rf"^([{known}])\. ", rf"The answer is ([{known}])\.", rf"The answer is ([{known}])", r"^([A-Z])\.")
    found = line.upper() if len(line) == 1 else ""
    for pattern in patterns:
        if not found and (match := re.search(pattern, line)):
            found = match[1]
    return found if found and found in LETTERS[:choices] else None


class Known(Protocol):
    """The parts of a question that marking needs."""

    @property
    def answers(self) -> Sequence[str]: ...

    @property
    def choices(self) -> Sequence[str]: ...

    @property
    def metric(self) -> str: ...


def score(row: Known, text: str, metric: str) -> float:
    """The mark of an answer.

    Args:
        row: The question with its answers; its own ``metric``, if any, has priority over ``metric``.
        text: The model's answer.
        metric: One of :data:`METRICS`.

    Returns:
        A number in [0, 1]; 0 or 1 except with "vqa" and "textvqa".
    """
    metric = row.metric or metric
    if metric == "exact":
        wanted = {normalise(answer) or answer.strip().lower() for answer in row.answers}
        return float((normalise(text) or text.strip().lower()) in wanted)
    if metric == "vqa":
        return soft_accuracy(normalise(text), [normalise(answer) for answer in row.answers])
    if metric == "textvqa":
        return soft_accuracy(normalise_textvqa(text), [normalise_textvqa(answer) for answer in row.answers])
    if metric == "gqa":
        return float(normalise_gqa(text) in {normalise_gqa(answer) for answer in row.answers})
    if metric == "pope":
        return float(yes_no(text) == row.answers[0].strip().lower())
    if metric == "letter":
        return float(letter(text, len(row.choices) or len(LETTERS)) in row.answers)
    raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")


@dataclass(frozen=True)
class YesNo:
    """POPE's figures, all in [0, 1]; precision, recall and F1 are of the answer yes (0 if undefined)."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float


def yes_no_report(pairs: Iterable[tuple[str, str]]) -> YesNo:
    """POPE's figures from pairs of the model's answer and the right answer, "yes" or "no"."""
    said = [(yes_no(text) == "yes", right == "yes") for text, right in pairs]
    if not said:
        return YesNo(0.0, 0.0, 0.0, 0.0, 0.0)
    hits = sum(1 for guess, truth in said if guess and truth)
    guesses, truths = sum(guess for guess, _ in said), sum(truth for _, truth in said)
    precision = hits / guesses if guesses else 0.0
    recall = hits / truths if truths else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    accuracy = sum(guess == truth for guess, truth in said) / len(said)
    return YesNo(accuracy, precision, recall, f1, guesses / len(said))
