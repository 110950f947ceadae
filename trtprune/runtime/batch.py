"""One run of requests through the chain, from pictures to results.

Decides nothing about tensors (``chain``) or tokens (``sampling``): it brings the parts together row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trtprune.arguments import arg, text_of, whole
from trtprune.errors import InputError
from trtprune.runtime.chain import Clock, Features, Layout, Row
from trtprune.runtime.prompt import Detokenizer
from trtprune.runtime.result import Request, Result
from trtprune.runtime.sampling import Sampler, Sampling
from trtprune.text.template import Turn

if TYPE_CHECKING:
    from trtprune.runtime.vlm import Vlm

__all__ = ["MAX_NEW_TOKENS", "Answer", "Batch", "Stream", "answer_length", "check_stop", "turns_of"]

MAX_NEW_TOKENS = 64
"""Longest answer, where neither caller nor checkpoint say."""


def turns_of(prompt: str, images: int, system: str | None) -> list[Turn]:
    """The turns of a single question."""
    first = [] if system is None else [Turn("system", text_of("system", system))]
    return [*first, Turn("user", text_of("prompt", prompt), images)]


def check_stop(stop: str | Sequence[str] | None, default: Sequence[str] = ()) -> tuple[str, ...]:
    """Stop strings as a tuple; those of ``default`` for None.

    Raises:
        InputError: for what is no text, and for an empty one.
    """
    if stop is None:
        return tuple(default)
    found = (stop,) if isinstance(stop, str) else stop
    if not isinstance(found, Sequence) or not all(isinstance(text, str) and text for text in found):
        raise InputError(f"{arg('stop', stop)}: must be a text that is not empty, or a list of such")
    return tuple(found)


def _as_transformers(vlm: Vlm, ids: np.ndarray) -> np.ndarray:
    """Ids of a prompt with the placeholder once for each visual token, as transformers' processor writes them."""
    model = vlm.config.model
    return np.repeat(ids, np.where(ids == model.image_token_id, model.visual_tokens, 1))


def answer_length(vlm: Vlm, given: int | None, ids: np.ndarray, layout: Layout) -> int:
    """Longest answer to a prompt: what the caller gives, else what the checkpoint says and has room, else 64 tokens.

    Args:
        vlm: What answers.
        given: By the caller.
        ids: Of the prompt.
        layout: Of the prompt.

    Raises:
        InputError: if the prompt is longer than what the checkpoint allows for prompt and answer together.
    """
    info = vlm.config.generation
    if given is not None:
        return given
    wanted = info.max_new_tokens
    if wanted is None and info.max_length is not None:
        whole_prompt = len(_as_transformers(vlm, ids))
        wanted = info.max_length - whole_prompt
        if wanted < 1:
            raise InputError(
                f"the prompt has {whole_prompt} tokens with all of its visual ones, and the checkpoint's "
                f"generation_config.json allows {info.max_length} with the answer",
                hint=f"{arg('max_new_tokens', MAX_NEW_TOKENS)} goes before that",
            )
    if wanted is None:
        return MAX_NEW_TOKENS
    return max(1, min(wanted, vlm.chain.room(layout)))


class Answer:
    """A row while it is answered, with the text it has so far.

    Args:
        vlm: Whose tokenizer and end-of-sequence ids count.
        layout: The row's prompt.
        prompt_ids: int64 ids of the prompt, for settings that look at what was said.
        kept: Kept indices of each image.
        max_new_tokens: Longest answer.
        sampling: How to choose.
        stop: Texts that end it.
        ignore_eos: Go on behind an end-of-sequence token, for measurements of a fixed length.
    """

    def __init__(
        self,
        vlm: Vlm,
        layout: Layout,
        prompt_ids: np.ndarray,
        kept: Sequence[np.ndarray],
        max_new_tokens: int,
        sampling: Sampling,
        stop: Sequence[str],
        ignore_eos: bool = False,
    ) -> None:
        self._config = vlm.config
        eos = () if ignore_eos else vlm.config.model.eos_token_ids
        self._eos = frozenset(eos)
        self._pieces: list[str] = []
        self.kept = kept
        self.segment_tokens: list[list[int]] = []
        self.text: Detokenizer = vlm.encoder.detokenizer(stop)
        # The embeddings can be large, in a device's memory: once they are computed on, nobody needs them.
        bare = replace(layout, embeds=())
        # transformers penalises every id of the prompt, the image placeholder's too.
        sampler = Sampler(sampling, _as_transformers(vlm, prompt_ids), eos, max_new_tokens)
        self.row = Row(bare, max_new_tokens, sampler, self._on_token)

    def _on_token(self, token: int) -> str | None:
        self._pieces.append(self.text.add(token))
        return "stop" if token in self._eos or self.text.stopped else None

    def take(self) -> str:
        """Text that became certain since the last call."""
        if self.row.finish_reason is not None:
            self._pieces.append(self.text.finish())
        piece = "".join(self._pieces)
        self._pieces.clear()
        return piece

    def result(self, clock: Clock, cache_bytes: int) -> Result:
        """The answer, when the row is done."""
        assert self.row.finish_reason is not None
        timings = clock.read()
        steps = len(self.row.token_ids) - 1
        rate = 1000 * steps / timings["decode"] if steps and timings["decode"] else 0.0
        return Result(
            text=self.text.text,
            token_ids=self.row.token_ids,
            finish_reason=self.row.finish_reason,
            method=self._config.pruning.method,
            visual_tokens=self._config.model.visual_tokens * len(self.kept),
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
        """Visual tokens that a layer processed and cached, on average over the layers; of all images together."""
        if not self.segment_tokens:
            return float(sum(len(indices) for indices in self.kept))
        layers = self._config.kv.segment_layers
        tokens = sum(n * count for counts in self.segment_tokens for n, count in zip(layers, counts, strict=True))
        return round(tokens / sum(layers), 3)


class Batch:
    """Requests that run side by side.

    Args:
        vlm: What answers.
        requests: A row each.
        keep, max_new_tokens, sampling: For the requests that do not say themselves.
        stop: Texts that end an answer.
        ignore_eos: As for :class:`Answer`.

    Raises:
        InputError: for a setting out of range; what is wrong with a picture or prompt shows in :meth:`steps`.
    """

    def __init__(
        self,
        vlm: Vlm,
        requests: Sequence[Request],
        *,
        keep: int | None,
        max_new_tokens: int | None,
        sampling: Sampling,
        stop: str | Sequence[str] | None,
        ignore_eos: bool = False,
    ) -> None:
        self._vlm = vlm
        self._ignore_eos = ignore_eos
        # A measurement of a fixed length is not to be cut short by the checkpoint's own texts either.
        self._stop = check_stop(stop, () if ignore_eos else vlm.config.generation.stop_strings)
        self._requests = []
        for request in requests:
            budget = vlm.chain.check_keep(keep if request.keep is None else request.keep)
            longest = max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
            if longest is not None:
                longest = whole("max_new_tokens", longest, 1)
            own = sampling if request.seed is None else replace(sampling, seed=request.seed)
            self._requests.append((request, vlm.pictures(request.images), budget, longest, own))
        self.answers: list[Answer] = []
        self.results: list[Result] = []

    def steps(self) -> Iterator[None]:
        """Runs everything; yields after each round of tokens.  Afterwards ``results`` is filled."""
        if not self._requests:
            return
        vlm, clock = self._vlm, Clock()
        vlm.chain.check_batch(len(self._requests))
        # 1. The prompts first: they are cheap, and a bad one should not cost a look at the pictures.
        with clock.stage("preprocess"):
            prompts = [
                vlm.encoder.encode(turns_of(request.prompt, len(images), request.system), raw=request.raw_prompt)
                for request, images, *_ in self._requests
            ]
        # 2. All pictures of all rows, each once.
        found = iter(vlm.features([image for _, images, *_ in self._requests for image in images], clock))
        # 3. Select, and lay the rows out.
        layouts: list[Layout] = []
        for prompt, (_, images, keep, given, sampling) in zip(prompts, self._requests, strict=True):
            features: list[Features] = [next(found) for _ in images]
            embeds, kept, cut = vlm.cut(prompt, features, keep, sampling.seed or 0, clock)
            layout = vlm.lay_out(prompt, embeds, cut, kept, keep)
            longest = answer_length(vlm, given, prompt.ids, layout)
            vlm.chain.check(layout, longest)
            layouts.append(layout)
            answer = Answer(vlm, layout, prompt.ids, kept, longest, sampling, self._stop, self._ignore_eos)
            self.answers.append(answer)
        rows = [answer.row for answer in self.answers]
        # 4. One cache for all of them, as long as the longest row can become.
        cache = vlm.chain.pool.take(len(rows), max(len(row.layout.ids) + row.max_new_tokens - 1 for row in rows))
        try:
            with clock.stage("prefill"):
                logits = vlm.chain.prefill(layouts, cache)
            for answer, selected in zip(self.answers, vlm.chain.selected(cache), strict=False):
                answer.kept, answer.segment_tokens = selected
            yield from vlm.chain.decode(rows, logits, cache, clock)
            self.results = [answer.result(clock, cache.nbytes // len(rows)) for answer in self.answers]
        finally:
            vlm.chain.pool.give_back(cache)


class Stream:
    """Pieces of an answer as they come; after the last one, :attr:`result` holds the whole."""

    def __init__(self, vlm: Vlm, batch: Batch) -> None:
        self._vlm, self._batch = vlm, batch
        self._pieces = self._run()

    def _run(self) -> Iterator[str]:
        for _ in self._batch.steps():
            piece = self._batch.answers[0].take()
            if piece:
                yield piece

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        # Between two pieces the model is free for other calls, of this thread or another.
        with self._vlm.using():
            return next(self._pieces)

    @property
    def result(self) -> Result:
        """The finished answer.

        Raises:
            RuntimeError: before the last piece was taken.
        """
        if not self._batch.results:
            raise RuntimeError("the stream is not finished: take all of its pieces first")
        return self._batch.results[0]
