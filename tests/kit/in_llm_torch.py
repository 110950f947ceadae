"""The published steps of pruning inside the decoder, in torch: the expectation that tests hold ours against.

Written from the papers' and repositories' description of the algorithms, over whole attention maps as transformers'
eager attention returns them.  Where the published code breaks ties with random noise, the lower index wins here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def raters(visual: Tensor, text: Tensor, *, strict: bool = True) -> Tensor:
    """Indices of the text tokens [T, D] that resemble the visual ones [N, D] more than the mean does."""
    m = F.softmax(visual @ text.T, dim=1).mean(0)
    return torch.where(m > m.mean() if strict else m >= m.mean())[0]


def merge(x: Tensor, count: int, *, cosine: bool = False, total: bool = False) -> Tensor:
    """Density-peak clusters of x [M, D], each as one vector [count, D]."""
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5
    density = (-(distance.topk(count, largest=False).values ** 2).mean(1)).exp()
    first = torch.arange(len(x))
    denser = (density[None] > density[:, None]) | ((density[None] == density[:, None]) & (first[None] < first[:, None]))
    delta = torch.where(denser, distance, distance.max()).min(1).values
    centres = (delta * density).topk(count).indices
    if cosine:
        clusters = F.cosine_similarity(x[centres][:, None], x[None], dim=2).argmax(0)
    else:
        clusters = distance[centres].argmin(0)
    clusters[centres] = torch.arange(count)
    sums = torch.zeros(count, x.shape[1]).index_add_(0, clusters, x)
    sizes = torch.zeros(count).index_add_(0, clusters, torch.ones(len(x)))
    return sums if total else sums / (sizes + 1e-6)[:, None]


def sparse_point(
    hidden: Tensor, attention: Tensor, rater: Tensor, start: int, count: int, keep: int, *, recycle: bool = True
) -> tuple[Tensor, Tensor]:
    """SparseVLM 1.x behind a layer: kept visual indices, and the states with the image cut down.

    Args:
        hidden: [L, D], the layer's output.
        attention: [H, L, L], the layer's attention.
        rater: Rows that rate.
        start, count: The image's tokens.
        keep: How many stay.
    """
    score = attention.mean(0)[rater, start : start + count].mean(0)
    keep = min(keep, count - 1)
    kept = score.topk(keep).indices.sort().values
    visual = hidden[start : start + count]
    parts = [hidden[:start], visual[kept]]
    if recycle:
        gone = torch.ones(count, dtype=torch.bool)
        gone[kept] = False
        gone = torch.where(gone)[0]
        many = int(len(gone) * 0.3) + 1
        best = gone[score[gone].topk(many).indices]
        parts.append(merge(visual[best], int(many / 10) + 1))
    return kept, torch.cat([*parts, hidden[start + count :]])


def gravity(attention: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """SparseVLM+'s correction: attention [H, L, L] over what rotated vectors of ones give; cos, sin [L, D / 2]."""
    ones = torch.cat([cos - sin, cos + sin], 1)
    return attention / (ones @ ones.T / ones.shape[1] ** 0.5)


def sparse_plus_point(
    attention: Tensor, cos: Tensor, sin: Tensor, rater: Tensor, start: int, count: int, keep: int, heads: int
) -> Tensor:
    """SparseVLM+ behind a layer: kept visual indices."""
    block = gravity(attention, cos, sin)[:, rater, start : start + count]
    best = block.sum((1, 2)).topk(min(heads, len(block))).indices
    return block[best].mean(0).mean(0).topk(min(keep, count - 1)).indices.sort().values


def last_token_point(attention: Tensor, start: int, count: int, keep: int) -> Tensor:
    """FastV and PyramidDrop: kept visual indices by the last row of an attention map [H, L, L]."""
    return attention.mean(0)[-1, start : start + count].topk(keep).indices.sort().values
