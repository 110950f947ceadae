"""A row of a running batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.errors import TrtpruneError

if TYPE_CHECKING:
    from trtprune.runtime.answer import Answer
    from trtprune.runtime.features import Features
    from trtprune.runtime.orders import Order

__all__ = ["BatchRow"]


@dataclass(eq=False)
class BatchRow:
    """A request whose prompt is in a cache.

    Attributes:
        order: The request.
        answer: Its answer so far.
        features: Features of its images.
        cached: Tokens of the prompt that were cached already.
        keys: What each row of the prompt is, see :func:`trtprune.runtime.stores.row_keys`; None if nobody asks.
        cache: The cache of the prompts it came with; None once it is in the batch.
        number: Its row there.
        token: The answer's last token.
    """

    order: Order
    answer: Answer
    features: Sequence[Features]
    cached: int
    keys: np.ndarray | None
    cache: Any
    number: int
    token: int = 0

    @property
    def steps(self) -> int:
        """Tokens of the answer that were fed back."""
        return len(self.answer.row.token_ids) - 1

    @property
    def length(self) -> int:
        """Tokens of the row in the cache."""
        return len(self.answer.row.layout.ids) + self.steps

    @property
    def place(self) -> int:
        """Position of its last token."""
        return self.answer.row.layout.next_position + self.steps

    @property
    def going(self) -> bool:
        """Whether it wants another token."""
        return self.answer.row.finish_reason is None and not self.order.cancelled

    def choose(self, logits: np.ndarray) -> None:
        """Takes the next token from its logits float32 [V].  If there is none to take, this request alone fails."""
        try:
            self.token = self.answer.row.choose(logits)
        except TrtpruneError as error:
            self.order.fail(error)

    def tell(self) -> None:
        """Hands over the text that is new."""
        piece = self.answer.take()
        if piece and not self.order.cancelled:
            self.order.listener.on_text(piece)
