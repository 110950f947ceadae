"""The rows that an image's visual tokens end up in, in a decoder that prunes and merges them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Trace"]


class Merging(Protocol):
    """The part of :class:`trtprune.pruning.InLlmMethod` that a trace uses."""

    def rate(self, attention: np.ndarray, **context: Any) -> np.ndarray:
        """Scores of the tokens."""

    def clusters(self, visual: np.ndarray, scores: np.ndarray, kept: np.ndarray, **options: Any) -> np.ndarray:
        """The merged vector of each token."""


class Trace:
    """Follows the tokens of one image through the prune points of a decoder.

    Args:
        method: The method that prunes there.
        options: All options of the method, validated.
        tokens: N, the image's tokens in front of the first point.
    """

    def __init__(self, method: Merging, options: Mapping[str, Any], tokens: int) -> None:
        import numpy as np

        self._method, self._options, self._tokens = method, options, tokens
        self._members = [np.array([token]) for token in range(tokens)]
        """The image's tokens in each present row."""

    def __call__(self, states: np.ndarray, attention: np.ndarray, kept: np.ndarray) -> None:
        """One prune point: states [n, D] of the image's rows, the raters' attention to them, and the kept rows."""
        import numpy as np

        scores = self._method.rate(attention.astype(np.float32), **self._options)
        cluster = self._method.clusters(states.astype(np.float32), scores, kept, **self._options)
        before = self._members
        self._members = [before[place] for place in kept]
        for number in range(int(cluster.max()) + 1):
            self._members.append(np.concatenate([before[place] for place in np.flatnonzero(cluster == number)]))

    def merged_into(self) -> np.ndarray:
        """int64 [N]: for each token the representative of its row, one token per row; -1 for a token in no row."""
        import numpy as np

        places = np.full(self._tokens, -1, np.int64)
        for members in self._members:
            places[members] = members.min()
        return places
