"""A component as an engine: arrays in, arrays out, all of them on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.backends.binding import CachePair, cache_pairs, numpy_dtype, resolve_shape
from trtprune.backends.tensorrt.execution import Binding, Engine
from trtprune.backends.tensorrt.memory import ALIGNMENT, KEEP_BYTES, DeviceArray, round_up
from trtprune.backends.tensorrt.shapes import max_batch, plan_call
from trtprune.errors import BackendError, EngineDirError

if TYPE_CHECKING:
    from trtprune.backends.base import CachedRow
    from trtprune.engine_dir import ComponentInfo

__all__ = ["TrtCache", "TrtSession"]


class TrtCache:
    """The KV cache of a batch: one block of memory with the buffers of all layers in sequence."""

    def __init__(self, slab: DeviceArray, views: dict[str, DeviceArray], batch: int, capacity: int) -> None:
        self._slab: DeviceArray | None = slab
        self.views = views
        self.batch = batch
        self.capacity = capacity
        self.nbytes = sum(view.nbytes for view in views.values())

    @property
    def slab(self) -> DeviceArray:
        """All buffers together, uint8."""
        assert self._slab is not None, "this cache was given back"
        return self._slab

    def drop(self) -> None:
        """Releases the memory; the cache is not used any more."""
        self._slab, self.views = None, {}

    @property
    def key(self) -> tuple[int, int]:
        """A key that is equal for caches whose buffers have the same addresses."""
        return self.slab.address, self.batch

    def zero(self) -> None:
        """Sets every byte to 0: masked slots are multiplied by a zero weight, and 0 × NaN would be NaN."""
        self.slab.block.memory.driver.clear(self.slab.address, self.slab.nbytes)


class TrtSession:
    """One engine; see :class:`trtprune.backends.base.Session`.

    Args:
        component: The component's entry in ``config.json``.
        engine: The loaded engine.
        capacity: Tokens in the cache of a row; fixed in an engine.

    Raises:
        EngineDirError: if the engine has other tensors than the config says.
    """

    def __init__(self, component: ComponentInfo, engine: Engine, capacity: int) -> None:
        self.component = component
        self.engine = engine
        self.capacity = capacity
        self.max_batch = max_batch(component)
        self.pairs: tuple[CachePair, ...] = cache_pairs(component.inputs, component.outputs)
        cached = {name for pair in self.pairs for name in (pair.past, pair.present)}
        self.inputs = tuple(spec for spec in component.inputs if spec.name not in cached)
        self.outputs = tuple(spec for spec in component.outputs if spec.name not in cached)
        # An input that nothing reads may be missing from the engine.
        names = {spec.name for spec in component.inputs}
        if engine.outputs != {spec.name for spec in component.outputs} or not engine.inputs <= names:
            raise EngineDirError(
                f"{component.engine}: the engine's tensors are not those of config.json", hint="build it again"
            )
        if not {pair.past for pair in self.pairs} <= engine.inputs:
            raise EngineDirError(f"{component.engine}: the engine does not read its cache", hint="build it again")
        for pair in self.pairs:
            if engine.aliased_input(pair.present) not in (None, pair.past):
                raise EngineDirError(
                    f"{component.engine}: {pair.present} is not the updated {pair.past}", hint="build it again"
                )
        if engine.profiles != max(1, len(component.profiles)):
            raise EngineDirError(f"{component.engine}: has {engine.profiles} profiles", hint="build it again")
        # Now, so that an engine that cannot run fails when it is loaded.
        self._contexts = [engine.context(profile) for profile in range(engine.profiles)]

    def run(self, inputs: Mapping[str, Any], cache: TrtCache | None = None) -> dict[str, DeviceArray]:
        """Puts one run on the stream; the returned arrays are written when the stream reaches it.

        Raises:
            InputError, BudgetError: for a call beyond the engine's limits.
            BackendError: for inputs that do not fit, or a failure inside TensorRT.
        """
        memory = self.engine.memory
        values = {name: _host_values(inputs[name]) for name in self.engine.on_host & inputs.keys()}
        call = plan_call(
            self.component,
            self.inputs,
            self.outputs,
            {name: tuple(array.shape) for name, array in inputs.items()},
            {name: array.dtype.name for name, array in inputs.items()},
            {name: tuple(int(value) for value in array) for name, array in values.items()},
        )
        held: dict[str, Any] = dict(values)  # bound arrays must live until the run is on the stream
        for name, array in inputs.items():
            if name in values or name not in self.engine.inputs:
                continue
            held[name] = memory.upload(array) if isinstance(array, np.ndarray) else memory.aligned(array)
        kinds = {spec.name: spec.dtype for spec in self.outputs}
        results = {name: memory.empty(shape, kinds[name]) for name, shape in call.outputs.items()}
        context = self._contexts[call.profile]
        context.bind(
            {name: binding(array) for name, array in held.items()} | self.cache_inputs(cache),
            {name: binding(array) for name, array in results.items()} | self.cache_outputs(cache),
        )
        context.enqueue()
        return results

    def cache_inputs(self, cache: TrtCache | None) -> dict[str, Binding]:
        """Bindings of the cache as inputs."""
        return {pair.past: binding(cache.views[pair.past]) for pair in self.pairs} if cache is not None else {}

    def cache_outputs(self, cache: TrtCache | None) -> dict[str, Binding]:
        """Bindings of the cache as outputs: the same memory."""
        return {pair.present: binding(cache.views[pair.past]) for pair in self.pairs} if cache is not None else {}

    def new_cache(self, batch: int, capacity: int, reuse: TrtCache | None = None) -> TrtCache:
        """Zeroed buffers for ``batch`` rows, of the engine's capacity.

        Raises:
            BackendError: if that is too little, or there is not enough memory for it.
        """
        if capacity > self.capacity:
            raise BackendError(
                f"a KV cache of {capacity} tokens; the engine has {self.capacity}",
                hint="build with a larger --max-seq-len",
            )
        shapes, places, size = self._cache_layout(batch)
        memory = self.engine.memory
        slab = reuse.slab if reuse is not None else None
        # A much larger block would stay allocated for ever after one large batch.
        if slab is None or not size <= slab.block.nbytes <= max(4 * size, KEEP_BYTES):
            slab = None
            if reuse is not None:
                reuse.drop()  # first, so that both need not fit at once
            slab = memory.empty((size,), "uint8")
        slab = slab.view((size,))
        views = {p.past: slab.view(shapes[p.past], places[p.past], p.spec.dtype) for p in self.pairs}
        cache = TrtCache(slab, views, batch, self.capacity)
        cache.zero()
        return cache

    def _cache_layout(self, batch: int) -> tuple[dict[str, tuple[int, ...]], dict[str, int], int]:
        """Shape and place of each buffer in the slab, and the slab's size."""
        shapes, places, size = {}, {}, 0
        for pair in self.pairs:
            shape = resolve_shape(pair.spec, {"batch": batch, "capacity": self.capacity})
            if shape is None:
                raise BackendError(f"{pair.past}: shape {list(pair.spec.shape)} has unknown dimensions")
            shapes[pair.past], places[pair.past] = shape, size
            size += round_up(math.prod(shape) * numpy_dtype(pair.spec.dtype).itemsize, ALIGNMENT)
        return shapes, places, size

    def grow_cache(self, cache: TrtCache, capacity: int) -> TrtCache:
        """The cache itself: caches of engines have their full capacity from the beginning.

        Raises:
            BackendError: for more than that.
        """
        if capacity > cache.capacity:
            raise BackendError(
                f"a KV cache of {capacity} tokens; the engine has {cache.capacity}",
                hint="build with a larger --max-seq-len",
            )
        return cache

    def gather_rows(self, rows: Sequence[CachedRow], capacity: int, reuse: TrtCache | None = None) -> TrtCache:
        """A new cache of copies of rows: whole ones, since a row's tokens are not one piece of memory.

        Raises:
            BackendError: for more rows or tokens than the engine has.
        """
        if len(rows) > self.max_batch:
            raise BackendError(
                f"{len(rows)} rows at once; the engines were built for {self.max_batch}",
                hint="build with a larger --max-batch-size",
            )
        gathered, memory = self.new_cache(len(rows), capacity, reuse), self.engine.memory
        for name, view in gathered.views.items():
            for number, source in enumerate(rows):
                row = source.cache.views[name][source.row]
                memory.driver.on_device(view[number].address, row.address, row.nbytes)
        return gathered


def binding(array: Any) -> Binding:
    """Address and shape of an array on either side."""
    if isinstance(array, np.ndarray):
        return array.ctypes.data, array.shape
    address: int = array.address
    return address, array.shape


def _host_values(array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise BackendError("an input whose values decide shapes must be on the host")
    return np.ascontiguousarray(array)
