"""One line of the table: a build at a budget, with the same question as all others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from trtprune.runtime import Vlm

__all__ = ["STAGES", "BuildCell", "Cell", "Sample", "Workload"]

STAGES = ("preprocess", "vision", "prune", "prefill", "decode")


@dataclass(frozen=True)
class Workload:
    """The question of every cell: an image in memory, a text, and a fixed number of answer tokens."""

    image: Image.Image
    prompt: str
    tokens: int


@dataclass(frozen=True)
class Sample:
    """One run; milliseconds.

    ``first_token`` is wall time from the image in memory to the first chosen id; ``stages`` are its parts, and
    ``decode``, the time behind it.
    """

    stages: dict[str, float]
    first_token: float
    total: float
    tokens: int
    kv_cache_bytes: int
    prompt_tokens: int
    token_ids: tuple[int, ...] = ()

    @property
    def per_token(self) -> float:
        """Time of each token behind the first."""
        return (self.total - self.first_token) / (self.tokens - 1)


class Cell(Protocol):
    """A measured combination.

    Attributes:
        method: Name of the method or the peer.
        budget: The budget of an image.
        keep: Kept visual tokens of the image: the budget, or all that it has.
        peer: Whether it is not one of ours.
    """

    method: str
    budget: int
    keep: int
    peer: bool

    def run(self) -> Sample:
        """One run."""


class BuildCell:
    """A build at a budget.

    Args:
        vlm: The build.
        label: Name of its method.
        keep: The budget.
        question: The question.
        clock: Clock in seconds.
        peer: Whether the cell stands for a peer.
    """

    def __init__(
        self,
        vlm: Vlm,
        label: str,
        keep: int,
        question: Workload,
        *,
        clock: Callable[[], float] = time.perf_counter,
        peer: bool = False,
    ) -> None:
        self.vlm, self.method, self.budget, self.peer = vlm, label, keep, peer
        image = question.image
        self.keep = min(keep, vlm.pipeline.processor.plan(image.height, image.width).tokens)
        self._question, self._clock = question, clock
        self._room = 0

    def run(self) -> Sample:
        """One answer."""
        self._make_room()
        steps, batch = self._begin()
        start = self._clock()
        next(steps)
        first = self._clock() - start
        for _ in steps:
            pass
        total = self._clock() - start
        result = batch.results[0]
        self._room = result.prompt_tokens + self._question.tokens - 1
        stages = {name: ms for name, ms in result.timings.items() if name != "total"}
        return Sample(
            stages,
            1000 * first,
            1000 * total,
            len(result.token_ids),
            result.kv_cache_bytes,
            result.prompt_tokens,
            tuple(result.token_ids),
        )

    def prompt(self) -> None:
        """A run up to the first token."""
        steps, _ = self._begin(1)
        for _ in steps:
            pass

    def _begin(self, tokens: int | None = None) -> tuple[Any, Any]:
        from trtprune.runtime import Request
        from trtprune.runtime.answer import AnswerSettings
        from trtprune.runtime.batch import Batch

        settings = AnswerSettings.of(
            self.vlm.config.generation,
            max_new_tokens=tokens or self._question.tokens,
            temperature=0,
            stop=(),
            ignore_eos=True,
        )
        requests = [Request(self._question.image, self._question.prompt)]
        batch = Batch(self.vlm.pipeline, requests, settings, keep=self.budget)
        return batch.steps(), batch

    def _make_room(self) -> None:
        """Gives the pool memory of this request's size, as if only this cell had run."""
        if self._room:
            decoder = self.vlm.pipeline.decoder
            decoder.give_back(decoder.take(1, self._room))
