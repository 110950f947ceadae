"""The sessions of an engine directory, and the stages that need a single session.

Works on arrays and token ids.  ``pruner`` selects tokens, ``decoder`` runs the decoder, and
``pipeline`` connects all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.backends.batches import VISION_BATCH
from trtprune.backends.binding import numpy_dtype
from trtprune.engine_dir.roles import DECODER, EMBED, PACK, VISION, Part
from trtprune.errors import InputError
from trtprune.runtime.features import Features
from trtprune.tensor_names import (
    IMAGE_FEATURES,
    INPUT_IDS,
    PACK_INDEX,
    PACK_WEIGHT,
    PACKED,
    PIXEL_VALUES,
    TEXT_EMBEDS,
)

if TYPE_CHECKING:
    from trtprune.backends.base import Array, Backend, Session, Step
    from trtprune.engine_dir import ComponentInfo, EngineDir
    from trtprune.runtime.images import Prepared, TokenPlan

__all__ = ["Chain"]


class Chain:
    """The sessions of an engine directory.

    Args:
        config: The engine directory.
        backend: The backend that opens each session at its first use.
    """

    def __init__(self, config: EngineDir, backend: Backend) -> None:
        self.config = config
        self.memory = backend.memory
        self.dtype = numpy_dtype(config.dtype)
        self._backend = backend
        self._sessions: dict[Part, Session] = {}

    def session(self, role: str, segment: int | None = None) -> Session:
        """The session of a component."""
        part = Part(role, segment)
        if part not in self._sessions:
            self._sessions[part] = self._backend.session(self.config.part(role, segment), self.config.root)
        return self._sessions[part]

    def step(self, cache: Any) -> Step:
        """The backend's decode step of a whole decoder over ``cache``."""
        return self._backend.step(self.session(EMBED), self.session(DECODER), cache)

    @contextmanager
    def wrapped(self, wrap: Callable[[ComponentInfo, Session], Any]) -> Iterator[None]:
        """Runs each component of the chain in the session that ``wrap`` makes of its own, while the block lasts."""
        own = {}
        for component in map(self.config.component, self.config.chain):
            own[component.part] = self.session(component.role, component.segment)
            self._sessions[component.part] = wrap(component, own[component.part])
        try:
            yield
        finally:
            self._sessions |= own

    def close(self) -> None:
        """Releases the sessions."""
        self._sessions.clear()

    def look(self, images: Sequence[Prepared]) -> list[Features]:
        """Features of images."""
        vision = self.session(VISION)
        if images[0].arrays:
            return self._look_packed(images)
        size = min(VISION_BATCH, vision.max_batch)
        crops = np.concatenate([image.pixel_values for image in images]).astype(self.dtype)
        runs = [vision.run({PIXEL_VALUES: crops[start : start + size]}) for start in range(0, len(crops), size)]
        features, first = [], 0
        for image in images:
            rows = {name: self._rows([run[name] for run in runs], first, image.plan.crops, size) for name in runs[0]}
            features.append(self._pack(rows, image.plan))
            first += image.plan.crops
        self.memory.wait()
        return features

    def _look_packed(self, images: Sequence[Prepared]) -> list[Features]:
        """Features of images by a packed tower, one image a run; its outputs are those of one crop."""
        vision = self.session(VISION)
        runs = [vision.run({PIXEL_VALUES: i.pixel_values.astype(self.dtype), **i.arrays}) for i in images]
        features = [self._pack(run, image.plan) for run, image in zip(runs, images, strict=True)]
        self.memory.wait()
        return features

    def _rows(self, runs: Sequence[Array], first: int, count: int, size: int) -> Array:
        """Rows ``first`` to ``first + count`` of an output that came in runs of ``size`` rows."""
        pieces = []
        for number in range(first // size, (first + count - 1) // size + 1):
            start = number * size
            pieces.append(runs[number][max(first - start, 0) : min(first + count - start, size)])
        return self.memory.concatenate(pieces)

    def _pack(self, rows: Mapping[str, Array], plan: TokenPlan) -> Features:
        """The visual tokens of an image, from the outputs of the vision graph for its crops."""
        pack = self.config.find(PACK)
        if pack is None:
            single = {name: array[0] for name, array in rows.items()}
            return Features(single.pop(IMAGE_FEATURES), plan, single, {name: rows[name] for name in single})
        inputs: dict[str, Array] = {PACK_INDEX: plan.pack_index.astype(np.int64), PACK_WEIGHT: plan.pack_weight}
        inputs |= rows
        packed = self.session(PACK).run({spec.name: inputs[spec.name] for spec in pack.inputs})
        tokens = {name.removeprefix(PACKED): array for name, array in packed.items()}
        # Outputs that do not belong to patches are taken from the overview, which shows the whole image.
        crops = {name: array for name, array in rows.items() if name not in tokens}
        whole = {name: array[max(plan.overview, 0)] for name, array in crops.items()}
        return Features(tokens.pop(IMAGE_FEATURES), plan, tokens | whole, crops)

    def embed(self, ids: np.ndarray, name: Callable[[int], str] = str) -> Array:
        """Embeddings [B, T, D] of int64 [B, T] ids.

        Args:
            ids: Token ids; the embedding of an image placeholder has no meaning.
            name: Function of an id to the token's text, for the message.

        Raises:
            InputError: for a token without an embedding in the model.
        """
        model = self.config.model
        beyond = ids[((ids >= model.vocab_size) | (ids < 0)) & (ids != model.image_token_id)]
        if len(beyond):
            raise InputError(
                f"the prompt holds {name(int(beyond[0]))!r}, token {beyond[0]}, and the model has embeddings of "
                f"{model.vocab_size} tokens only",
                hint="leave it out; or give the checkpoint the tokens of its tokenizer (in transformers, "
                "resize_token_embeddings), and build again",
            )
        # In some checkpoints the image placeholder's id is above the vocabulary; its embedding is never used.
        ids = np.where(ids < model.vocab_size, ids, 0)
        return self.session(EMBED).run({INPUT_IDS: ids})[TEXT_EMBEDS]
