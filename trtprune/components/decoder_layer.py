"""The decoder as a graph between two segments sees it: rotary angles, and the attention of the next layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from trtprune.components.decoder import DecoderConfig, write_heads
from trtprune.graph import Graph
from trtprune.graph.attention import rotary
from trtprune.graph.ops import columns, rms_norm
from trtprune.graph.raters import rater_attention

__all__ = ["DecoderLayer"]


@dataclass(frozen=True)
class DecoderLayer:
    """The place behind layer ``layer`` of a decoder; see :class:`trtprune.pruning.LayerAccess`."""

    cfg: DecoderConfig
    prefix: str
    layer: int

    @property
    def hidden_size(self) -> int:
        return self.cfg.hidden_size

    @property
    def row_width(self) -> int:
        return self.cfg.row_width(self.layer + 1)

    @property
    def head_dim(self) -> int:
        return self.cfg.head_dim

    @property
    def num_heads(self) -> int:
        return self.cfg.num_heads

    @property
    def position_axes(self) -> int:
        return self.cfg.rope.axes

    def angles(self, g: Graph, position_ids: ir.Value) -> tuple[ir.Value, ir.Value]:
        """cos and sin [B, S, head_dim / 2] of int64 [B, axes, S] positions."""
        return self.cfg.rope.cos_sin(g, position_ids)

    def next_queries(self, g: Graph, hidden_states: ir.Value) -> ir.Value:
        """Queries [B, heads, S, head_dim] of [B, S, D] in the layer behind the place, without rotary positions."""
        return self._normed(g, "q", hidden_states)

    def next_keys(self, g: Graph, hidden_states: ir.Value) -> ir.Value:
        """Keys [B, key heads, S, head_dim], as :meth:`next_queries`."""
        return self._normed(g, "k", hidden_states)

    def _normed(self, g: Graph, kind: Literal["q", "k"], hidden_states: ir.Value) -> ir.Value:
        with g.scope(f"layers.{self.layer + 1}"):
            norm = f"{self.prefix}layers.{self.layer + 1}.input_layernorm"
            return self._projected(g, kind, rms_norm(g, self._states(g, hidden_states), norm, eps=self.cfg.norm_eps))

    def _states(self, g: Graph, rows: ir.Value) -> ir.Value:
        """Hidden states [B, S, D] of rows that may carry DeepStack levels behind them."""
        return rows if self.row_width == self.hidden_size else columns(g, rows, 0, self.hidden_size)

    def _projected(self, g: Graph, kind: Literal["q", "k"], x: ir.Value) -> ir.Value:
        """Queries (``q``) or keys (``k``) of normed rows [B, S, D], before rotary positions."""
        return write_heads(g, self.cfg, f"{self.prefix}layers.{self.layer + 1}.self_attn.", kind, x)

    def next_attention(self, g: Graph, hidden_states: ir.Value, position_ids: ir.Value, index: ir.Value) -> ir.Value:
        """Attention float32 [B, heads, R, S] of the rows ``index`` [B, R] in the layer behind the place."""
        cfg, dim, name = self.cfg, self.cfg.head_dim, f"{self.prefix}layers.{self.layer + 1}."
        with g.scope(f"layers.{self.layer + 1}"):
            y = rms_norm(g, self._states(g, hidden_states), f"{name}input_layernorm", eps=cfg.norm_eps)
            # Only the raters' rows need queries.
            place = g.op.Unsqueeze(index, g.ints(-1))
            asking = g.op.GatherND(y, place, batch_dims=1)
            q, k = self._projected(g, "q", asking), self._projected(g, "k", y)
            cos, sin = self.angles(g, position_ids)
            # Angles of the whole row, then its raters': some rope types look at the row's length.
            asking_cos, asking_sin = (g.op.GatherND(x, place, batch_dims=1) for x in (cos, sin))
            q = rotary(g, q, asking_cos, asking_sin, dim)
            k = rotary(g, k, cos, sin, dim)
            return rater_attention(
                g,
                q,
                k,
                index,
                group=cfg.num_heads // cfg.num_kv_heads,
                head_dim=dim,
                window=cfg.windows[self.layer + 1],
                gathered=True,
            )
