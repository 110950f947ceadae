"""Scales of features moved into weights, so that a row of features can be rounded to 8 bits.

Some features of a transformer are a hundred times as large as the others of their row, and a row's scale is that of
its largest.  Feature j is divided by s_j where it is written, a norm's weight or a matrix' row, and the weights that
read it are multiplied by s_j: the product is the same.  s_j = max |x_j| ^ 0.5 / max |w_j| ^ 0.5, as in SmoothQuant
(arXiv:2211.10438, equation 4, alpha = 0.5), with max |x_j| from calibration, relative to the features' geometric mean.

Only what costs nothing at run time: features of norms, and those of the MLP.  Between values and output projection it
did harm with grouped heads, which share their values' scales.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from trtprune.models.spec import ScaledFeatures

__all__ = ["Smoothing", "smooth", "smoothable"]

LEAST = 1e-5
"""The smallest magnitude of a feature or weight that counts; smaller ones count as this."""


@dataclass(frozen=True)
class Smoothing:
    """Changes of weights, by canonical names.

    Attributes:
        columns: Matrix → factors [in] of its columns.
        rows: Matrix → factors [out] of its rows.
        norms: Norm's weight → factors [size].
    """

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    norms: dict[str, np.ndarray] = field(default_factory=dict)


def smoothable(groups: Sequence[ScaledFeatures], matrices: Collection[str]) -> list[ScaledFeatures]:
    """Those of ``groups`` whose matrices are all among ``matrices``, the ones that are written anew."""
    return [g for g in groups if {*g.readers, *([] if g.is_norm else [g.writer])} <= {*matrices}]


def smooth(
    groups: Sequence[ScaledFeatures], largest: Mapping[str, np.ndarray], read: Callable[[str], np.ndarray]
) -> Smoothing:
    """The factors of all groups.

    Args:
        groups: What can be scaled.
        largest: Writer → largest magnitude of each feature, float32 [features].
        read: A matrix [out, in] by its name.
    """
    found = Smoothing()
    for group in groups:
        weights = np.max([_column_maxima(read(key)) for key in group.readers], axis=0)
        factors = np.sqrt(np.maximum(largest[group.writer], LEAST) / np.maximum(weights, LEAST))
        factors = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
        found.columns.update(dict.fromkeys(group.readers, factors))
        (found.norms if group.is_norm else found.rows)[group.writer] = 1 / factors
    return found


def _column_maxima(weight: np.ndarray) -> np.ndarray:
    """float32 [in] of [out, in], a part at a time: the checkpoint is mapped, and may be in half precision."""
    step = max(1, (1 << 21) // max(1, weight.shape[1]))
    parts = (np.abs(np.asarray(weight[i : i + step], np.float32)).max(axis=0) for i in range(0, len(weight), step))
    return np.max(list(parts), axis=0)
