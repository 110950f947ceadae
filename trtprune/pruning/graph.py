"""The pruner graph of the chain: a method's selection and the gather of the kept features.

Inputs ``image_features`` [batch, N, D]; those of :data:`trtprune.pruning.inputs.INPUTS` that the method needs, each
with ``batch`` before its dimensions, and ``crops`` behind it where there is a row for each crop; ``text_mask`` int64
[batch, T] (1 = a real token) with ``text_embeds``; ``seed`` int64 [1]; ``keep`` int64 [1].  What a method needs of the
decoder's first layer is computed from ``text_embeds`` and ``image_features`` where the layer is given.  Outputs
``kept_indices`` int64 [batch, keep], ascending, and ``pruned_features`` [batch, keep, D].

In a model with DeepStack levels, features and text carry those behind their D numbers: the method reads the D, and the
kept rows leave the graph as wide as they came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from trtprune.arguments import arg
from trtprune.errors import BudgetError
from trtprune.pruning import ops
from trtprune.pruning.base import BaseMethod, BuildContext, LayerAccess
from trtprune.pruning.grids import MOST_CROPS
from trtprune.pruning.inputs import INPUTS, read_of_run

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtprune.graph import Graph, Lowering
    from trtprune.graph.lowering import Pieces

__all__ = ["build_pruner", "write_pruner"]

DYNAMIC = {
    "T": "text_tokens", "M": "text_segments", "C": "vision_width", "K": "key_width", "P": "clip_width",
    "H": "query_heads", "G": "key_heads", "W": "head_width",
}  # fmt: skip
"""Names of run-time dimensions."""


class Selection(Protocol):
    """The part of :class:`trtprune.pruning.Method` that writes a graph."""

    name: ClassVar[str]
    merges: ClassVar[bool]

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        """The names of the method's inputs."""

    def of_each_crop(self, options: Mapping[str, Any]) -> frozenset[str]:
        """The names of inputs with a row for each crop."""

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value | None:
        """Scores whose ``keep`` largest are the selection; None for a method without such scores."""

    def build(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        """The selected indices."""

    def build_merged(
        self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any
    ) -> tuple[ir.Value, ir.Value]:
        """The selected indices and the merged rows."""


def build_pruner(
    method: BaseMethod | str,
    hidden_size: int,
    dtype: str = "float32",
    lowering: Lowering | None = None,
    options: Mapping[str, object] | None = None,
    *,
    num_tokens: int | None = None,
    most_crops: int = MOST_CROPS,
    widths: Mapping[str, int] | None = None,
    pieces: Pieces | None = None,
) -> Graph:
    """The graph of ``method`` for features of width ``hidden_size``.

    Args:
        method: A method or its name.
        hidden_size: D.
        dtype: Dtype of features and text embeddings; the selection is always computed in float32.
        lowering: The forms of operators that the backend reads.
        options: Method options; omitted ones have their defaults.
        num_tokens: N, if the model fixes it; None: a run-time dimension.
        most_crops: Largest number of crops of an image, for a method that needs the grid.
        widths: C, K and P of :data:`trtprune.pruning.inputs.INPUTS`, if known; otherwise run-time dimensions.
        pieces: How lists are put in order that are too long for one TopK of the backend.

    Raises:
        BudgetError: for an unknown method or option, or a missing ``grid``.
    """
    from trtprune import pruning
    from trtprune.graph import Graph

    chosen = pruning.get(method) if isinstance(method, str) else method
    values = chosen.validate_options(options)
    context = BuildContext(
        lambda name: Graph(name, dtype=dtype, lowering=lowering, pieces=pieces), hidden_size,
        num_tokens=num_tokens, most_crops=most_crops, widths=widths or {},
    )  # fmt: skip
    if chosen.inside:
        raise BudgetError(f"{arg('method', chosen.name)} prunes inside the decoder and has no graph before it")
    return chosen.build_graphs(context, values)["pruner", None]


def write_pruner(
    g: Graph,
    method: Selection,
    hidden_size: int,
    options: Mapping[str, Any],
    *,
    row_width: int,
    num_tokens: int | None,
    most_crops: int,
    widths: Mapping[str, int],
    layer: LayerAccess | None = None,
) -> None:
    """:func:`build_pruner` into an empty graph, in its dtype; ``options`` are all of the method's, validated.

    ``layer`` is the place before the decoder's first layer, for a method that needs something of that.
    """
    from trtprune.graph.ops import columns, topk_gather

    dtype, needs = g.dtype_name, method.needs_of(options)
    if layer is not None:
        needs = read_of_run(needs)
    tokens = num_tokens if num_tokens is not None else "visual_tokens"
    sizes: dict[str, int | str] = {"N": tokens, "D": hidden_size, **DYNAMIC, **widths}
    by_crop = method.of_each_crop(options)
    rows = g.input("image_features", dtype, ["batch", tokens, row_width])
    inputs = {"image_features": rows}
    for name, entry in INPUTS.items():
        if name in needs:
            kind = dtype if entry.dtype == "model" else entry.dtype
            crops = ["crops"] if name in by_crop else []
            shape = entry.shape(sizes | {"D": row_width} if name == "text_embeds" else sizes)
            inputs[name] = g.input(name, kind, ["batch", *crops, *shape])
    if "text_embeds" in needs:
        inputs["text_mask"] = g.input("text_mask", "int64", ["batch", sizes["T"]])
    if "seed" in needs:
        inputs["seed"] = g.input("seed", "int64", [1])
    keep = g.input("keep", "int64", [1])
    if layer is not None:
        inputs |= _write_first_layer(g, layer, inputs)
    if row_width > hidden_size:
        wide = inputs.keys() & {"image_features", "text_embeds"}
        inputs |= {name: columns(g, inputs[name], 0, hidden_size) for name in sorted(wide)}
    fixed: dict[str, Any] = dict(options)
    if "grid" in needs:
        fixed["most_crops"] = most_crops

    if method.merges:
        indices, merged = method.build_merged(g, inputs, keep=keep, **fixed)
        pruned = g.cast(merged, g.dtype)
    else:
        scores = method.scores(g, inputs, keep=keep, **fixed)
        if scores is not None:
            pruned, indices = topk_gather(g, scores, rows, keep)
        else:
            indices = method.build(g, inputs, keep=keep, **fixed)
            pruned = g.op.GatherND(rows, g.op.Unsqueeze(indices, g.ints(-1)), batch_dims=1)
    g.output(indices, "kept_indices", "int64", ["batch", "keep"])
    g.output(pruned, "pruned_features", dtype, ["batch", "keep", row_width])


def _write_first_layer(g: Graph, layer: LayerAccess, inputs: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
    """``text_query`` and ``image_keys`` of :data:`trtprune.pruning.inputs.INPUTS`; text rows that are not finite do not
    count."""
    import onnx_ir as ir

    op, one, zero = g.op, ops.f32(g, 1.0), ops.f32(g, 0.0)
    queries = g.cast(layer.next_queries(g, inputs["text_embeds"]), ir.DataType.FLOAT)
    real = op.Cast(op.Unsqueeze(inputs["text_mask"], g.ints(1)), to=int(ir.DataType.BOOL))
    length = op.ReduceSum(op.Mul(queries, queries), g.ints(1, 3), keepdims=1)
    usable = op.And(op.Unsqueeze(real, g.ints(3)), op.Less(length, ops.f32(g, 3.0e38)))
    total = op.ReduceSum(op.Where(usable, queries, zero), g.ints(2), keepdims=0)
    count = op.ReduceSum(op.Cast(usable, to=int(ir.DataType.FLOAT)), g.ints(2), keepdims=0)
    return {
        "text_query": op.Div(total, op.Max(count, one)),
        "image_keys": g.cast(layer.next_keys(g, inputs["image_features"]), ir.DataType.FLOAT),
    }
