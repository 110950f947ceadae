"""A decoder's attention over its KV cache, rewritten into the form that OpenVINO's CPU plug-in has a kernel for.

In an engine directory new keys and values are scattered into a cache of fixed capacity, and attention is written out.
In OpenVINO that copies every cache twice a step (the scattered one is a new tensor, which is then assigned to the
state), and attention reads all of the capacity.  The plug-in has one kernel, ``ScaledDotProductAttentionWithKVCache``,
for a state that grows by concatenation.  It appends in place, reads only what is there, and keeps keys and values in a
type of its own choice.  It takes the place of that attention when a model is opened; engine directories stay as they
are.

What is lost is the order: a column of the grown state is no slot of the cache.  So the graph has the slot of each
column as a further input, and its mask compares those with the queries' slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trtprune.backends.binding import CachePair

__all__ = ["COLUMN_SLOTS", "ROWS", "append_to_states"]

COLUMN_SLOTS = "column_slots"
"""Input int64 [batch, columns]: the slot of each column, those of this run behind the others."""
ROWS = "rows"
"""Input int32 [batch]: the row of the state that each row goes on from."""


def append_to_states(model: Any, pairs: Sequence[CachePair]) -> str | None:
    """Rewrites a decoder in place: its pairs become states that grow, without an input and an output.

    Args:
        model: ``openvino.Model`` of a decoder whose cache write is ``ScatterElementsUpdate`` and whose attention is
            written out (``cache`` and ``attention`` of :class:`trtprune.graph.Lowering` are ``primitives``).
        pairs: All its pairs, keys and values in turn.

    Returns:
        None, or the name of the first input that is used in another way; then the model must not be used.
    """
    from openvino import opset15 as op

    rows, columns = op.parameter([-1], np.int32, name=ROWS), op.parameter([-1, -1], np.int64, name=COLUMN_SLOTS)
    for name, node in ((ROWS, rows), (COLUMN_SLOTS, columns)):
        node.output(0).get_tensor().set_names({name})
    model.add_parameters([rows, columns])
    pasts = {pair.past: model.input(pair.past).get_node() for pair in pairs}
    slots = op.unsqueeze(columns, _ints(1, 2))
    ranges = list(_capacity_ranges(pasts[pairs[0].past]))
    if not ranges:
        return pairs[0].past
    for found in ranges:
        _replace(found, slots)
    states = _States(rows)
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        layer = _Layer.find(pasts[key.past], pasts[value.past])
        if layer is None:
            return key.past
        layer.fuse(states.grown(key.past, pasts[key.past], layer.new_key),
                   states.grown(value.past, pasts[value.past], layer.new_value))  # fmt: skip
    presents = {pair.present for pair in pairs}
    for result in list(model.get_results()):
        if presents & result.input_value(0).get_names():
            model.remove_result(result)
    model.add_sinks(states.sinks)
    for parameter in pasts.values():
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return None


class _States:
    """States that begin with no column.

    Args:
        rows: See :data:`ROWS`.
    """

    def __init__(self, rows: Any) -> None:
        from openvino import opset15 as op

        self._rows, self._batch = rows, op.shape_of(rows)
        self.sinks: list[Any] = []

    def grown(self, name: str, past: Any, new: Any) -> Any:
        """The state ``name`` with ``new`` [batch, heads, S, head_dim] behind its columns."""
        from openvino import PartialShape
        from openvino import opset15 as op
        from openvino.op.util import Variable, VariableInfo

        _, heads, _, width = past.get_output_partial_shape(0)
        info = VariableInfo()
        info.data_shape = PartialShape([-1, heads.get_length(), -1, width.get_length()])
        info.data_type, info.variable_id = past.get_output_element_type(0), name
        variable = Variable(info)
        nothing = op.broadcast(
            op.convert(op.constant(np.float32(0)), info.data_type),
            op.concat([self._batch, _ints(heads.get_length(), 0, width.get_length())], 0),
        )
        # The plug-in looks for this Gather: a search for the best answer moves rows with it.
        before = op.gather(op.read_value(nothing, variable), self._rows, op.constant(0))
        grown = op.concat([before, new], 2)
        self.sinks.append(op.assign(grown, variable))
        return grown


class _Layer:
    """The written-out attention of a layer.

    Attributes:
        new_key: New keys [batch, heads, S, head_dim]; ``new_value`` likewise.
    """

    def __init__(self, writes: Sequence[Any], scores: Any, mask: Any, out: Any) -> None:
        self.new_key, self.new_value = (write.input_value(2) for write in writes)
        self._heads = writes[0].get_output_partial_shape(0)[1].get_length()
        self._width = writes[0].get_output_partial_shape(0)[3].get_length()
        self._query, self._mask, self._out = scores.input_value(0), mask, out

    @classmethod
    def find(cls, key: Any, value: Any) -> _Layer | None:
        """The layer of two cache inputs; None if it is written in another way."""
        writes = [_reader(past, "ScatterElementsUpdate") for past in (key, value)]
        scores = _chain(writes[0], "Transpose", "MatMul")
        added = _chain(scores, "Add")
        out = _chain(added, "Softmax", "MatMul")
        if added is None or out is None or _reader(writes[1], "MatMul") is not out:
            return None
        mask = next(added.input_value(i) for i in (0, 1) if _origin(added.input_value(i)) is not scores)
        return cls(writes, scores, mask, out)

    def fuse(self, key: Any, value: Any) -> None:
        """Replaces it by attention of its queries to grown keys and values."""
        from openvino import opset15 as op

        query, mask, out = self._query, self._mask, self._out
        grouped = _origin(query)
        if grouped.get_type_name() == "Reshape":  # several query heads for a key head, side by side as rows
            query, mask = grouped.input_value(0), _origin(mask).input_value(0)
            out = _reader(out, "Reshape")
            heads = query.get_partial_shape()[1].get_length()
            key, value = (self._repeated(x, heads) for x in (key, value))
        kind = query.get_element_type()
        key, value, mask = (x if _type(x) == kind else op.convert(x, kind) for x in (key, value, mask))
        one = op.convert(op.constant(np.float32(1)), kind)  # queries are scaled
        attended = op.scaled_dot_product_attention(query, key, value, mask, one, False)
        if out.get_output_element_type(0) != kind:
            attended = op.convert(attended, out.get_output_element_type(0))
        _replace(out, attended)

    def _repeated(self, x: Any, heads: int) -> Any:
        """Each head ``heads / heads of x`` times; the plug-in's kernel reads it once."""
        from openvino import opset15 as op

        shape = op.shape_of(x)
        batch, length = (op.gather(shape, _ints(axis), op.constant(0)) for axis in (0, 2))
        each = [batch, _ints(self._heads, heads // self._heads), length, _ints(self._width)]
        wide = op.broadcast(op.unsqueeze(x, op.constant(np.int64(2))), op.concat(each, 0), None, "BIDIRECTIONAL")
        return op.reshape(wide, _ints(0, heads, -1, self._width), special_zero=True)


def _capacity_ranges(past: Any) -> Iterator[Any]:
    """The ranges of slots: 0 up to the capacity of a cache input, which they know from its shape."""
    seen: set[str] = set()
    nodes = [node for node in _readers(past) if node.get_type_name() == "ShapeOf"]
    while nodes:
        node = nodes.pop()
        if node.get_name() in seen:
            continue
        seen.add(node.get_name())
        if node.get_type_name() == "Range":
            yield node
        else:
            nodes += _readers(node)


def _readers(node: Any) -> list[Any]:
    return [target.get_node() for target in node.output(0).get_target_inputs()]


def _reader(node: Any, kind: str) -> Any:
    """The only reader of a type, conversions of type skipped; None without one."""
    if node is None:
        return None
    found, nodes = [], _readers(node)
    while nodes:
        reader = nodes.pop()
        if reader.get_type_name() == "Convert":
            nodes += _readers(reader)
        elif reader.get_type_name() == kind:
            found.append(reader)
    return found[0] if len(found) == 1 else None


def _chain(node: Any, *kinds: str) -> Any:
    for kind in kinds:
        node = _reader(node, kind)
    return node


def _origin(value: Any) -> Any:
    """The node of a value, conversions of type skipped."""
    node = value.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node


def _type(x: Any) -> Any:
    return x.get_element_type() if hasattr(x, "get_element_type") else x.get_output_element_type(0)


def _replace(node: Any, other: Any) -> None:
    for target in list(node.output(0).get_target_inputs()):
        target.replace_source_output(other.output(0))


def _ints(*values: int) -> Any:
    from openvino import opset15 as op

    return op.constant(np.array(values, np.int64))
