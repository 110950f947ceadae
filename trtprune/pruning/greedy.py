"""The greedy selections in NumPy; :mod:`trtprune.pruning.greedy_graph` writes the same as graph nodes.

Each returns the picks in their order.  Of equal candidates the lowest index wins; tokens that are not ``good`` come
after all others, in index order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from trtprune.pruning.crops import Rooms

__all__ = ["LAST", "RESIDUAL", "TAKEN", "determinant", "least_close", "most_covering"]

TAKEN = 3.0e38
"""Closeness of a token that is already selected: above every other."""
LAST = 1e30
"""Closeness of a token that is not finite."""
RESIDUAL = 1e-5
"""Lowest remainder of a diagonal element that counts, as a share of √(its own value · the largest one)."""


def least_close(matrix: np.ndarray, close: np.ndarray, steps: int) -> list[int]:
    """Pick ``steps`` times the token with the smallest ``close`` [N]; after each pick ``close`` becomes its maximum
    with the token's row of ``matrix`` [N, N]."""
    import numpy as np

    picks: list[int] = []
    for _ in range(steps):
        best = int(np.argmin(close))
        picks.append(best)
        close = np.maximum(close, matrix[best])
        close[best] = TAKEN
    return picks


def most_covering(
    cover: np.ndarray,
    keep: int,
    good: np.ndarray,
    weight: np.ndarray | None = None,
    added: bool = False,
    rooms: Rooms | None = None,
) -> list[int]:
    """Pick ``keep`` times the token that adds most coverage.

    Args:
        cover: float32 [N, R], coverage of each of R things by each token; only values ≥ 0 count.
        keep: Tokens to pick.
        good: bool [N].
        weight: float32 [N], ≥ 0: a factor of the gain, or a term where ``added``.
        added: See ``weight``.
        rooms: The shares of crops, if the budget is shared out to them.
    """
    import numpy as np

    covered = np.zeros(cover.shape[1], np.float32)
    fixed = np.where(good, np.float32(0), np.float32(-1))
    picks: list[int] = []
    for _ in range(keep):
        gain = np.maximum(cover - covered, np.float32(0)).sum(axis=1, dtype=np.float32)
        if weight is not None:
            gain = gain + weight if added else gain * weight
        gain = np.where(fixed < 0, fixed, gain)
        best = int(np.argmax(gain)) if rooms is None else rooms.best(gain)
        picks.append(best)
        fixed[best] = -2
        covered = np.maximum(covered, cover[best])
    return picks


def determinant(
    similarity: np.ndarray, factor: np.ndarray, keep: int, good: np.ndarray, rooms: Rooms | None = None
) -> list[int]:
    """Greedy maximum of det of the sub-matrix of ``L = diag(factor) · similarity · diag(factor)``.

    A Cholesky factorisation with the largest remaining diagonal element as the next pivot:

        j = argmax d;   e = (L[j] - C[:, j]ᵀ C) / √d[j];   C gains the row e;   d -= e²

    A diagonal element that falls to ``RESIDUAL · √(L[i, i] · max L[i, i])`` is set to 0: rounding leaves noise of about
    that size, and of a kernel whose rank is below ``keep`` only noise would remain.  When only zeros remain, they are
    picked in index order and change nothing.

    With ``rooms`` the crops are apart: similarity is 0 between them, the largest L[i, i] is that of a crop, and a crop
    that has given its share gives no more.
    """
    import numpy as np

    zero = np.float32(0)
    if rooms is not None:
        similarity = np.where(rooms.same, similarity, zero)
    first = factor * np.diagonal(similarity) * factor
    first = np.where(good, np.maximum(first, zero), zero).astype(np.float32)
    floor = np.float32(RESIDUAL) * np.sqrt(first * (first.max() if rooms is None else rooms.largest(first)))
    left = np.where(good, np.where(first > floor, first, zero), np.float32(-1))
    rows = np.zeros((keep, len(factor)), np.float32)
    picks: list[int] = []
    for step in range(keep):
        best = int(np.argmax(left)) if rooms is None else rooms.best(left)
        picks.append(best)
        if left[best] > 0:
            row = similarity[best] * factor * factor[best] - rows[:, best] @ rows
            rows[step] = row * (np.float32(1) / np.sqrt(left[best]))
            less = left - rows[step] * rows[step]
            left = np.where(less > floor, less, np.minimum(left, zero))
        left[best] = -2
    return picks
