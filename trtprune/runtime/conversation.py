"""Several questions about the same pictures.

Keeps the turns and, with ``repick=False``, the KV cache.  The cache is never trusted to hold what the turns say: the
whole conversation is tokenised again, and what differs from the cached ids is computed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.arguments import arg, text_of, whole
from trtprune.errors import InputError
from trtprune.runtime.batch import Answer, answer_length, check_stop
from trtprune.runtime.chain import Clock, Features
from trtprune.runtime.result import Result
from trtprune.runtime.sampling import Sampling
from trtprune.text.template import Turn

if TYPE_CHECKING:
    from trtprune.backends.base import Array
    from trtprune.runtime.result import Images
    from trtprune.runtime.vlm import Vlm

__all__ = ["Conversation"]


class Conversation:
    """Questions and answers about one picture or several; made by :meth:`Vlm.chat`.

    Args:
        vlm: What answers.
        images: All pictures of the conversation; they stand in its first turn.
        system: A system prompt.
    """

    def __init__(self, vlm: Vlm, images: Images, *, system: str | None = None) -> None:
        self.on_text: Callable[[str], None] | None = None
        """Called with each piece of an answer as it comes; the pieces add up to the result's text."""
        self._vlm = vlm
        self._images = vlm.pictures(images)
        self._system = [] if system is None else [Turn("system", text_of("system", system))]
        self._turns: list[Turn] = []
        self._features: list[Features] | None = None
        self._kept: list[np.ndarray] | None = None
        self._rows: list[Array] = []
        self._cache: Any = None
        self._cached = np.zeros(0, np.int64)
        self._budget = 0

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was said so far."""
        return (*self._system, *self._turns)

    def ask(
        self,
        prompt: str,
        *,
        keep: int | None = None,
        repick: bool = True,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
    ) -> Result:
        """Asks the next question; a failed one leaves the conversation as it was.

        Args:
            prompt: The question.
            keep: Visual tokens to keep of each image; with ``repick=False`` only the first question may set it.
            repick: Select the visual tokens anew for this question and compute the history with them; False keeps
                the selection and the cache, so that only what is new is computed.
            max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed, stop, ignore_eos: As for
                :meth:`Vlm.generate`.
        """
        info = self._vlm.config.generation
        sampling = Sampling.of(
            info,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        longest = None if max_new_tokens is None else whole("max_new_tokens", max_new_tokens, 1)
        stops = check_stop(stop, () if ignore_eos else info.stop_strings)
        with self._vlm.using():
            return self._ask(text_of("prompt", prompt), keep, repick, longest, sampling, stops, ignore_eos)

    def _ask(
        self,
        prompt: str,
        keep: int | None,
        repick: bool,
        max_new_tokens: int | None,
        sampling: Sampling,
        stops: Sequence[str],
        ignore_eos: bool,
    ) -> Result:
        vlm, clock = self._vlm, Clock()
        budget = vlm.chain.check_keep(keep)
        # 1. The whole conversation as one prompt.
        question = Turn("user", prompt, 0 if self._turns else len(self._images))
        with clock.stage("preprocess"):
            encoded = vlm.encoder.encode([*self._system, *self._turns, question])
        # 2. The pictures are looked at once.
        if self._features is None:
            self._features = vlm.features(self._images, clock)
        # 3. The selection: the question's own, or the one already made.
        if repick or self._kept is None:
            selected = vlm.cut(encoded, self._features, budget, sampling.seed or 0, clock)
        elif keep is not None and budget != self._budget:
            raise InputError(
                f"{arg('keep', keep)}: the selection was made with another", hint=f"{arg('repick', True)} selects anew"
            )
        else:
            selected = vlm.embed(encoded, clock), self._kept, self._rows
            budget = self._budget
        embeds, kept, rows = selected
        layout = vlm.lay_out(encoded, embeds, rows, kept, budget)
        longest = answer_length(vlm, max_new_tokens, encoded.ids, layout)
        vlm.chain.check(layout, longest)
        # 4. What the cache holds already. Tokens alone do not tell: the features must be the same ones, too.
        same = self._cache is not None and self._kept is not None and not repick and kept is self._kept
        known = _common(self._cached, layout.ids[:-1]) if same else 0
        tokens = len(layout.ids) + longest - 1
        if self._cache is not None and same:
            cache = vlm.chain.pool.grow(self._cache, tokens)
        else:
            if self._cache is not None:
                vlm.chain.pool.give_back(self._cache)
            cache = vlm.chain.pool.take(1, tokens)
        # Until the answer is complete, the cache is nobody's: an interrupt must not leave half of it in use.
        self._cache = None
        with clock.stage("prefill"):
            logits = vlm.chain.prefill([layout], cache, [known])
        # 5. The answer.
        answer = Answer(vlm, layout, encoded.ids, kept, longest, sampling, stops, ignore_eos)
        for answer.kept, answer.segment_tokens in vlm.chain.selected(cache):
            pass
        for _ in vlm.chain.decode([answer.row], logits, cache, clock):
            if self.on_text is not None and (piece := answer.take()):
                self.on_text(piece)
        result = answer.result(clock, cache.nbytes)
        self._turns += [question, Turn("assistant", result.text)]
        self._kept, self._rows, self._cache, self._budget = kept, rows, cache, budget
        self._cached = np.concatenate([layout.ids, np.array(result.token_ids[:-1], np.int64)])
        return result


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the common beginning of two id arrays."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length
