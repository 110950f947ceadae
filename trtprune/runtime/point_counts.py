"""How many visual tokens of an image stay at each prune point inside the decoder, and how many are merged there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trtprune import pruning
from trtprune.errors import EngineDirError

if TYPE_CHECKING:
    from trtprune.engine_dir import EngineDir

__all__ = ["PointCounts"]


class PointCounts:
    """The numbers of a directory whose decoder is cut.

    Args:
        config: The directory.

    Raises:
        EngineDirError: if its method does not prune inside the decoder.
    """

    def __init__(self, config: EngineDir) -> None:
        method = pruning.get(config.pruning.method)
        if not isinstance(method, pruning.InLlmMethod):
            raise EngineDirError(f"{config.root}: its decoder is cut, and {method.name} does not prune inside it")
        self._method, self._depth = method, config.kv.num_layers
        self._options = method.validate_options(config.pruning.options)
        self.ranked = method.ranked(self._options)
        """Whether the rank of the raters' attention, which the run shows, decides how many tokens stay."""

    def check_keep(self, keep: int, visual_tokens: int) -> None:
        """Refuses a budget that the method cannot serve.

        Raises:
            BudgetError: naming the budget or the option that is in its way.
        """
        self._method.schedule(keep, visual_tokens, self._depth, self._options)

    def kept(self, point: int, keep: int, visual_tokens: int) -> int:
        """The tokens of an image that stay at a point, for a budget of ``keep`` out of ``visual_tokens``."""
        return self._method.schedule(keep, visual_tokens, self._depth, self._options).kept[point]

    def kept_by_rank(self, ranks: Sequence[int], keep: int, visual_tokens: int) -> list[int]:
        """The tokens of an image that stay at each point whose rank is known, where :attr:`ranked`."""
        return list(self._method.rank_counts(ranks, keep, visual_tokens, self._depth, self._options))

    def merged(self, removed: int) -> dict[str, int]:
        """Of ``removed`` tokens, how many are ``recycled`` and how many vectors they become (``merged``)."""
        return dict(zip(("recycled", "merged"), self._method.merged_counts(removed, self._options), strict=True))

    def rank(self, block: np.ndarray) -> int:
        """The rank of attention float32 [R, N], where no component of the chain computes it."""
        from trtprune.pruning.rank import matrix_rank

        return matrix_rank(block)
