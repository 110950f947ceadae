"""One run of requests through the chain, from pictures to results.

Decides nothing about tensors (``chain``) or tokens (``sampling``): it brings the parts together row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trtprune.errors import InputError
from trtprune.runtime.chain import Clock, Features, Layout, Row
from trtprune.runtime.prompt import Detokenizer
from trtprune.runtime.result import Request, Result
from trtprune.runtime.sampling import Sampler, Sampling
from trtprune.text.template import Turn

if TYPE_CHECKING:
    import numpy as np

    from trtprune.runtime.vlm import Vlm

__all__ = ["Answer", "Batch", "Stream", "check_stop", "turns_of"]


def turns_of(prompt: str, images: int, system: str | None) -> list[Turn]:
    """The turns of a single question."""
    if not isinstance(prompt, str):
        raise InputError(f"the prompt must be text, not {type(prompt).__name__}")
    first = [] if system is None else [Turn("system", system)]
    return [*first, Turn("user", prompt, images)]


def check_stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple; raises InputError for an empty one."""
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(text, str) and text for text in found):
        raise InputError("--stop: must be a text that is not empty")
    return found


class Answer:
    """A row while it is answered, with the text it has so far.

    Args:
        vlm: Whose tokenizer and end-of-sequence ids count.
        layout: The row's prompt.
        prompt_ids: int64 ids of the prompt, for the repetition penalty.
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
        self._eos = frozenset(() if ignore_eos else vlm.config.model.eos_token_ids)
        self._pieces: list[str] = []
        self.kept = kept
        self.segment_tokens: list[list[int]] = []
        self.text: Detokenizer = vlm.encoder.detokenizer(stop)
        # The embeddings can be large, in a device's memory: once they are computed on, nobody needs them.
        bare = replace(layout, embeds=())
        # transformers penalises every id of the prompt, the image placeholder's too.
        self.row = Row(bare, max_new_tokens, Sampler(sampling, prompt_ids), self._on_token)

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
        max_new_tokens: int,
        sampling: Sampling,
        stop: str | Sequence[str] | None,
        ignore_eos: bool = False,
    ) -> None:
        self._vlm = vlm
        self._ignore_eos = ignore_eos
        self._stop = check_stop(stop)
        self._requests = []
        for request in requests:
            budget = vlm.chain.check_keep(keep if request.keep is None else request.keep)
            longest = max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
            if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
                raise InputError(f"--max-new-tokens {longest}: must be at least 1")
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
        for prompt, (_, images, keep, longest, sampling) in zip(prompts, self._requests, strict=True):
            features: list[Features] = [next(found) for _ in images]
            embeds, kept, cut = vlm.cut(prompt, features, keep, sampling.seed or 0, clock)
            layout = vlm.lay_out(prompt, embeds, cut, kept, keep)
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

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._pieces = self._run()

    def _run(self) -> Iterator[str]:
        for _ in self._batch.steps():
            piece = self._batch.answers[0].take()
            if piece:
                yield piece

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
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
