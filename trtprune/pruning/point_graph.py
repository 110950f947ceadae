"""The graphs of a method that prunes inside the decoder: its raters, and a prune point.

``raters``: ``image_features`` [1, N, D], ``text_embeds`` [1, T, D] → ``raters`` bool [1, T].

In a model with DeepStack levels, rows carry those of later layers behind their D numbers: D is the row's width below.

A point: ``hidden_states`` [1, S, D], ``visual_index`` int64 [1, N] (the rows of S that are the image), ``keep`` int64
[1]; and, if the method needs them, ``rater_attention`` float32 [1, R, S] or [1, heads, R, S] with ``rater_weights``
float32 [1, R] (1 = a rater of this image), ``rater_index`` int64 [1, R] and ``position_ids`` int64 [1, axes, S].
Outputs ``kept_indices`` int64 [1, keep], into the N, and ``pruned_features`` [1, keep, D].  Where removed tokens are
merged, ``recycled`` int64 [1] says how many of them and ``merged`` int64 [1] into how many vectors,
``merged_features`` [1, merged, D].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtprune.graph import Graph
    from trtprune.pruning.base import BuildContext, LayerAccess

__all__ = ["build_point", "build_raters"]


class PointForm(Protocol):
    """The part of :class:`trtprune.pruning.InLlmMethod` that writes graphs."""

    point_needs: ClassVar[frozenset[str]]

    def attention(self, options: Mapping[str, Any]) -> str | None:
        """The form of the raters' attention."""

    def recycles(self, options: Mapping[str, Any]) -> bool:
        """Whether removed tokens are merged."""

    def build_raters(
        self, g: Graph, image_features: ir.Value, text_embeds: ir.Value, **options: Any
    ) -> ir.Value | None:
        """The raters among the text tokens."""

    def build_point(
        self, g: Graph, inputs: Mapping[str, ir.Value], layer: LayerAccess, **options: Any
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """One prune point."""


def build_raters(method: PointForm, context: BuildContext, options: Mapping[str, Any]) -> Graph | None:
    """The graph that chooses the raters; None if only the last token rates.

    Args:
        method: The method.
        context: The build.
        options: All options, validated.
    """
    from trtprune.graph.ops import columns

    g, width, row_width = context.make("raters"), context.hidden_size, context.row_width
    image = g.input("image_features", g.dtype_name, [1, "visual_tokens", row_width])
    text = g.input("text_embeds", g.dtype_name, [1, "text_tokens", row_width])
    if row_width > width:
        image, text = columns(g, image, 0, width), columns(g, text, 0, width)
    chosen = method.build_raters(g, image, text, **options)
    if chosen is None:
        return None
    g.output(chosen, "raters", "bool", [1, "text_tokens"])
    return g


def build_point(
    method: PointForm, make: Callable[[str], Graph], name: str, layer: LayerAccess, options: Mapping[str, Any]
) -> Graph:
    """One prune point.

    Args:
        method: The method.
        make: An empty graph of that name, in the build's dtype and lowering.
        name: The graph's name.
        layer: The decoder around the point.
        options: All options, validated.
    """
    g = make(name)
    needs = method.point_needs
    rows: list[int | str] = ["raters", "sequence"]
    shapes: dict[str, tuple[str, list[int | str]]] = {
        "hidden_states": (g.dtype_name, [1, "sequence", layer.row_width]),
        "visual_index": ("int64", [1, "visual_tokens"]),
        "rater_attention": (
            "float32",
            [1, layer.num_heads, *rows] if method.attention(options) == "heads" else [1, *rows],
        ),
        "rater_weights": ("float32", [1, "raters"]),
        "rater_index": ("int64", [1, "raters"]),
        "position_ids": ("int64", [1, layer.position_axes, "sequence"]),
        "keep": ("int64", [1]),
        "recycled": ("int64", [1]),
        "merged": ("int64", [1]),
    }
    wanted = {"hidden_states", "visual_index", "keep", *needs}
    if "rater_attention" in needs:
        wanted.add("rater_weights")
    if method.recycles(options):
        wanted |= {"recycled", "merged"}
    inputs = {key: g.input(key, *shapes[key]) for key in shapes if key in wanted}
    kept, pruned, merged = method.build_point(g, inputs, layer, **options)
    g.output(kept, "kept_indices", "int64", [1, "keep"])
    g.output(pruned, "pruned_features", g.dtype_name, [1, "keep", layer.row_width])
    if merged is not None:
        g.output(merged, "merged_features", g.dtype_name, [1, "merged", layer.row_width])
    return g
