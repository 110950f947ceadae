"""A random subset: the control that every method has to beat.

The selection depends on the seed and N alone: all rows of a batch, every backend and the NumPy reference get the same
one, and the selection of a smaller budget is a subset of that of a larger one.

Token i scores ``mix(mix(mix(s + i))) >> 7`` (24 bits, exact in float32; the few equal ones fall to the lower index),
where ``s`` is the mixed seed and ``mix(x) = b * (x + a)^5 mod p`` with p = 2^31 - 1 and different constants a, b in
each round.  x^5 permutes the residues mod p because 5 does not divide p - 1.  Every product is below 2^62, so
int64 multiplication and Mod give the same bits everywhere; shifts and exclusive-or on unsigned integers, the usual
ingredients of a hash, are not available in TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.pruning import ops
from trtprune.pruning.method import Method
from trtprune.pruning.registry import register

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["RandomTokens"]

PRIME = 2**31 - 1
# (a, b) of each round: digits of pi and e, odd and below p.
_SEED_ROUNDS = ((314159265, 1358979323), (846264338, 327950289))
_TOKEN_ROUNDS = ((271828183, 1684590453), (523536029, 749669677), (572470937, 699959575))
_DROPPED_BITS = 128


def _mix(x: Any, a: int, b: int) -> Any:
    """One round, for a Python int or an int64 array of residues mod p."""
    y = (x + a) % PRIME
    square = y * y % PRIME
    return (square * square % PRIME) * y % PRIME * b % PRIME


@register
class RandomTokens(Method):
    """``keep`` tokens drawn without replacement, the same for the same seed."""

    name = "random"
    summary = "a random subset, repeatable from --seed"
    needs = frozenset({"seed"})
    cost = "N hashes and one TopK"

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        seed: int = inputs["seed"]
        state = _mix(seed % PRIME, *_SEED_ROUNDS[0])
        state = _mix((state + seed // PRIME) % PRIME, *_SEED_ROUNDS[1])
        keys = state + np.arange(len(image_features), dtype=np.int64)
        for a, b in _TOKEN_ROUNDS:
            keys = _mix(keys, a, b)
        scores = (keys // _DROPPED_BITS).astype(np.float32)
        return np.sort(ops.descending(scores)[:keep])

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        import onnx_ir as ir

        op = g.op
        prime = g.ints(PRIME)

        def mod(x: ir.Value) -> ir.Value:
            return op.Mod(x, prime)

        def mix(x: ir.Value, a: int, b: int) -> ir.Value:
            y = mod(op.Add(x, g.ints(a)))
            square = mod(op.Mul(y, y))
            fifth = mod(op.Mul(mod(op.Mul(square, square)), y))
            return mod(op.Mul(fifth, g.ints(b)))

        seed = inputs["seed"]
        state = mix(mod(seed), *_SEED_ROUNDS[0])
        state = mix(mod(op.Add(state, op.Div(seed, prime))), *_SEED_ROUNDS[1])
        features = inputs["image_features"]
        keys = op.Add(state, ops.iota(g, op.Shape(features, start=1, end=2)))
        for a, b in _TOKEN_ROUNDS:
            keys = mix(keys, a, b)
        scores = op.Cast(op.Div(keys, g.ints(_DROPPED_BITS)), to=int(ir.DataType.FLOAT))
        return op.Expand(op.Unsqueeze(scores, g.ints(0)), op.Shape(features, start=0, end=2))
