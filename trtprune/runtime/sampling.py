"""Choosing the next token from logits, in NumPy; the filters are those of transformers, in its order.

Nothing here knows of batches: a row has its own settings and its own random numbers, so what it draws does not
depend on which other rows run beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trtprune.errors import BackendError, InputError

__all__ = ["Sampler", "Sampling", "filter_logits"]


@dataclass(frozen=True)
class Sampling:
    """How to choose. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Checks the ranges; raises InputError naming the flag."""
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"--temperature {self.temperature}: must be 0 (greedy) or above")
        if self.top_k < 0:
            raise InputError(f"--top-k {self.top_k}: must be 0 (off) or above")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p}: must be above 0 and at most 1 (off)")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise InputError(f"--repetition-penalty {self.repetition_penalty}: must be above 0; 1 is off")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed}: out of range", hint="0 to 2**63 - 1")


def filter_logits(logits: np.ndarray, sampling: Sampling, seen: np.ndarray | None = None) -> np.ndarray:
    """Logits after repetition penalty, temperature, top-k and top-p, in this order.

    Args:
        logits: float32 [V].
        sampling: The settings; with ``temperature`` 0 only the penalty is applied.
        seen: Token ids of prompt and answer so far; each is penalised once, however often it occurs.

    Returns:
        A new float32 [V]; what is filtered out is -inf.
    """
    scores = logits.astype(np.float32, copy=True)
    if sampling.repetition_penalty != 1.0 and seen is not None and seen.size:
        ids = np.unique(seen)
        penalty = np.float32(sampling.repetition_penalty)
        chosen = scores[ids]
        scores[ids] = np.where(chosen < 0, chosen * penalty, chosen / penalty)
    if sampling.temperature == 0:
        return scores
    scores /= np.float32(sampling.temperature)
    if 0 < sampling.top_k < scores.size:
        # Ties with the k-th stay in, as in transformers.
        limit = np.partition(scores, scores.size - sampling.top_k)[scores.size - sampling.top_k]
        scores[scores < limit] = -np.inf
    if sampling.top_p < 1:
        order = np.argsort(scores, kind="stable")
        total = np.cumsum(_softmax(scores[order]), dtype=np.float32)
        drop = total <= np.float32(1 - sampling.top_p)
        drop[-1] = False
        scores[order[drop]] = -np.inf
    return scores


class Sampler:
    """Chooses the tokens of one row.

    Args:
        sampling: Settings; without a seed the draws differ from run to run.
        prompt: int64 ids of the prompt, for the repetition penalty.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int] | np.ndarray = ()) -> None:
        self.sampling = sampling
        self._seen = np.unique(np.asarray(prompt, np.int64))
        key = np.random.SeedSequence(sampling.seed).generate_state(2, np.uint64)
        self._random = np.random.Generator(np.random.Philox(key=key))

    def choose(self, logits: np.ndarray) -> int:
        """The next token for float32 [V] logits; ties go to the lower id.

        Raises:
            BackendError: if the largest logit is not finite: the model computed NaN or overflowed.
        """
        if not np.isfinite(logits.max()):  # NaN anywhere, +inf, or nothing but -inf
            raise BackendError("the model's logits are not finite numbers", hint="build with --dtype float32")
        scores = filter_logits(logits, self.sampling, self._seen)
        if self.sampling.temperature == 0:
            token = int(np.argmax(scores))
        else:
            # Inverse of the cumulative distribution in float64, so that one draw a token is all that is used up.
            total = np.cumsum(_softmax(scores.astype(np.float64)))
            place = self._random.random() * total[-1]
            token = int(np.searchsorted(total, place, side="right"))
            if token >= scores.size or scores[token] == -np.inf:
                token = int(np.argmax(scores))
        if self.sampling.repetition_penalty != 1.0:
            self._seen = np.union1d(self._seen, [token])
        return token


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
