"""From the logits behind a prompt to an answer: one token for each row in every round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from trtprune.backends.base import Step
    from trtprune.runtime.clock import Clock
    from trtprune.runtime.layout import Layout
    from trtprune.runtime.sampling import Sampler

__all__ = ["Generation", "generate"]


@dataclass
class Generation:
    """The tokens of one row's answer.

    ``on_token`` is called with every chosen id; it returns "stop" if the row is done, else None.
    """

    layout: Layout
    max_new_tokens: int
    sampler: Sampler
    on_token: Callable[[int], str | None]
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    def choose(self, logits: np.ndarray) -> int:
        """Takes the next token from its logits float32 [V]; afterwards the row may be done."""
        token: int = int(self.sampler.choose(logits))
        self.token_ids.append(token)
        self.finish_reason = self.on_token(token)
        if self.finish_reason is None and len(self.token_ids) >= self.max_new_tokens:
            self.finish_reason = "length"
        return token


def generate(rows: Sequence[Generation], logits: np.ndarray, step: Step, capacity: int, clock: Clock) -> Iterator[None]:
    """Generates until every row is done; yields after each round of tokens.

    The cache then has each row's prompt and answer without the last token.

    Args:
        rows: The rows of the batch, their prompts in the cache.
        logits: float32 [B, V], the logits behind each prompt.
        step: The decode step over the cache.
        capacity: Tokens of a row in the cache.
        clock: Counts the time as ``decode``.
    """
    length = np.array([len(row.layout.ids) for row in rows], np.int64)
    place = np.array([row.layout.next_position for row in rows], np.int64)
    axes = len(rows[0].layout.positions)
    token = np.zeros((len(rows), 1), np.int64)
    while True:
        # 1. Choose a token for every row that is not done, each with its own settings.
        with clock.stage("decode"):
            for i, row in enumerate(rows):
                if row.finish_reason is None:
                    token[i] = row.choose(logits[i])
        yield
        going = np.array([row.finish_reason is None for row in rows])
        if not going.any():
            return
        with clock.stage("decode"):
            # 2. Feed them back. A row that is done stays in the batch: it writes to its last place again.
            position = np.repeat(place[:, None, None], axes, axis=1)
            logits = step(token, position, np.minimum(length, capacity - 1))
            # 3. Step on.
            length += going
            place += going
