"""One row's answer: its settings, its growing text, and the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from trtprune.arguments import arg, whole
from trtprune.errors import InputError
from trtprune.runtime.generation import Generation
from trtprune.runtime.result import Result
from trtprune.runtime.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from trtprune.engine_dir import EngineDir, GenerationInfo
    from trtprune.runtime.clock import Clock
    from trtprune.runtime.layout import Layout
    from trtprune.runtime.prompt import Detokenizer, Prompt, PromptEncoder

__all__ = [
    "MAX_NEW_TOKENS",
    "Answer",
    "AnswerArguments",
    "AnswerSettings",
    "check_shortest",
    "check_stop",
    "unpruned_ids",
]

MAX_NEW_TOKENS = 64
"""Longest answer in tokens, if neither caller nor checkpoint set one."""


def check_stop(stop: str | Sequence[str] | None, default: Sequence[str] = ()) -> tuple[str, ...]:
    """Stop strings as a tuple; those of ``default`` for None.

    Raises:
        InputError: for a value that is not text, and for an empty text.
    """
    if stop is None:
        return tuple(default)
    texts = (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
        raise InputError(f"{arg('stop', stop)}: must be a text that is not empty, or a list of such")
    return tuple(texts)


def check_shortest(shortest: int, longest: int) -> None:
    """Raises InputError for an answer that would have to be longer than it may be."""
    if shortest > longest:
        raise InputError(
            f"{arg('min_new_tokens', shortest)}: above {longest}, the longest answer in tokens",
            hint=f"a smaller one, or a larger {arg('max_new_tokens')}",
        )


class AnswerArguments(TypedDict, total=False):
    """The settings of an answer as keyword arguments of a call.

    One that is None or missing, and each setting without an argument here, comes from the checkpoint's
    ``generation_config.json``, read as in transformers; see :class:`trtprune.engine_dir.GenerationInfo`.

    Attributes:
        max_new_tokens: Longest answer in tokens; 64, if the checkpoint does not set one either.
        min_new_tokens: Shortest answer in tokens: before it no end-of-sequence token is chosen, and texts of ``stop``
            within these tokens do not end it.
        temperature: 0 always takes the likeliest token; above 0, tokens are drawn, whatever the default.
        top_k: Number of likeliest tokens for draws; 0 is off, and 50 is transformers' default.
        top_p: Total probability of the likeliest tokens for draws; 1 is off.
        repetition_penalty: Above 1 makes earlier tokens less likely.
        seed: Seed of draws, for repeatable ones.
        stop: Texts that end the answer; they are not part of it.  An empty list also disables the checkpoint's.
        ignore_eos: Whether the answer continues behind an end-of-sequence token, for measurements.
    """

    max_new_tokens: int | None
    min_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool


@dataclass(frozen=True)
class AnswerSettings:
    """Settings of an answer.

    Attributes:
        sampling: Settings of the choice of tokens.
        max_new_tokens: Longest answer; None: the checkpoint's, as far as there is room.
        stop: Texts that end the answer.
        ignore_eos: Whether the answer continues behind an end-of-sequence token, for measurements of a fixed length.
        min_new_tokens: Shortest answer.
    """

    sampling: Sampling
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_new_tokens: int = 0

    @classmethod
    def of(
        cls,
        checkpoint: GenerationInfo,
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
    ) -> AnswerSettings:
        """A caller's settings, with the checkpoint's for those that are None.

        Raises:
            InputError: for a setting out of range.
        """
        shortest = 0 if min_new_tokens is None else whole("min_new_tokens", min_new_tokens, 0)
        sampling = Sampling.of(
            checkpoint if min_new_tokens is None else replace(checkpoint, min_new_tokens=shortest),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        longest = None if max_new_tokens is None else whole("max_new_tokens", max_new_tokens, 1)
        if longest is not None:
            check_shortest(shortest, longest)
        # In a measurement of a fixed length the checkpoint's own texts must not end an answer either.
        stops = check_stop(stop, () if ignore_eos else checkpoint.stop_strings)
        return cls(sampling, longest, stops, ignore_eos, shortest)


def unpruned_ids(prompt: Prompt, layout: Layout) -> np.ndarray:
    """Ids of a prompt with the placeholder once for each visual token, as transformers' processor writes them."""
    repeats = np.ones(len(prompt.ids), np.int64)
    repeats[list(prompt.image_positions)] = [length for lengths in layout.spans for length in lengths]
    return np.repeat(prompt.ids, repeats)


class Answer:
    """A row during its answer, with the text so far.

    Args:
        config: The engine directory, for end-of-sequence ids and sizes.
        encoder: The tokenizer for decoding.
        prompt: The row's prompt.
        layout: The prompt as the decoder reads it.
        max_new_tokens: Longest answer.
        settings: Settings of the answer.
    """

    def __init__(
        self,
        config: EngineDir,
        encoder: PromptEncoder,
        prompt: Prompt,
        layout: Layout,
        max_new_tokens: int,
        settings: AnswerSettings,
    ) -> None:
        self._config = config
        eos = () if settings.ignore_eos else config.model.eos_token_ids
        self._eos = frozenset(eos)
        self._pieces: list[str] = []
        self.kept: Sequence[np.ndarray] = layout.kept
        self.segment_tokens: list[list[int]] = []
        self.text: Detokenizer = encoder.detokenizer(settings.stop, settings.min_new_tokens)
        # The embeddings can be large, in a device's memory, and are not needed behind the prefill.
        bare = replace(layout, embeds=())
        # transformers penalises every id of the prompt, the image placeholder's too.
        sampler = Sampler(settings.sampling, unpruned_ids(prompt, layout), eos, max_new_tokens)
        self.row = Generation(bare, max_new_tokens, sampler, self._on_token)

    def _on_token(self, token: int) -> str | None:
        self._pieces.append(self.text.add(token))
        return "stop" if token in self._eos or self.text.stopped else None

    @property
    def tokens(self) -> int:
        """Tokens of the row in the cache at the end; the answer's last one is never fed back."""
        return len(self.row.layout.ids) + self.row.max_new_tokens - 1

    def take(self) -> str:
        """Text that is final since the last call."""
        if self.row.finish_reason is not None:
            self._pieces.append(self.text.finish())
        piece = "".join(self._pieces)
        self._pieces.clear()
        return piece

    def result(self, clock: Clock, cache_bytes: int) -> Result:
        """The result of a finished row."""
        assert self.row.finish_reason is not None
        timings = clock.read()
        steps = len(self.row.token_ids) - 1
        rate = 1000 * steps / timings["decode"] if steps and timings["decode"] else 0.0
        return Result(
            text=self.text.text,
            token_ids=self.row.token_ids,
            finish_reason=self.row.finish_reason,
            method=self._config.pruning.method,
            visual_tokens=sum(self.row.layout.visual_tokens),
            kept_tokens=sum(len(indices) for indices in self.kept),
            kept_indices=[[int(i) for i in indices] for indices in self.kept],
            timings=timings,
            tokens_per_second=round(rate, 3),
            kv_cache_bytes=cache_bytes,
            prompt_tokens=len(self.row.layout.ids),
            segment_tokens=self.segment_tokens,
            tokens_per_layer=self._per_layer(),
        )

    def _per_layer(self) -> float:
        """Visual tokens per layer, processed and cached, on average over the layers; for all images together."""
        if not self.segment_tokens:
            return float(sum(len(indices) for indices in self.kept))
        layers = self._config.kv.segment_layers
        tokens = sum(n * count for counts in self.segment_tokens for n, count in zip(layers, counts, strict=True))
        return round(tokens / sum(layers), 3)
