"""The step from the features of an image's crops to its visual tokens, as one gather.

Where each visual token comes from is decided outside of the graph (``prepare``), from the image's size alone: ``P``
features a crop, crops one behind the other, and behind the last of them one learned row, the newline token, in a model
that has one.  One tap a visual token is tiling and unpadding; several are an interpolation, with a weight each.

Source: ``pack_image_features`` of LLaVA-NeXT and LLaVA-OneVision in transformers, as data instead of reshapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from trtprune.graph import Graph
from trtprune.graph.builder import DTYPES
from trtprune.tensor_names import IMAGE_FEATURES, PACK_INDEX, PACK_WEIGHT, PACKED

__all__ = ["Packed", "build_pack"]


@dataclass(frozen=True)
class Packed:
    """An output of the vision graph that is packed.

    Attributes:
        dtype: NumPy name of its element type.
        width: Numbers of one patch; 0 for a scalar.
    """

    dtype: str
    width: int


def build_pack(g: Graph, outputs: Mapping[str, Packed], patches: int, *, taps: int, newline: str | None) -> None:
    """Writes the graph: inputs as listed, ``pack_index`` and ``pack_weight``; the packed outputs.

    Args:
        g: The empty graph.
        outputs: Vision outputs by name, each [crops, patches] or [crops, patches, width]; ``image_features`` is the
            one whose last row is the newline token, and a row of zeros is that of the others.  Without a newline
            token there is no such row.
        patches: P, features of a crop.
        taps: Features that make a visual token.  With one tap there is no input ``pack_weight``.
        newline: Key of the newline token [D]; None for a model without one.

    The graph's inputs beside ``outputs`` are ``pack_index`` int64 [visual_tokens, taps], from 0 to crops · patches (the
    newline token's row), and ``pack_weight`` float32 [visual_tokens, taps].
    """
    op = g.op
    sources = {}
    for name, output in outputs.items():
        shape: list[int | str] = ["crops", patches, *([output.width] if output.width else [])]
        sources[name] = g.input(name, output.dtype, shape)
    index = g.input(PACK_INDEX, "int64", ["visual_tokens", taps])
    weight = g.input(PACK_WEIGHT, "float32", ["visual_tokens", taps]) if taps > 1 else None
    for name, output in outputs.items():
        with g.scope(name):
            rows = op.Reshape(sources[name], g.ints(-1, output.width or 1))
            if newline is not None:
                last = _last_row(g, output, newline if name == IMAGE_FEATURES else None)
                rows = op.Concat(rows, last, axis=0)
            packed = _gather(g, rows, index, weight)
            tail: Sequence[int] = [output.width] if output.width else []
            if not tail:
                packed = op.Squeeze(packed, g.ints(1))
        g.output(packed, PACKED + name, output.dtype, ["visual_tokens", *tail])


def _last_row(g: Graph, output: Packed, newline: str | None) -> ir.Value:
    """[1, width]: the newline token, or zeros."""
    width = output.width or 1
    if newline is not None:
        return g.op.Reshape(g.weight(newline), g.ints(1, width))
    return g.op.Expand(g.scalar(0.0, DTYPES[output.dtype]), g.ints(1, width))


def _gather(g: Graph, rows: ir.Value, index: ir.Value, weight: ir.Value | None) -> ir.Value:
    """[visual_tokens, width]: rows [R, width] at ``index`` [visual_tokens, taps], summed with their weights."""
    op = g.op
    if weight is None:
        return op.Gather(rows, op.Squeeze(index, g.ints(1)), axis=0)
    taps = g.cast(op.Gather(rows, index, axis=0), ir.DataType.FLOAT)
    return op.ReduceSum(op.Mul(taps, op.Unsqueeze(weight, g.ints(2))), g.ints(1), keepdims=0)
