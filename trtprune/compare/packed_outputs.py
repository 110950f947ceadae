"""The outputs of a packed tower's vision graph, from transformers' modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trtprune.tensor_names import IMAGE_FEATURES, PIXEL_VALUES, TOKEN_POSITIONS, WINDOW_INDEX

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["packed_outputs"]


def packed_outputs(
    tower: Any, feed: dict[str, np.ndarray], wanted: Sequence[str], shallow: int | None
) -> dict[str, np.ndarray]:
    """The requested outputs of one image, each with a leading 1.

    Args:
        tower: The model's module, with the merger.
        feed: The graph's inputs, see :mod:`trtprune.runtime.images.packed`.
        wanted: Requested names; unknown ones are ignored.
        shallow: The layer for ``shallow_attention``, counted from 1.
    """
    import torch

    merge = tower.spatial_merge_size
    rows, columns = (int(side) + 1 for side in feed[TOKEN_POSITIONS].max(axis=0))
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        block.attn.qkv.register_forward_hook(lambda _, __, out, i=i: seen.update({f"qkv.{i}": out}))
        for i, block in enumerate(tower.blocks)
    ]
    hooks.append(tower.rotary_pos_emb.register_forward_hook(lambda _, __, out: seen.update(cos=out[0], sin=out[1])))
    try:
        grid = torch.tensor([[1, merge * rows, merge * columns]])
        out = tower(torch.from_numpy(feed[PIXEL_VALUES]), grid_thw=grid)
    finally:
        for hook in hooks:
            hook.remove()
    maps = _Maps(tower, feed, seen, out.last_hidden_state)
    full = getattr(tower, "fullatt_block_indexes", None) or [len(tower.blocks) - 1]
    makers: dict[str, Callable[[], Any]] = {
        IMAGE_FEATURES: lambda: torch.cat((out.pooler_output, *(getattr(out, "deepstack_features", None) or ())), -1),
        "vision_features": lambda: maps.merged(out.last_hidden_state).mean(1),
        "mean_query_attention": lambda: maps.mean_query(max(full)),
        "vision_keys": lambda: maps.units(maps.projected(max(full))[1].mean(0)).mean(1),
        "shallow_attention": lambda: maps.received(shallow - 1) if shallow is not None else None,
        "deep_attention": lambda: maps.received(max(full)),
    }
    return {name: makers[name]()[None].numpy() for name in wanted if name in makers}


class _Maps:
    """Queries and keys of the layers in merge order, whatever order the tower has them in."""

    def __init__(self, tower: Any, feed: dict[str, np.ndarray], seen: dict[str, torch.Tensor], last: Any) -> None:
        import torch

        self._seen, self._heads = seen, tower.blocks[0].attn.num_heads
        self._unit = tower.spatial_merge_size**2
        tokens = len(feed[TOKEN_POSITIONS])
        self._windows: torch.Tensor | None = None
        order = torch.arange(tokens)
        self._full = [*range(len(tower.blocks))]
        if WINDOW_INDEX in feed:
            slots = torch.from_numpy(feed[WINDOW_INDEX])
            order = slots[slots >= 0]
            self._full = [*tower.fullatt_block_indexes]
            number = torch.arange(len(slots))[:, None].expand_as(slots)[slots >= 0]
            self._windows = number[torch.argsort(order)].repeat_interleave(self._unit)
        self._back = torch.argsort(order)

    def units(self, rows: torch.Tensor) -> torch.Tensor:
        """[patches, …] in merge order → [N, patches of a token, …]."""
        return rows.unflatten(0, (-1, self._unit))

    def merged(self, rows: torch.Tensor) -> torch.Tensor:
        """As :meth:`units`, of rows in the tower's order."""
        return self.units(rows)[self._back]

    def projected(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys [heads, patches, head_dim] of a layer, rotated."""
        import torch

        both = self.merged(self._seen[f"qkv.{layer}"]).flatten(0, 1).unflatten(1, (3, self._heads, -1))
        cos, sin = self._seen["cos"][:, None], self._seen["sin"][:, None]
        found = []
        for x in (both[:, 0], both[:, 1]):
            a, b = x.chunk(2, dim=-1)
            found.append((x * cos + torch.cat((-b, a), dim=-1) * sin).transpose(0, 1))
        return found[0], found[1]

    def mean_query(self, layer: int) -> torch.Tensor:
        """What each token's patches receive together from the mean query: [N]."""
        q, k = self.projected(layer)
        scores = q.mean(1, keepdim=True) @ k.mT * q.shape[-1] ** -0.5
        return self.units(scores.softmax(-1).mean(dim=(0, 1))).sum(1)

    def received(self, layer: int) -> torch.Tensor:
        """The same from all queries, the mean of them: [N]."""
        q, k = self.projected(layer)
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if layer not in self._full and self._windows is not None:
            scores = scores.masked_fill(self._windows[:, None] != self._windows, -float("inf"))
        return self.units(scores.softmax(-1).mean(dim=(0, 1))).sum(1)
