"""fastervlm, adafv and zspaprune as torch modules, written from the papers' formulas.

They share nothing with ``trtprune.pruning`` but the names of inputs and options, and go other ways where there are any:
arithmetic is float64, so that the formulas can stand as they are printed and rounding decides next to nothing; ranks
come from comparing all pairs and indices from a running count, not from TopK; equal scores rank by the lower index.

Inputs ``image_features`` [B, N, D]; of ``cls_attention`` [B, N], ``text_embeds`` [B, T, D] with ``text_mask`` int64
[B, T] (1 = a real token) what the method needs; ``keep`` int64 [1].  Outputs ``kept_indices`` int64 [B, keep],
ascending, and ``pruned_features`` [B, keep, D].  Features and embeddings must be finite; NaN in ``cls_attention`` ranks
last.

The other methods of trtprune have no export here, and zspaprune no ``center``: its cosines are those of the features
as they are.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch._higher_order_ops.while_loop import while_loop

__all__ = ["METHODS", "AdaFv", "FasterVlm", "Pruner", "ZspaPrune"]


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Place of each of ``scores`` [B, N] from best (0) to worst: the number of those that come before it."""
    mine, other = scores[:, None, :], scores[:, :, None]
    mine_nan, other_nan = mine.isnan(), other.isnan()
    place = torch.arange(scores.shape[1])
    earlier = place[:, None] < place[None, :]
    equal = (mine == other) | (mine_nan & other_nan)
    before = (other > mine) | (mine_nan & ~other_nan) | (equal & earlier)
    return before.sum(dim=1)


def order(rank: torch.Tensor) -> torch.Tensor:
    """The permutation that a rank [B, N] describes: the index of the best, the second best, …"""
    place = torch.arange(rank.shape[1]).expand_as(rank)
    return torch.zeros_like(rank).scatter(1, rank, place)


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosines [B, P, Q] of [B, P, D] with [B, Q, D]; 0 for a zero vector.

    Rounded to 12 digits: a product of matrices gives the same two vectors slightly different results in different
    places, and ties must be ties.
    """
    unit_a = torch.nn.functional.normalize(a.double(), dim=-1)
    unit_b = torch.nn.functional.normalize(b.double(), dim=-1)
    return torch.round((unit_a @ unit_b.transpose(1, 2)) * 1e12) / 1e12


class Pruner(torch.nn.Module):
    """A method: which tokens, as a mask, or as indices where a token can be chosen twice.

    ``inputs`` are the names of what ``forward`` takes, in order.
    """

    inputs: tuple[str, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name, default in self.options.items():
            setattr(self, name, options.get(name, default))

    def keep_rows(self, features: torch.Tensor, picked: torch.Tensor, keep: torch.Tensor) -> tuple[Any, Any]:
        """Gather the tokens picked: a count [B, N] of how often each was, ``keep`` in all per row."""
        count, tokens = _number(keep, features.shape[1]), features.shape[1]
        place = torch.arange(tokens).expand_as(picked)
        # Slot of the first copy of each token: the tokens picked before it.  Copies come next to one another.
        slot = picked.cumsum(dim=1) - picked
        bin_ = torch.full_like(slot, 2 * tokens)
        indices = torch.zeros((slot.shape[0], 2 * tokens + 1), dtype=torch.int64)
        indices = indices.scatter(1, torch.where(picked > 0, slot, bin_), place)
        again = torch.zeros_like(indices).scatter(1, torch.where(picked > 1, slot + 1, bin_), place)
        kept = torch.maximum(indices, again)[:, :count]
        return kept, features.gather(1, kept[:, :, None].expand(-1, -1, features.shape[2]))


def _number(keep: torch.Tensor, tokens: int) -> Any:
    """``keep`` as a size, with what torch.export must know of it."""
    count = keep.reshape(()).item()  # no int() around it: that asks torch.export for the number itself
    torch._check(count >= 1)
    torch._check(count <= tokens)
    return count


class FasterVlm(Pruner):
    """The tokens that the CLS token attends to most: https://arxiv.org/abs/2412.01818."""

    inputs = ("image_features", "cls_attention", "keep")

    def forward(self, image_features: Any, cls_attention: Any, keep: Any) -> tuple[Any, Any]:
        return self.keep_rows(image_features, (ranks(cls_attention) < keep).long(), keep)


class AdaFv(Pruner):
    """Text similarity and CLS attention, shared out by their geometric mean: https://arxiv.org/abs/2501.09532.

    ``mode`` official keeps a token that both lists pick twice, as the authors' code does; distinct goes on down the
    list of CLS attention until ``keep`` different tokens are found.
    """

    inputs = ("image_features", "cls_attention", "text_embeds", "text_mask", "keep")
    options = {"mode": "distinct", "temperature": 100.0, "quota": 0.25}  # noqa: RUF012
    mode: str
    temperature: float
    quota: float

    def forward(
        self, image_features: Any, cls_attention: Any, text_embeds: Any, text_mask: Any, keep: Any
    ) -> tuple[Any, Any]:
        # s_j = max_i softmax_j(100 cos(t_i, v_j)), as a logarithm.
        real = text_mask[:, :, None] != 0
        text = torch.where(real, text_embeds, torch.zeros_like(text_embeds))  # padding may hold anything
        logits = self.temperature * cosines(text, image_features)
        log_softmax = logits - logits.logsumexp(dim=2, keepdim=True)
        score = torch.where(real, log_softmax, -1e30).amax(dim=1)
        attention = cls_attention.double()
        text_rank, cls_rank = ranks(score), ranks(attention)
        from_text = self.split(score.gather(1, order(text_rank)), attention.gather(1, order(cls_rank)), keep)

        by_text = text_rank < from_text
        if self.mode == "official":
            return self.keep_rows(image_features, by_text.long() + (cls_rank < keep - from_text).long(), keep)
        # Rank by attention among those the text has left: the rank less the number of text picks before it.
        free = torch.where(by_text, torch.nan, attention)
        by_cls = ~by_text & (ranks(free) < keep - from_text)
        return self.keep_rows(image_features, (by_text | by_cls).long(), keep)

    def split(self, score: torch.Tensor, attention: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Tokens [B, 1] the text list gives: q + argmax over k of P1[k] · P2[K' - k], first maximum.

        Args:
            score: log s [B, N], falling.
            attention: c [B, N], falling.
            keep: K [1].
        """
        fraction = Fraction(str(self.quota)).limit_denominator(10_000)
        quota = keep * fraction.numerator // fraction.denominator
        place = torch.arange(score.shape[1])
        # A factor common to all of s changes no comparison of the products; this one keeps exp from vanishing.
        s = torch.exp(torch.minimum(score - score.gather(1, quota.expand(score.shape[0], 1)), torch.zeros(())))

        def sums(values: Any) -> Any:  # S[n]: the entries q..n-1, for n = 0..N
            return torch.nn.functional.pad(torch.where(place < quota, 0.0, values).cumsum(dim=1), (1, 0))

        n = torch.arange(score.shape[1] + 1)
        rest = (keep - n).clamp(min=0).expand(score.shape[0], -1)
        products = sums(s) * sums(attention).gather(1, rest)
        allowed = (n >= quota) & (n <= keep - quota)
        return torch.where(allowed, products, -1.0).argmax(dim=1, keepdim=True)


class ZspaPrune(Pruner):
    """A core close to the prompt, then the most different tokens: https://arxiv.org/abs/2510.17197.

    ``diversity`` maxmin: the largest cosine to the chosen is smallest; meansim: the mean cosine to them is.
    """

    inputs = ("image_features", "text_embeds", "text_mask", "keep")
    options = {"core_ratio": 0.5, "diversity": "maxmin"}  # noqa: RUF012
    core_ratio: float
    diversity: str

    def forward(self, image_features: Any, text_embeds: Any, text_mask: Any, keep: Any) -> tuple[Any, Any]:
        real = text_mask[:, :, None] != 0
        text = torch.where(real, text_embeds, torch.zeros_like(text_embeds)).double()
        prompt = text.sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
        relevance = cosines(prompt, image_features)[:, 0]
        ratio = Fraction(str(self.core_ratio)).limit_denominator(10_000)
        # round(ratio · K), halves up, at least one token to be different from
        core = ((2 * ratio.numerator * keep + ratio.denominator) // (2 * ratio.denominator)).clamp(min=1)
        picked = ranks(relevance) < core

        similarity = cosines(image_features, image_features)
        place = torch.arange(image_features.shape[1])
        maxmin = self.diversity == "maxmin"
        if maxmin:
            close = torch.where(picked[:, :, None], similarity, -9.0).amax(dim=1)
        else:
            close = torch.where(picked[:, :, None], similarity, 0.0).sum(dim=1)
        steps = (keep - core).reshape(())

        def more(step: Any, picked: Any, close: Any) -> Any:
            return step < steps

        def pick(step: Any, picked: Any, close: Any) -> tuple[Any, Any, Any]:
            # The mean has the same divisor for all.  Sums that are equal in exact arithmetic are made equal.
            best = torch.where(picked, 1e30, torch.round(close * 1e10)).argmin(dim=1, keepdim=True)
            row = similarity.gather(1, best[:, :, None].expand(-1, 1, similarity.shape[2]))[:, 0]
            return step + 1, picked | (place == best), torch.maximum(close, row) if maxmin else close + row

        picked = while_loop(more, pick, (torch.zeros((), dtype=torch.int64), picked, close))[1]
        return self.keep_rows(image_features, picked.long(), keep)


METHODS: dict[str, type[Pruner]] = {"adafv": AdaFv, "zspaprune": ZspaPrune, "fastervlm": FasterVlm}
