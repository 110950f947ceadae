"""Shapes at run time: the profile of a call, and the shapes of its outputs.  Pure; does not use TensorRT.

A call beyond the limits is refused here, in words of the command line, before TensorRT refuses it in its own words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtprune.backends.binding import bind_dims, resolve_shape
from trtprune.errors import BackendError, BudgetError, InputError, TrtpruneError
from trtprune.tensor_names import cached_layers, is_past

if TYPE_CHECKING:
    from trtprune.engine_dir import ComponentInfo, EngineDir, TensorSpec

__all__ = ["PlannedCall", "cache_bytes", "cache_capacity", "choose_profile", "max_batch", "plan_call"]

Shape = tuple[int, ...]


def cache_capacity(component: ComponentInfo) -> int:
    """Tokens in the cache of a row of a component's engine; 0 without a cache."""
    for profile in component.profiles:
        for name, (_, _, most) in profile.items():
            if is_past(name):
                return most[2]
    return 0


def cache_bytes(config: EngineDir) -> int:
    """Bytes of one row's caches in all components."""
    layers = [cached_layers(spec.name for spec in c.inputs) for c in config.components]
    tokens = sum(n * cache_capacity(c) for n, c in zip(layers, config.components, strict=True))
    return tokens * config.kv.bytes_per_token // config.kv.num_layers


@dataclass(frozen=True)
class PlannedCall:
    """A call's profile number and the shape of every output."""

    profile: int
    outputs: dict[str, Shape]


def plan_call(
    component: ComponentInfo,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, str],
    values: Mapping[str, Shape],
) -> PlannedCall:
    """The profile and the output shapes of a call.

    Args:
        component: The component with the profiles.
        inputs, outputs: Its tensors without the cache.
        shapes, dtypes: Shapes and data types of the caller's inputs.
        values: Content of the inputs whose values decide shapes.  An output dimension with the name of such an input
            has its value: ``pruned_features`` [batch, keep, D].

    Raises:
        InputError, BudgetError: for a call beyond the engine's limits.
        BackendError: for inputs that do not fit the graph.
    """
    dims = bind_dims(inputs, shapes, dtypes)
    dims |= {name: value[0] for name, value in values.items() if len(value) == 1}
    profile = choose_profile(component, shapes, values)
    found = {}
    for spec in outputs:
        shape = resolve_shape(spec, dims)
        if shape is None:
            raise BackendError(f"output {spec.name}: its shape {list(spec.shape)} does not follow from the inputs")
        found[spec.name] = shape
    return PlannedCall(profile, found)


def choose_profile(component: ComponentInfo, shapes: Mapping[str, Shape], values: Mapping[str, Shape]) -> int:
    """The narrowest profile of the component that serves these shapes, so that single tokens get their own profile.

    Raises:
        InputError, BudgetError, BackendError: naming the flag to build with, if none does.
    """
    given = {**shapes, **values}
    fitting = []
    for number, profile in enumerate(component.profiles):
        ranges = [(given[name], limits) for name, limits in profile.items() if name in given]
        if all(_fits(have, low, high) for have, (low, _, high) in ranges):
            fitting.append((_volume([high for _, (_, _, high) in ranges]), number))
    if fitting:
        return min(fitting)[1]
    if not component.profiles:
        return 0
    widest = max(component.profiles, key=lambda profile: _volume([high for _, _, high in profile.values()]))
    for name, (low, _, high) in widest.items():
        if name in given and not _fits(given[name], low, high):
            raise _refusal(component, name, given[name], low, high)
    raise BackendError(f"{component.name}: no optimisation profile serves this call", hint="build it again")


def max_batch(component: ComponentInfo) -> int:
    """The largest number of rows of one run of a component."""
    batched = [spec for spec in component.inputs if spec.shape[:1] == ("batch",)]
    found = [profile[spec.name][2][0] for profile in component.profiles for spec in batched if spec.name in profile]
    return max(found, default=1)


def _fits(have: Shape, low: Shape, high: Shape) -> bool:
    return len(have) == len(low) and all(a <= x <= b for a, x, b in zip(low, have, high, strict=True))


def _volume(shapes: Sequence[Shape]) -> int:
    volume = 1
    for shape in shapes:
        for size in shape:
            volume *= max(size, 1)
    return volume


def _refusal(component: ComponentInfo, name: str, have: Shape, low: Shape, high: Shape) -> TrtpruneError:
    """The error for an input outside of every profile; it names the dimension."""
    spec = next(spec for spec in component.inputs if spec.name == name)
    if name == "keep":
        return BudgetError(
            f"--keep {have[0]}: the engines were built for {low[0]} to {high[0]}",
            hint="build with a wider --keep-range",
        )
    axis = next((i for i in range(min(len(have), len(low))) if not low[i] <= have[i] <= high[i]), 0)
    size, limit, dim = have[axis], high[axis], spec.shape[axis]
    if dim == "capacity":
        return BackendError(
            f"{component.name}: a cache of {size} tokens; the engine has {limit}",
            hint="build with another --max-seq-len",
        )
    if size < low[axis]:
        return InputError(f"{component.name}: {name} has shape {list(have)}; the engine takes at least {list(low)}")
    if dim in ("tokens", "text_tokens"):
        return InputError(
            f"the prompt has {size} tokens before its pictures take their places; the engines were built for {limit}",
            hint="shorten it, or build with a larger --max-input-len",
        )
    if dim == "text_segments":
        return InputError(
            f"the question fills {size} segments of CLIP's text tower; the engines were built for {limit}",
            hint="shorten it, or build with a larger --max-input-len",
        )
    if dim == "sequence":
        return InputError(
            f"the prompt has {size} tokens of text and kept visual ones; the engines take {limit} at once",
            hint="a shorter prompt, fewer pictures or a smaller --keep, or build with a larger --max-input-len"
            " or --max-images",
        )
    if dim == "batch":
        return InputError(
            f"{component.name}: {size} rows at once; the engines were built for {limit}",
            hint="a smaller batch, or build with a larger --max-batch-size",
        )
    return BackendError(f"{component.name}: input {name} has shape {list(have)}; the engine takes {list(high)} at most")
