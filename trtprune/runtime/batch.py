"""One run of requests as a batch, from images to results.

No decisions about tensors or tokens here: each row goes through the stages of the ``pipeline``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trtprune.arguments import whole
from trtprune.runtime.answer import Answer, AnswerSettings
from trtprune.runtime.budget import Budget
from trtprune.runtime.clock import Clock
from trtprune.runtime.pipeline import turns_of

if TYPE_CHECKING:
    from trtprune.runtime.features import Features
    from trtprune.runtime.layout import Layout
    from trtprune.runtime.pictures import ImageInput
    from trtprune.runtime.pipeline import Pipeline
    from trtprune.runtime.result import Request, Result
    from trtprune.text.template import Turn

__all__ = ["Batch", "Stream"]


@dataclass(frozen=True)
class _Row:
    """A checked request with its own settings."""

    request: Request
    images: list[ImageInput | Features]
    budget: Budget
    settings: AnswerSettings


class Batch:
    """Requests that run as one batch.

    Args:
        pipeline: The stages of the model.
        requests: One for each row.
        settings: Settings of answers, for requests without their own.
        keep, keep_ratio: The budget of each image, for requests without their own; None: the build's default.

    Raises:
        InputError: for a setting out of range; faults of images and prompts are raised by :meth:`steps`.
        BudgetError: for a budget that the build does not serve.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        requests: Sequence[Request],
        settings: AnswerSettings,
        *,
        keep: int | None = None,
        keep_ratio: float | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._rows = []
        for request in requests:
            own_budget = request.keep is not None or request.keep_ratio is not None
            asked = (request.keep, request.keep_ratio) if own_budget else (keep, keep_ratio)
            budget = pipeline.budget(*asked)
            own = settings
            if request.max_new_tokens is not None:
                own = replace(own, max_new_tokens=whole("max_new_tokens", request.max_new_tokens, 1))
            if request.seed is not None:
                own = replace(own, sampling=replace(own.sampling, seed=request.seed))
            self._rows.append(_Row(request, pipeline.images(request.images), budget, own))
        self.answers: list[Answer] = []
        self.results: list[Result] = []

    def steps(self) -> Iterator[None]:
        """Runs the batch; yields after each round of tokens.  Afterwards ``results`` is complete."""
        if not self._rows:
            return
        pipeline, clock = self._pipeline, Clock()
        pipeline.check_batch(len(self._rows))
        # 1. The prompts first: they are cheap, and a bad one is reported before the vision tower runs.
        with clock.stage("preprocess"):
            prompts = [pipeline.encoder.encode(self._turns(row), raw=row.request.raw_prompt) for row in self._rows]
        # 2. All images of all rows, each once.
        images = [image for row in self._rows for image in row.images]
        together = [len(row.images) for row in self._rows for _ in row.images]
        features = iter(pipeline.features(images, clock, together))
        # 3. Select, and lay the rows out.
        layouts: list[Layout] = []
        for prompt, row in zip(prompts, self._rows, strict=True):
            seen = [next(features) for _ in row.images]
            with clock.stage("preprocess"):
                prompt = pipeline.written_out(prompt, self._turns(row), seen, raw=row.request.raw_prompt)
            embeds = pipeline.embed(prompt, clock)
            selection = pipeline.select(prompt, embeds, seen, row.budget, row.settings.sampling.seed or 0, clock)
            layouts.append(pipeline.lay_out(prompt, embeds, selection))
            self.answers.append(pipeline.answer(prompt, layouts[-1], row.settings))
        # 4. One cache for all of them, for the largest possible length of a row.
        rows, decoder = len(layouts), pipeline.decoder
        cache = decoder.take(rows, max(answer.tokens for answer in self.answers))
        try:
            yield from pipeline.run(self.answers, layouts, cache, [0] * rows, clock)
            self.results = [answer.result(clock, cache.nbytes // rows) for answer in self.answers]
        finally:
            decoder.give_back(cache)

    def _turns(self, row: _Row) -> list[Turn]:
        return turns_of(row.request.prompt, len(row.images), row.request.system)


class Stream:
    """The pieces of an answer, one by one; after the last one, :attr:`result` has the whole answer."""

    def __init__(self, pipeline: Pipeline, batch: Batch) -> None:
        self._pipeline, self._batch = pipeline, batch
        self._pieces = self._run()

    def _run(self) -> Iterator[str]:
        for _ in self._batch.steps():
            piece = self._batch.answers[0].take()
            if piece:
                yield piece

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        # Between two pieces the model is free for other calls, from any thread.
        with self._pipeline.using():
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
