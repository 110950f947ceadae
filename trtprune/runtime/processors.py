"""transformers' logits processors in NumPy, one class each: they change logits before a token is chosen.

Each is called with the ids so far, int64 [S] (the prompt, with its placeholder once for each visual token of an image,
and the answer), and the scores, float32 [V]; it returns scores, the same array or a new one.  ``-inf`` excludes
a token.  Names, order and arithmetic are transformers', so that a checkpoint's settings have the same meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = [
    "BadWords",
    "BeginSuppress",
    "EncoderNoRepeatNGram",
    "Epsilon",
    "Eta",
    "ExponentialDecay",
    "ForcedBos",
    "ForcedEos",
    "LogitsProcessor",
    "MinLength",
    "MinP",
    "NoRepeatNGram",
    "RemoveInvalid",
    "RepetitionPenalty",
    "SequenceBias",
    "Suppress",
    "Temperature",
    "TopH",
    "TopK",
    "TopP",
    "Typical",
]

NEVER = np.float32(-np.inf)
TOP_H_TOKENS = 100


class LogitsProcessor(Protocol):
    """One step between logits and choice."""

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Scores float32 [V] for the ids so far, int64 [S]."""


class SequenceBias:
    """Adds to the logit of a sequence's last id, if the ids so far end with the rest of the sequence.

    Args:
        biases: Each sequence of ids once, and the number to add.
    """

    def __init__(self, biases: Sequence[tuple[Sequence[int], float]]) -> None:
        by_length: dict[int, list[tuple[Sequence[int], float]]] = {}
        for sequence, bias in biases:
            by_length.setdefault(len(sequence), []).append((sequence, bias))
        self._groups = [
            (np.array([sequence for sequence, _ in group], np.int64), np.array([bias for _, bias in group], np.float32))
            for group in by_length.values()
        ]

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        bias = np.zeros_like(scores)
        for sequences, values in self._groups:
            before = sequences.shape[1] - 1
            if before > len(ids):
                continue
            said = (sequences[:, :-1] == ids[len(ids) - before :]).all(axis=1)
            np.add.at(bias, sequences[said, -1], values[said])
        return scores + bias


class BadWords(SequenceBias):
    """Excludes the last id of a sequence if the ids so far end with its rest; an end of sequence alone is not one."""

    def __init__(self, words: Sequence[Sequence[int]], eos: Sequence[int]) -> None:
        meant = [word for word in dict.fromkeys(map(tuple, words)) if not (len(word) == 1 and word[0] in eos)]
        super().__init__([(word, -np.inf) for word in meant])


class RepetitionPenalty:
    """Makes earlier ids less likely (above 1) or likelier (below 1), once each.

    Args:
        penalty: Divides a positive logit and multiplies a negative one.
        only: Ids that count; None: all ids so far.
    """

    def __init__(self, penalty: float, only: np.ndarray | None = None) -> None:
        self._penalty, self._only = np.float32(penalty), only

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        said = np.unique(ids if self._only is None else self._only)
        said = said[said < scores.size]  # a placeholder's id may be above the vocabulary
        chosen, changed = scores[said], scores.copy()
        changed[said] = np.where(chosen < 0, chosen * self._penalty, chosen / self._penalty)
        return changed


@dataclass(frozen=True)
class NoRepeatNGram:
    """Excludes ids that would repeat a run of ``size`` ids."""

    size: int

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _without_repeats(ids, ids, self.size, scores)


@dataclass(frozen=True)
class EncoderNoRepeatNGram:
    """Excludes ids that would repeat a run of ``size`` ids of the prompt."""

    size: int
    prompt: np.ndarray

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _without_repeats(self.prompt, ids, self.size, scores)


def _without_repeats(said: np.ndarray, ids: np.ndarray, size: int, scores: np.ndarray) -> np.ndarray:
    if len(ids) + 1 < size or len(said) < size:
        return scores
    windows = np.lib.stride_tricks.sliding_window_view(said, size)
    last = ids[len(ids) + 1 - size :]
    return _without(scores, windows[(windows[:, :-1] == last).all(axis=1), -1])


@dataclass(frozen=True)
class MinLength:
    """Excludes the end of the sequence before a length of ``length`` ids."""

    length: int
    eos: Sequence[int]

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _without(scores, self.eos) if len(ids) < self.length else scores


@dataclass(frozen=True)
class ForcedBos:
    """Forces ``token`` behind a prompt of a single id."""

    token: int

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _only(scores, [self.token]) if len(ids) == 1 else scores


@dataclass(frozen=True)
class ForcedEos:
    """Forces one of ``tokens`` as the last id of ``length``."""

    length: int
    tokens: Sequence[int]

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _only(scores, self.tokens) if len(ids) == self.length - 1 else scores


@dataclass(frozen=True)
class RemoveInvalid:
    """Turns NaN into 0 and infinities into the largest finite numbers."""

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        largest = float(np.finfo(np.float32).max)
        return np.nan_to_num(scores, nan=0.0, posinf=largest, neginf=-largest)


@dataclass(frozen=True)
class ExponentialDecay:
    """Makes the end of the sequence likelier with each id after the first ``start``."""

    start: int
    factor: float
    eos: Sequence[int]

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        behind = len(ids) - self.start
        if behind <= 0:
            return scores
        places = sorted({i for i in self.eos if 0 <= i < scores.size})
        chosen, changed = scores[places], scores.copy()
        try:
            grown = np.float32(min(self.factor**behind - 1, float(np.finfo(np.float32).max)))
        except OverflowError:
            grown = np.finfo(np.float32).max
        with np.errstate(invalid="ignore", over="ignore"):
            changed[places] = np.where(np.isfinite(chosen), chosen + np.abs(chosen) * grown, chosen)
        return changed


@dataclass(frozen=True)
class Suppress:
    """Excludes tokens."""

    tokens: Sequence[int]

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _without(scores, self.tokens)


@dataclass(frozen=True)
class BeginSuppress:
    """Excludes tokens at a length of ``begin`` ids: as the first one of the answer."""

    tokens: Sequence[int]
    begin: int

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _without(scores, self.tokens) if len(ids) == self.begin else scores


# -- before a draw


@dataclass(frozen=True)
class Temperature:
    """Divides the logits."""

    temperature: float

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return scores / np.float32(self.temperature)


@dataclass(frozen=True)
class TopH:
    """Keeps the likeliest tokens whose entropy is below a fraction of the whole entropy."""

    share: float

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        order = np.argsort(-scores, kind="stable")[:TOP_H_TOKENS]
        chances = softmax(scores[order])
        with np.errstate(divide="ignore", invalid="ignore"):  # an excluded token gives NaN and is not kept
            terms = -chances * np.log(chances)
        keep = np.cumsum(terms, dtype=np.float32) <= np.float32(np.nansum(terms) * np.float32(self.share))
        keep[0] = True
        changed = np.full_like(scores, NEVER)
        changed[order[keep]] = scores[order[keep]]
        return changed


@dataclass(frozen=True)
class TopK:
    """Keeps the ``count`` likeliest tokens, and ties with the last of them."""

    count: int

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if self.count >= scores.size:
            return scores
        place = scores.size - self.count
        return np.where(scores < np.partition(scores, place)[place], NEVER, scores)


@dataclass(frozen=True)
class TopP:
    """Keeps the likeliest tokens that together have this probability."""

    share: float

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        order = np.argsort(scores, kind="stable")
        total = np.cumsum(softmax(scores[order]), dtype=np.float32)
        drop = total <= np.float32(1 - self.share)
        drop[-1] = False
        return _without(scores, order[drop])


@dataclass(frozen=True)
class MinP:
    """Keeps tokens with at least this fraction of the likeliest one's probability."""

    share: float

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        chances = softmax(scores)
        drop = chances < np.float32(self.share) * chances.max()
        drop[np.argmax(chances)] = False
        return np.where(drop, NEVER, scores)


@dataclass(frozen=True)
class Typical:
    """Keeps the tokens whose surprise is nearest to the expected one, up to a total probability."""

    share: float

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            logs = scores - scores.max()
            logs = logs - np.log(np.exp(logs).sum())
            entropy = -np.nansum(logs * np.exp(logs))
        distance = np.abs(-logs - entropy)
        order = np.argsort(distance, kind="stable")
        total = np.cumsum(softmax(scores[order]), dtype=np.float32)
        last = min(int((total < np.float32(self.share)).sum()), scores.size - 1)
        drop = distance[order] > distance[order[last]]
        drop[0] = False
        return _without(scores, order[drop])


@dataclass(frozen=True)
class Epsilon:
    """Keeps tokens of at least this probability."""

    cutoff: float

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _above(scores, np.float32(self.cutoff))


@dataclass(frozen=True)
class Eta:
    """Keeps tokens above a probability that is lower for a flatter distribution."""

    cutoff: float

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        chances = softmax(scores)
        entropy = -np.sum(chances * np.log(np.maximum(chances, np.finfo(np.float32).tiny)))
        cutoff = np.float32(self.cutoff)
        return _above(scores, min(cutoff, np.sqrt(cutoff) * np.exp(-entropy)))


# -- shared functions


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities [V] of scores, in their dtype."""
    weights = np.exp(scores - scores.max())
    found: np.ndarray = weights / weights.sum()
    return found


def _above(scores: np.ndarray, limit: np.floating) -> np.ndarray:
    return np.where((softmax(scores) < limit) & (scores < scores.max()), NEVER, scores)


def _without(scores: np.ndarray, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    changed, ids = scores.copy(), np.asarray(tokens, np.int64)
    changed[ids[(ids >= 0) & (ids < scores.size)]] = NEVER
    return changed


def _only(scores: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    changed = np.full_like(scores, NEVER)
    changed[list(tokens)] = 0
    return changed
