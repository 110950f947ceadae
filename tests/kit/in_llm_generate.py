"""Greedy answers of a transformers decoder that prunes between its layers, step by step as published.

The layers are transformers' own, with eager attention and a cache of its own length each; what happens between them
is in ``in_llm_torch``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.kit import in_llm_torch

MASKED = torch.finfo(torch.float32).min


@dataclass
class Pruned:
    """What came out: ids, logits [tokens, V], lengths of the layers' caches; at each point kept indices of each image
    and what of the last image was merged, [C, D]."""

    ids: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    kept: list[list[Tensor]] = field(default_factory=list)
    merged: list[Tensor] = field(default_factory=list)
    raters: list[Tensor] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)


class Decoder:
    """A transformers model's language model, layer by layer."""

    def __init__(self, model: Any) -> None:
        self.model, self.text = model, model.model.language_model
        self.cache = DynamicCache()
        self.attention: dict[int, Tensor] = {}
        for i, layer in enumerate(self.text.layers):
            layer.self_attn.register_forward_hook(lambda m, a, out, i=i: self.attention.__setitem__(i, out[1][0]))

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        # [1, S], or [axes, 1, S] where a position has several numbers.
        return self.text.rotary_emb(torch.zeros(1, 1, 1), positions.unsqueeze(-2))

    def window(self, attention: Any) -> int | None:
        """Qwen2 says it layer by layer, Mistral in its configuration."""
        everywhere = getattr(self.text.config, "sliding_window", None)
        return getattr(attention, "sliding_window", everywhere)

    def mask(self, queries: int, before: int, window: int | None) -> Tensor:
        key, query = torch.arange(before + queries), before + torch.arange(queries)[:, None]
        seen = key <= query
        if window is not None:
            seen &= key > query - window
        return torch.where(seen, 0.0, MASKED)[None, None]

    def layer(self, i: int, x: Tensor, positions: Tensor) -> Tensor:
        """Layer ``i`` on [S, D]."""
        module, before = self.text.layers[i], self.cache.get_seq_length(i)
        with torch.no_grad():
            out = module(
                x[None],
                attention_mask=self.mask(len(x), before, self.window(module.self_attn)),
                position_ids=positions.unsqueeze(-2),
                past_key_values=self.cache,
                use_cache=True,
                position_embeddings=self.angles(positions),
            )
        return (out[0] if isinstance(out, tuple) else out)[0]

    def logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.lm_head(self.text.norm(x[-1:]))[0]

    def next_attention(self, i: int, x: Tensor, positions: Tensor) -> Tensor:
        """Attention map of layer ``i`` over states that have not entered it."""
        spare, self.cache = self.cache, DynamicCache()
        for j in range(i):  # the layer writes at its own place in the cache
            self.cache.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), j)
        self.layer(i, x, positions)
        self.cache = spare
        return self.attention[i]


def generate(
    model: Any,
    embeds: Tensor,
    spans: list[tuple[int, int]],
    tokens: int,
    method: str,
    points: list[int],
    keeps: Any,
    *,
    version: str = "1.0",
    heads: int = 14,
    number: Callable[[Tensor], tuple[Tensor, int]] | None = None,
    forced: Sequence[int] = (),
    levels: Sequence[Tensor] = (),
    recycle: bool = True,
) -> Pruned:
    """Greedy ids.

    Args:
        model: Of transformers, with eager attention.
        embeds: [L, D] of the whole prompt.
        spans: First row of each image and the one behind its last.
        tokens: How many to generate; an end of sequence does not stop it.
        method: ``sparsevlm``, ``fastv`` or ``pyramiddrop``.
        points: Layers behind which tokens go.
        keeps: For each point how many tokens of an image stay, or a function of (rank, tokens).
        version, heads, recycle: Of SparseVLM.
        number: Function of the rows' places in the whole prompt, -1 for merged ones, to their positions [S] or
            [axes, S] and the next position; None: one number each, as the method's paper has it.
        forced: Ids behind the prompt, before the first one that is generated; they are fed one by one.
        levels: DeepStack levels [L, D] of the whole prompt, zeros at text, each added behind the layer of its number.
    """
    decoder, made = Decoder(model), Pruned()
    original = method == "fastv" or version == "2.0"
    visual = torch.zeros(len(embeds), dtype=torch.bool)
    for start, stop in spans:
        visual[start:stop] = True
    place = torch.arange(len(embeds))
    if number is None:
        number = lambda rows: (rows, len(embeds)) if original else (torch.arange(len(rows)), len(rows))  # noqa: E731
    for start, stop in spans:
        text = place[(place >= stop) & ~visual]
        chosen = in_llm_torch.raters(embeds[start:stop], embeds[text]) if method == "sparsevlm" else torch.tensor([-1])
        made.raters.append(text[chosen])
    x, source = embeds, place.clone()
    positions, following = number(source)
    behind = []
    where = [(start, stop - start) for start, stop in spans]
    for i in range(len(decoder.text.layers)):
        x = decoder.layer(i, x, positions)
        if i < len(levels):
            x = x + levels[i][source]
        behind.append(following)
        if i not in points:
            continue
        k, kept = points.index(i), []
        attention = decoder.attention[i] if method != "pyramiddrop" else decoder.next_attention(i + 1, x, positions)
        cos, sin = (part[0, :, : part.shape[2] // 2] for part in decoder.angles(positions))
        whole = source  # the attention map is that of the uncut row
        # From the last image to the first, so that the places of those before stay.
        for image, (start, count) in reversed(list(enumerate(where))):
            rater = torch.isin(whole, made.raters[image]).nonzero()[:, 0]
            if callable(keeps):
                block = attention.mean(0)[rater, start : start + count]
                keep = keeps(int(torch.linalg.matrix_rank(block)), count)
            else:
                keep = keeps[k]
            if method == "sparsevlm" and version == "1.0":
                before = len(x)
                chosen, x = in_llm_torch.sparse_point(x, attention, rater, start, count, keep, recycle=recycle)
                if recycle and image == len(where) - 1:
                    made.merged.append(x[start + len(chosen) : len(x) - (before - start - count)])
            else:
                if method == "sparsevlm":
                    chosen = in_llm_torch.sparse_plus_point(attention, cos, sin, rater, start, count, keep, heads)
                else:
                    chosen = attention.mean(0)[rater[-1], start : start + count].topk(keep).indices.sort().values
                x = torch.cat([x[:start], x[start : start + count][chosen], x[start + count :]])
            gone = len(source) - len(x)
            fill = torch.full((count - gone - len(chosen),), -1)

            def cut(
                v: Tensor, start: int = start, count: int = count, chosen: Any = chosen, fill: Any = fill
            ) -> Tensor:
                return torch.cat([v[:start], v[start : start + count][chosen], fill, v[start + count :]])

            source = cut(source)
            where = [(s - gone * (s > start), c - gone * (s == start)) for s, c in where]
            kept.insert(0, chosen)
        made.kept.append(kept)
        positions, following = number(source)
    made.cached = [decoder.cache.get_seq_length(i) for i in range(len(decoder.text.layers))]
    made.logits.append(decoder.logits(x))
    for step in range(len(forced) + tokens - 1):
        if step < len(forced):
            made.logits.clear()
            token = forced[step]
        else:
            token = int(made.logits[-1].argmax())
            made.ids.append(token)
        x = model.get_input_embeddings()(torch.tensor([token])).detach()
        for i in range(len(decoder.text.layers)):
            x = decoder.layer(i, x, torch.full((*positions.shape[:-1], 1), behind[i] + step))
        made.logits.append(decoder.logits(x))
    made.ids.append(int(made.logits[-1].argmax()))
    return made
