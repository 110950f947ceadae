"""The sessions of an engine directory, and the stages that need nothing but one of them.

Works on arrays and token ids.  Which tokens are kept is the business of ``pruner``, what the decoder does with them
that of ``decoder``; ``pipeline`` puts all of it together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.backends.binding import numpy_dtype
from trtprune.engine_dir.roles import DECODER, EMBED, VISION, Part
from trtprune.errors import InputError
from trtprune.runtime.features import Features

if TYPE_CHECKING:
    from trtprune.backends.base import Array, Backend, Session, Step
    from trtprune.engine_dir import EngineDir

__all__ = ["Chain"]

# Images in one vision run: more would only add activations, the work for each image is the same.
VISION_BATCH = 8


class Chain:
    """The sessions of an engine directory.

    Args:
        config: The engine directory.
        backend: Opens them; each session when it is first needed.
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
        """The decode step of a whole decoder over ``cache``, as the backend makes it."""
        return self._backend.step(self.session(EMBED), self.session(DECODER), cache)

    def close(self) -> None:
        """Lets go of the sessions."""
        self._sessions.clear()

    def look(self, pixels: Sequence[np.ndarray]) -> list[Features]:
        """Features of images, each float32 [3, H, W]."""
        features = []
        vision = self.session(VISION)
        size = min(VISION_BATCH, vision.max_batch)
        for start in range(0, len(pixels), size):
            batch = np.stack(pixels[start : start + size]).astype(self.dtype)
            out = dict(vision.run({"pixel_values": batch}))
            images = out.pop("image_features")
            for i in range(len(batch)):
                features.append(Features(images[i], {name: array[i] for name, array in out.items()}))
        self.memory.wait()
        return features

    def embed(self, ids: np.ndarray, name: Callable[[int], str] = str) -> Array:
        """Embeddings [B, T, D] of int64 [B, T] ids.

        Args:
            ids: Of tokens; those at the image placeholder mean nothing.
            name: The text of a token, for the message.

        Raises:
            InputError: for a token of the tokenizer that the model has no embedding of.
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
        # Some checkpoints number the image placeholder behind the last word; its embedding is never used.
        ids = np.where(ids < model.vocab_size, ids, 0)
        return self.session(EMBED).run({"input_ids": ids})["text_embeds"]
