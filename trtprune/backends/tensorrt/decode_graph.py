"""The decode step: token in, logits out, with everything between on the device.

Token, position and write index are copied to the device at once; embedding and decoder run on buffers at fixed
addresses; the logits come back in one copy.  The first call runs these steps, the second records them as a CUDA graph,
and from then on one launch runs all: otherwise launches would take most of the time of a small model's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from trtprune.backends.tensorrt.memory import ALIGNMENT, DeviceArray, DeviceMemory, round_up
from trtprune.backends.tensorrt.shapes import choose_profile
from trtprune.errors import BackendError
from trtprune.tensor_names import INPUT_IDS, INPUTS_EMBEDS, LOGITS, LOGITS_INDEX, POSITION_IDS, TEXT_EMBEDS, WRITE_INDEX

if TYPE_CHECKING:
    from trtprune.backends.tensorrt.session import TrtCache, TrtSession

__all__ = ["DecodeStep", "StepBuffers"]


class StepBuffers:
    """Memory of decode steps for up to ``rows`` rows, shared by all steps, which run one after another.

    Args:
        memory: The device's memory.
        rows: The largest number of rows of a batch.
        hidden: Width of an embedding.
        vocab: Width of the logits.
        dtype: Data type of the embeddings.
        axes: Numbers of a position.
    """

    def __init__(self, memory: DeviceMemory, rows: int, hidden: int, vocab: int, dtype: str, axes: int) -> None:
        # Each begins at an address that can be bound.
        sizes = {INPUT_IDS: (rows,), POSITION_IDS: (rows, axes), WRITE_INDEX: (rows,)}
        begins, total = {}, 0
        for name, shape in sizes.items():
            begins[name], total = total, total + round_up(8 * math.prod(shape), ALIGNMENT)
        self.host_block = host = memory.driver.allocate_host(total)
        self.block = memory.empty((total,), "uint8")
        self.host, self.fields = {}, {}
        for name, shape in sizes.items():
            begin = begins[name]
            self.host[name] = host[begin : begin + 8 * math.prod(shape)].view(np.int64).reshape(shape)
            self.fields[name] = self.block.view(shape, begin, "int64")
        self.logits_index = memory.zeros((rows, 1), "int64")
        self.embeds = memory.empty((rows, 1, hidden), dtype)
        self.logits = memory.empty((rows, 1, vocab), "float32")
        self.host_logits = memory.driver.allocate_host(4 * rows * vocab).view(np.float32).reshape(rows, vocab)


class DecodeStep:
    """The step over one cache; see :class:`trtprune.backends.base.Step`.

    Args:
        embed, decoder: Sessions of the two components.
        cache: The cache whose addresses are bound; the step does not keep it alive.
        buffers: The buffers of all steps.
        record: Whether to record a CUDA graph; otherwise TensorRT for RTX may record its own, with ``graphs``.
        graphs: See :meth:`Engine.context`.
    """

    def __init__(
        self,
        embed: TrtSession,
        decoder: TrtSession,
        cache: TrtCache,
        buffers: StepBuffers,
        *,
        record: bool,
        graphs: bool = False,
    ) -> None:
        self._driver = decoder.engine.memory.driver
        self._workspace = decoder.engine.workspace
        self._buffers = buffers
        self._batch = batch = cache.batch
        self._record = record
        self._graph: Callable[[], None] | None = None
        self._calls = 0

        def leading(array: DeviceArray, *shape: int) -> tuple[int, tuple[int, ...]]:
            return array.address, (batch, *shape)

        embedding = {TEXT_EMBEDS: leading(buffers.embeds, *buffers.embeds.shape[1:])}
        ids = {INPUT_IDS: leading(buffers.fields[INPUT_IDS], 1)}
        inputs = {
            INPUTS_EMBEDS: embedding[TEXT_EMBEDS],
            POSITION_IDS: leading(buffers.fields[POSITION_IDS], buffers.fields[POSITION_IDS].shape[1], 1),
            WRITE_INDEX: leading(buffers.fields[WRITE_INDEX]),
            LOGITS_INDEX: leading(buffers.logits_index, 1),
        }
        logits = {LOGITS: leading(buffers.logits, *buffers.logits.shape[1:])}
        # Separate contexts: a recording is valid only as long as nothing else is set in its context.
        self._contexts = []
        for session, given, made, used in ((embed, ids, embedding, None), (decoder, inputs, logits, cache)):
            profile = choose_profile(session.component, {name: shape for name, (_, shape) in given.items()}, {})
            context = session.engine.context(profile, graphs=graphs)
            context.bind(given | session.cache_inputs(used), made | session.cache_outputs(used))
            self._contexts.append(context)
        self._generation = self._workspace.generation

    def __call__(self, token: np.ndarray, position: np.ndarray, write_index: np.ndarray) -> np.ndarray:
        """Logits float32 [B, V] after ``token``; valid until the next call."""
        host, batch = self._buffers.host, self._batch
        host[INPUT_IDS][:batch] = token[:, 0]
        host[POSITION_IDS][:batch] = position[:, :, 0]
        host[WRITE_INDEX][:batch] = write_index
        if self._generation != self._workspace.generation:
            self._graph, self._calls, self._generation = None, 0, self._workspace.generation
        # The first run of a context may allocate and compile, which cannot be recorded.
        if self._graph is None and self._record and self._calls:
            try:
                self._graph = self._driver.record(self._enqueue)
            except BackendError as error:
                raise BackendError(
                    f"the decode step cannot be recorded as a CUDA graph: {error.message}",
                    hint="--provider-option cuda_graph=off",
                ) from None
        if self._graph is not None:
            self._graph()
        else:
            self._enqueue()
        self._calls += 1
        self._driver.synchronize()
        return self._buffers.host_logits[:batch]

    def _enqueue(self) -> None:
        buffers = self._buffers
        self._driver.to_device(buffers.block.address, buffers.host_block)
        for context in self._contexts:
            context.enqueue()
        self._driver.to_host(buffers.host_logits[: self._batch], buffers.logits.address)
