"""A checkpoint's settings of generation, as stored in the ``config.json`` of an engine directory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

__all__ = ["DRAWS", "MAX_IDS", "SOURCES", "GenerationInfo"]

SOURCES = ("generation_config.json", "config.json", "ignored")
"""Origins of the settings: a file of that name, or none if the build ignored it."""
MAX_IDS = 100_000
"""The largest number of token ids in one setting; each costs time for every token of an answer."""
MAX_LENGTH = 1 << 40
DRAWS = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings that act only if tokens are drawn at random."""


@dataclass(frozen=True)
class GenerationInfo:
    """The settings of ``generation_config.json`` that decide which token is next, with transformers' defaults.

    The names are transformers'.  The filters of a draw (``temperature`` to ``eta_cutoff``) act only if ``do_sample`` is
    true or the caller gives a temperature; the others act on greedy decoding, too.

    Attributes:
        source: One of :data:`SOURCES`.
        do_sample: Whether tokens are drawn by default.
        max_new_tokens, max_length: Longest answer, and longest prompt and answer together with all visual tokens of
            the images; None: not set.
        min_length: Shortest prompt and answer together, counted the same way; ``min_new_tokens`` is the shortest
            answer.
        sequence_bias: Pairs of a sequence of ids and the number added to the logit of its last one.
        exponential_decay_length_penalty: Number of tokens before it begins, and its factor.
        stop_strings: Texts that end an answer.
    """

    source: str = SOURCES[0]
    do_sample: bool = False
    temperature: float = 1.0
    top_h: float | None = None
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    encoder_repetition_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def wrong(self, vocab_size: int) -> str | None:
        """The first setting that a vocabulary of that size cannot have, as a text with its name first; or None."""
        return next(self._wrong(vocab_size), None)

    def said(self) -> dict[str, object]:
        """The settings that differ from transformers' defaults, by name; without ``source``."""
        plain = GenerationInfo()
        names = [field.name for field in fields(self) if field.name != "source"]
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(plain, name)}

    def rules(self) -> dict[str, object]:
        """The settings of :meth:`said` that act on greedy decoding to a length that the caller sets."""
        others = {"do_sample", "max_length", "max_new_tokens", *DRAWS}
        return {name: value for name, value in self.said().items() if name not in others}

    def _wrong(self, vocab_size: int) -> Iterator[str]:
        if self.source not in SOURCES:
            yield f"source must be one of {', '.join(SOURCES)}"
        for name in ("repetition_penalty", "encoder_repetition_penalty"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                yield f"{name} must be above 0"
        for name in ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens", "top_k"):
            if not 0 <= (getattr(self, name) or 0) <= MAX_LENGTH:
                yield f"{name} must be between 0 and {MAX_LENGTH}"
        for name in ("max_length", "max_new_tokens"):
            if not 1 <= (1 if getattr(self, name) is None else getattr(self, name)) <= MAX_LENGTH:
                yield f"{name} must be between 1 and {MAX_LENGTH}"
        yield from self._wrong_draws()
        yield from self._wrong_ids(vocab_size)
        decay = self.exponential_decay_length_penalty
        if decay is not None and not (0 <= decay[0] <= MAX_LENGTH and math.isfinite(decay[1]) and decay[1] > 0):
            yield "exponential_decay_length_penalty must be a number of tokens and a factor above 0"
        if not all(self.stop_strings):
            yield "stop_strings must not hold an empty text"

    def _wrong_draws(self) -> Iterator[str]:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            yield "temperature must be above 0"
        if not 0 <= self.top_p <= 1:
            yield "top_p must be between 0 and 1"
        if not 0 <= self.min_p <= 1:
            yield "min_p must be between 0 and 1"
        if not 0 < self.typical_p <= 1:
            yield "typical_p must be above 0 and at most 1"
        if self.top_h is not None and not 0 < self.top_h <= 1:
            yield "top_h must be above 0 and at most 1"
        for name in ("epsilon_cutoff", "eta_cutoff"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name} must be at least 0 and below 1"

    def _wrong_ids(self, vocab_size: int) -> Iterator[str]:
        """Faults of ids without a token: transformers fails on some of them and ignores others; all are mistakes."""
        found = {
            "forced_bos_token_id": () if self.forced_bos_token_id is None else (self.forced_bos_token_id,),
            "forced_eos_token_id": self.forced_eos_token_id,
            "suppress_tokens": self.suppress_tokens,
            "begin_suppress_tokens": self.begin_suppress_tokens,
            "bad_words_ids": tuple(i for word in self.bad_words_ids for i in word),
            "sequence_bias": tuple(i for sequence, _ in self.sequence_bias for i in sequence),
        }
        for name, ids in found.items():
            if len(ids) > MAX_IDS:
                yield f"{name} must hold at most {MAX_IDS} ids"
            if any(not 0 <= i < vocab_size for i in ids):
                yield f"{name} must hold ids from 0 to {vocab_size - 1}"
        if not all(self.bad_words_ids) or not all(sequence for sequence, _ in self.sequence_bias):
            yield "bad_words_ids and sequence_bias must not hold an empty sequence"
        if not all(math.isfinite(bias) for _, bias in self.sequence_bias):
            yield "sequence_bias must hold finite numbers"
        suppressed = set(self.suppress_tokens)
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            if found[name] and suppressed.issuperset(found[name]):
                yield f"suppress_tokens must not hold all of {name}"
