"""Choosing the next token from logits, in NumPy; the filters are those of transformers, in its order.

A row has its own settings and its own random numbers, so its draws do not depend on the other rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trtprune.arguments import arg, real, whole
from trtprune.engine_dir.generation import GenerationInfo
from trtprune.errors import BackendError, InputError
from trtprune.runtime import processors
from trtprune.runtime.processors import LogitsProcessor, softmax

__all__ = ["NO_LIMIT", "Sampler", "Sampling", "filter_logits"]

NO_LIMIT = 1 << 62
"""Longest answer without a limit."""


@dataclass(frozen=True)
class Sampling:
    """Settings of the choice. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off.

    ``checkpoint`` has the settings without an argument; the four here have priority over its own.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    checkpoint: GenerationInfo = field(default_factory=GenerationInfo)

    def __post_init__(self) -> None:
        """Checks types and ranges; raises InputError naming the argument."""
        for name in ("temperature", "top_p", "repetition_penalty"):
            object.__setattr__(self, name, real(name, getattr(self, name)))
        object.__setattr__(self, "top_k", whole("top_k", self.top_k, 0, " (off)"))
        if self.temperature < 0:
            raise InputError(f"{arg('temperature', self.temperature)}: must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise InputError(f"{arg('top_p', self.top_p)}: must be above 0 and at most 1 (off)")
        if self.repetition_penalty <= 0:
            raise InputError(f"{arg('repetition_penalty', self.repetition_penalty)}: must be above 0; 1 is off")
        if self.seed is not None:
            object.__setattr__(self, "seed", whole("seed", self.seed, 0))
            if self.seed >= 2**63:
                raise InputError(f"{arg('seed', self.seed)}: out of range", hint="0 to 2**63 - 1")

    @classmethod
    def of(
        cls,
        checkpoint: GenerationInfo,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Sampling:
        """A caller's settings, with the checkpoint's for those that are None.

        As in transformers, a caller's temperature makes a greedy checkpoint draw, with its own ``top_k`` (50 without
        one) and ``top_p``; 0 is greedy, whatever the checkpoint's settings.
        """
        if temperature is None:
            temperature = checkpoint.temperature if checkpoint.do_sample else 0.0
        return cls(
            temperature,
            checkpoint.top_k if top_k is None else top_k,
            # In transformers top_p = 0 keeps the likeliest token; the smallest number above 0 does the same.
            (checkpoint.top_p or math.ulp(0.0)) if top_p is None else top_p,
            checkpoint.repetition_penalty if repetition_penalty is None else repetition_penalty,
            seed,
            checkpoint,
        )

    def processors(self, prompt: np.ndarray, eos: Sequence[int], max_new_tokens: int) -> list[LogitsProcessor]:
        """The processors of an answer's logits, in transformers' order.

        Args:
            prompt: int64 ids of the prompt, with a placeholder for each visual token of an image.
            eos: Ids that end the answer.
            max_new_tokens: Longest answer.
        """
        return [*self._rules(prompt, eos, max_new_tokens), *(self._filters() if self.temperature else ())]

    def _rules(self, prompt: np.ndarray, eos: Sequence[int], max_new_tokens: int) -> list[LogitsProcessor]:
        """The processors that also act on greedy decoding."""
        info, begin, found = self.checkpoint, len(prompt), list[LogitsProcessor]()
        shortest = info.min_length if info.min_new_tokens is None else begin + info.min_new_tokens
        if info.sequence_bias:
            found.append(processors.SequenceBias(info.sequence_bias))
        if info.encoder_repetition_penalty != 1:
            found.append(processors.RepetitionPenalty(1 / info.encoder_repetition_penalty, prompt))
        if self.repetition_penalty != 1:
            found.append(processors.RepetitionPenalty(self.repetition_penalty))
        if info.no_repeat_ngram_size:
            found.append(processors.NoRepeatNGram(info.no_repeat_ngram_size))
        if info.encoder_no_repeat_ngram_size:
            found.append(processors.EncoderNoRepeatNGram(info.encoder_no_repeat_ngram_size, prompt))
        if info.bad_words_ids:
            found.append(processors.BadWords(info.bad_words_ids, eos))
        if shortest and eos:
            found.append(processors.MinLength(shortest, eos))
        if info.forced_bos_token_id is not None:
            found.append(processors.ForcedBos(info.forced_bos_token_id))
        if info.forced_eos_token_id:
            found.append(processors.ForcedEos(begin + max_new_tokens, info.forced_eos_token_id))
        if info.remove_invalid_values:
            found.append(processors.RemoveInvalid())
        if info.exponential_decay_length_penalty is not None and eos:
            start, factor = info.exponential_decay_length_penalty
            found.append(processors.ExponentialDecay(start + begin, factor, eos))
        if info.suppress_tokens:
            found.append(processors.Suppress(info.suppress_tokens))
        if info.begin_suppress_tokens:
            late = begin <= 1 and info.forced_bos_token_id is not None
            found.append(processors.BeginSuppress(info.begin_suppress_tokens, begin + late))
        return found

    def _filters(self) -> list[LogitsProcessor]:
        """The processors before a draw."""
        info, found = self.checkpoint, list[LogitsProcessor]()
        if self.temperature != 1:
            found.append(processors.Temperature(self.temperature))
        if info.top_h is not None:
            found.append(processors.TopH(info.top_h))
        if self.top_k:
            found.append(processors.TopK(self.top_k))
        if self.top_p < 1:
            found.append(processors.TopP(self.top_p))
        if info.min_p:
            found.append(processors.MinP(info.min_p))
        if info.typical_p < 1:
            found.append(processors.Typical(info.typical_p))
        if info.epsilon_cutoff:
            found.append(processors.Epsilon(info.epsilon_cutoff))
        if info.eta_cutoff:
            found.append(processors.Eta(info.eta_cutoff))
        return found


def filter_logits(logits: np.ndarray, sampling: Sampling, seen: np.ndarray | None = None) -> np.ndarray:
    """The processed logits behind a prompt.

    Args:
        logits: float32 [V].
        sampling: The settings; with ``temperature`` 0, without the filters of draws.
        seen: int64 ids of the prompt.

    Returns:
        A new float32 [V]; -inf for excluded tokens.
    """
    ids = np.zeros(0, np.int64) if seen is None else np.asarray(seen, np.int64)
    scores = logits.astype(np.float32, copy=True)
    for process in sampling.processors(ids, (), NO_LIMIT):
        scores = process(ids, scores)
    return scores


class Sampler:
    """Chooses the tokens of one row.

    Args:
        sampling: Settings; without a seed, draws differ from run to run.
        prompt: int64 ids of the prompt, with a placeholder for each visual token of an image.
        eos: Ids that end the answer.
        max_new_tokens: Longest answer.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int] | np.ndarray = (),
        eos: Sequence[int] = (),
        max_new_tokens: int = NO_LIMIT,
    ) -> None:
        self.sampling = sampling
        self._ids = np.asarray(prompt, np.int64)
        self._processors = sampling.processors(self._ids, eos, max_new_tokens)
        key = np.random.SeedSequence(sampling.seed).generate_state(2, np.uint64)
        self._random = np.random.Generator(np.random.Philox(key=key))

    def choose(self, logits: np.ndarray) -> int:
        """The next token for float32 [V] logits; ties go to the lower id.

        Raises:
            BackendError: if the largest logit is not finite, because the model computed NaN or overflowed; or if the
                checkpoint's settings exclude every token of a draw.
        """
        checked = self.sampling.checkpoint.remove_invalid_values
        if not checked and not np.isfinite(logits.max()):  # NaN anywhere, +inf, or nothing but -inf
            hint = f"build with {arg('dtype', 'float32')}"
            raise BackendError("the model's logits are not finite numbers", hint=hint)
        scores = logits
        if self._processors:
            scores = logits.astype(np.float32, copy=False)
            for process in self._processors:
                scores = process(self._ids, scores)
        token = int(np.argmax(scores)) if self.sampling.temperature == 0 else self._draw(scores)
        if self._processors:
            self._ids = np.append(self._ids, token)
        return token

    def _draw(self, scores: np.ndarray) -> int:
        if not np.isfinite(scores.max()):
            raise BackendError(
                "the checkpoint's generation_config.json rules out every token, and nothing is left to draw from",
                hint=f"{arg('temperature', 0)}, or build with {arg('generation_config', 'ignore')}",
            )
        # Inverse of the cumulative distribution in float64, so that each token takes one random number.
        total = np.cumsum(softmax(scores.astype(np.float64)))
        place = self._random.random() * total[-1]
        token = int(np.searchsorted(total, place, side="right"))
        if token >= scores.size or scores[token] == -np.inf:
            token = int(np.argmax(scores))
        return token
