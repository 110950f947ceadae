"""Saliency: the vision tower's attention to each patch, and the choice among its attentions.

A method made for the attention of a CLS token has the option :data:`RECEIVED`, and names in
:attr:`trtprune.pruning.base.BaseMethod.without_cls` what it reads of a tower without one:

* ``cls``: softmax(q_CLS · Kᵀ / sqrt(d)), the CLS token's row;
* ``mean``: softmax(q̄ · Kᵀ / sqrt(d)) with q̄ the mean of all queries of a crop: one row, O(patches);
* ``all``: the mean over all queries of their rows, the whole map of the layer, O(patches²).

Each is of the last layer that is used, and the mean over its heads.  The sum of received attention, of which ``all`` is
a fixed share, is what the authors' ports to towers without a CLS token take (HiPrune @ 6e83a12 for Qwen2.5-VL,
Tencent/AngelSlim@67394ce ``algorithm/utils/utils.py`` for visionzip, vispruner and scope); AngelSlim takes the mean
query where there are 6,144 patches or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtprune.pruning.options import Option
from trtprune.tensor_names import CLS_ATTENTION, DEEP_ATTENTION, MEAN_QUERY_ATTENTION

__all__ = ["RECEIVED", "needs_by_saliency", "saliency"]

RECEIVED = Option(
    "received",
    "cls",
    "the attention that says how salient a patch is: the CLS token's (cls), the mean query's (mean, the default where "
    "the tower has no CLS token), or that of all queries (all, from the whole attention map)",
    choices=("cls", "mean", "all"),
)
INPUT = {"cls": CLS_ATTENTION, "mean": MEAN_QUERY_ATTENTION, "all": DEEP_ATTENTION}
"""Choice of :data:`RECEIVED` → the input that it is."""


def needs_by_saliency(needs: frozenset[str], options: Mapping[str, Any]) -> frozenset[str]:
    """``needs`` with the chosen saliency in place of the CLS attention."""
    return needs - {CLS_ATTENTION} | {INPUT[options[RECEIVED.name]]}


def saliency(inputs: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
    """The chosen saliency of a method's inputs, float32 [N] or [batch, N]; None: the options are among the inputs."""
    return inputs[INPUT[(inputs if options is None else options)[RECEIVED.name]]]
