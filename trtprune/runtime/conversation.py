"""Several questions about the same images.

Keeps the turns and, with ``repick=False``, the KV cache.  The whole conversation is always tokenised again, and ids
that differ from the cached ones are computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from trtprune.arguments import arg, text_of
from trtprune.errors import InputError
from trtprune.runtime.answer import AnswerArguments, AnswerSettings
from trtprune.runtime.budget import Budget
from trtprune.runtime.clock import Clock
from trtprune.text.template import Turn

if TYPE_CHECKING:
    from trtprune.runtime.features import Features
    from trtprune.runtime.layout import Selection
    from trtprune.runtime.pipeline import Pipeline
    from trtprune.runtime.result import Images, Result

__all__ = ["Conversation"]


class Conversation:
    """Questions and answers about one image or several, from :meth:`Vlm.chat`.

    Args:
        pipeline: The stages of the model.
        images: All images of the conversation; they are in its first turn.
        system: A system prompt.
    """

    def __init__(self, pipeline: Pipeline, images: Images, *, system: str | None = None) -> None:
        self.on_text: Callable[[str], None] | None = None
        """Called with each piece of an answer at once; the pieces add up to the result's text."""
        self._pipeline = pipeline
        self._images = pipeline.images(images)
        self._system = [] if system is None else [Turn("system", text_of("system", system))]
        self._turns: list[Turn] = []
        self._features: list[Features] | None = None
        self._selection: Selection | None = None
        self._cache: Any = None
        self._cached = np.zeros(0, np.int64)
        self._budget: Budget | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns so far."""
        return (*self._system, *self._turns)

    def ask(
        self,
        prompt: str,
        *,
        keep: int | None = None,
        keep_ratio: float | None = None,
        repick: bool = True,
        **settings: Unpack[AnswerArguments],
    ) -> Result:
        """Asks the next question; a failed one leaves the conversation unchanged.

        Args:
            prompt: The question.
            keep, keep_ratio: As in :meth:`Vlm.generate`; with ``repick=False`` only the first question may set them.
            repick: Whether to select the visual tokens again for this question and compute the history with them; False
                keeps the selection and the cache, so that only the new part is computed.
            settings: As in :meth:`Vlm.generate`.
        """
        answers = AnswerSettings.of(self._pipeline.config.generation, **settings)
        with self._pipeline.using():
            budget = self._pipeline.budget(keep, keep_ratio)
            chosen = keep is not None or keep_ratio is not None
            return self._ask(text_of("prompt", prompt), budget, answers, repick=repick, chosen=chosen)

    def _ask(self, prompt: str, budget: Budget, settings: AnswerSettings, *, repick: bool, chosen: bool) -> Result:
        pipeline, clock = self._pipeline, Clock()
        # 1. The whole conversation as one prompt.
        question = Turn("user", prompt, 0 if self._turns else len(self._images))
        turns = [*self._system, *self._turns, question]
        with clock.stage("preprocess"):
            encoded = pipeline.encoder.encode(turns)
        # 2. The vision tower runs once.
        if self._features is None:
            self._features = pipeline.features(self._images, clock)
        with clock.stage("preprocess"):
            encoded = pipeline.written_out(encoded, turns, self._features)
        # 3. The selection: the question's own, or the earlier one.
        before = None if repick else self._selection
        if before is not None and chosen and budget != self._budget:
            name = arg("keep", budget.keep) if budget.ratio is None else arg("keep_ratio", budget.ratio)
            raise InputError(f"{name}: the selection was made with another", hint=f"{arg('repick', True)} selects anew")
        embeds = pipeline.embed(encoded, clock)
        if before is None:
            seed = settings.sampling.seed or 0
            selection = pipeline.select(encoded, embeds, self._features, budget, seed, clock)
        else:
            selection, budget = before, self._budget or budget
        layout = pipeline.lay_out(encoded, embeds, selection)
        answer = pipeline.answer(encoded, layout, settings)
        # 4. The cached part of the prompt. Equal ids are not enough: the features must be the same, too.
        known = 0
        if self._cache is not None and before is not None:
            known = _common(self._cached, layout.ids[:-1])
            cache = pipeline.decoder.grow(self._cache, answer.tokens)
        else:
            if self._cache is not None:
                pipeline.decoder.give_back(self._cache)
            cache = pipeline.decoder.take(1, answer.tokens)
        # Until the answer is complete, the cache has no owner: after an interrupt it must not be used.
        self._cache = None
        # 5. The answer.
        for _ in pipeline.run([answer], [layout], cache, [known], clock):
            if self.on_text is not None and (piece := answer.take()):
                self.on_text(piece)
        result = answer.result(clock, cache.nbytes)
        self._turns += [question, Turn("assistant", result.text)]
        self._selection, self._cache, self._budget = selection, cache, budget
        self._cached = np.concatenate([layout.ids, np.array(result.token_ids[:-1], np.int64)])
        return result


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the common beginning of two id arrays."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length
