"""What callers hand to a running batch: requests, whoever waits for their answers, and the batch's sizes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from trtprune.runtime.answer import AnswerSettings
from trtprune.runtime.clock import Clock

if TYPE_CHECKING:
    from trtprune.runtime.budget import Budget
    from trtprune.runtime.features import Features
    from trtprune.runtime.images import Prepared
    from trtprune.runtime.result import Result
    from trtprune.text.template import Turn

__all__ = ["Limits", "Listener", "Order", "Picture"]


@dataclass(frozen=True)
class Limits:
    """Sizes of a running batch.

    Attributes:
        rows: Most requests at once.
        chunk: Most tokens in one run while other requests wait for their next token: of prompts with their padding, or
            of images before pruning.  A single image may have more.
        feature_bytes: Memory for features of earlier images.
        prefix_bytes: Memory for cache rows of earlier prompts and answers.
        together: Most tokens, padding included, of several prompts in one run while nobody waits for a next token.
    """

    rows: int = 8
    chunk: int = 256
    feature_bytes: int = 256 << 20
    prefix_bytes: int = 512 << 20
    together: int = 2048


@dataclass(frozen=True)
class Picture:
    """A prepared image.

    Attributes:
        key: Its content, equal for equal images only.
        prepared: Its arrays.
    """

    key: Hashable
    prepared: Prepared


class Listener(Protocol):
    """Whoever waits for an answer.  Called by the thread that runs the batch; must return at once."""

    def on_text(self, piece: str) -> None:
        """The next piece of the answer; the pieces add up to the result's text."""

    def on_result(self, result: Result, pictures: Sequence[Features], cached_tokens: int) -> None:
        """The finished answer, its images' features, and the tokens of the prompt that were cached already."""

    def on_error(self, error: Exception) -> None:
        """The failure of this request alone."""


@dataclass
class Order:
    """One request.

    Attributes:
        turns: The conversation; its last turn is the user's.
        pictures: Its images, in the order of the turns.
        budget: The budget of each image.
        settings: Settings of the answer.
        listener: Whoever waits for it.
        cancelled: Set from any thread by a listener that no longer waits.
        clock: Time spent on it; a run for several requests counts for each of them.
    """

    turns: Sequence[Turn]
    pictures: Sequence[Picture]
    budget: Budget
    settings: AnswerSettings
    listener: Listener
    cancelled: bool = False
    clock: Clock = field(default_factory=Clock)

    def fail(self, error: Exception) -> None:
        """Reports the request's failure; nothing is computed for it any more."""
        if not self.cancelled:
            self.cancelled = True
            self.listener.on_error(error)
