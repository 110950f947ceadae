"""Pure functions about a graph's tensors, for every backend.

Outputs that share an input's buffer, shapes of the bindings of a call, and checks of the caller's inputs.  No runtime
library here, and no memory: a backend allocates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtprune.engine_dir import TensorSpec
from trtprune.errors import BackendError
from trtprune.tensor_names import is_past, is_present, present_of

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CachePair", "bind_dims", "cache_pairs", "numpy_dtype", "resolve_shape", "same_tensors"]

AGAIN = "if config.json says otherwise than the graphs, build the directory again"


@dataclass(frozen=True)
class CachePair:
    """A cache input and the output that is the same tensor after the call; both are bound to one buffer."""

    past: str
    present: str
    spec: TensorSpec


def cache_pairs(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[CachePair, ...]:
    """The pairs ``past_key_values.X`` / ``present.X`` of a graph, in the order of its inputs.

    Raises:
        BackendError: if one has no partner, or a partner of another shape or dtype: they could not share a buffer.
    """
    present = {spec.name: spec for spec in outputs if is_present(spec.name)}
    pairs = []
    for spec in inputs:
        if not is_past(spec.name):
            continue
        name = present_of(spec.name)
        partner = present.pop(name, None)
        if partner is None or partner.dtype != spec.dtype or len(partner.shape) != len(spec.shape):
            raise BackendError(f"graph input {spec.name} has no output {name} of its shape", hint="build it again")
        pairs.append(CachePair(spec.name, name, spec))
    if present:
        raise BackendError(f"graph output {next(iter(present))} has no cache input", hint="build it again")
    return tuple(pairs)


def bind_dims(
    specs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str] | None = None
) -> dict[str, int]:
    """The value of every symbolic dimension, from the shapes of the inputs.

    Raises:
        BackendError: naming a missing input, one of the wrong rank, size or dtype, or two that disagree.
    """
    dims: dict[str, int] = {}
    for spec in specs:
        if spec.name not in shapes:
            raise BackendError(f"input {spec.name} is missing", hint=AGAIN)
        shape = shapes[spec.name]
        fits = len(shape) == len(spec.shape)
        for want, have in zip(spec.shape, shape, strict=False):
            fits = fits and have == (dims.setdefault(want, have) if isinstance(want, str) else want)
        if not fits:
            message = f"input {spec.name} has shape {list(shape)}; the graph takes {list(spec.shape)}"
            raise BackendError(message, hint=AGAIN)
        if dtypes is not None and dtypes[spec.name] != spec.dtype:
            message = f"input {spec.name} is {dtypes[spec.name]}; the graph takes {spec.dtype}"
            raise BackendError(message, hint=AGAIN)
    extra = shapes.keys() - {spec.name for spec in specs}
    if extra:
        raise BackendError(f"the graph has no input {sorted(extra)[0]}", hint=AGAIN)
    return dims


def resolve_shape(spec: TensorSpec, dims: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape of ``spec`` with its symbolic dimensions filled in; None if one is known only after the call."""
    shape = [dims.get(dim) if isinstance(dim, str) else dim for dim in spec.shape]
    return None if None in shape else tuple(dim for dim in shape if dim is not None)


def same_tensors(specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[Any]]) -> bool:
    """Whether a graph has exactly these tensors, with equal sizes wherever both sides have a number.

    Args:
        specs: The tensors of ``config.json``.
        shapes: The tensors of the graph: name → sizes, with anything but an integer for a size that is not fixed.
    """
    if {spec.name for spec in specs} != shapes.keys():
        return False
    for spec in specs:
        found = shapes[spec.name]
        if len(found) != len(spec.shape):
            return False
        pairs = zip(spec.shape, found, strict=True)
        if any(isinstance(want, int) and isinstance(have, int) and want != have for want, have in pairs):
            return False
    return True


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype called ``name``; ``bfloat16`` is that of ml_dtypes."""
    import numpy as np

    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
