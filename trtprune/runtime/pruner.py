"""The pruner in front of the decoder: which visual tokens of an image enter it.

What the graph reads follows from its inputs: those that the vision graph returns are the image's, those of the text
encoders the prompt's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from trtprune.engine_dir.roles import CLIP_TEXT, EMBED, PRUNER, VISION
from trtprune.tensor_names import (
    GRID,
    IMAGE_FEATURES,
    KEEP,
    KEPT_INDICES,
    PRUNED_FEATURES,
    SEED,
    TEXT_EMBEDS,
    TEXT_MASK,
)

if TYPE_CHECKING:
    from trtprune.backends.base import Array
    from trtprune.engine_dir import EngineDir
    from trtprune.runtime.chain import Chain
    from trtprune.runtime.features import Features

__all__ = ["Pruner", "crop_inputs", "image_inputs", "reads_text"]


def image_inputs(config: EngineDir) -> tuple[str, ...]:
    """The pruner's inputs of an image beside its features, by name; none for a directory without a pruner."""
    pruner, vision = config.find(PRUNER), config.find(VISION)
    if pruner is None or vision is None:
        return ()
    outputs = {spec.name for spec in vision.outputs}
    return tuple(spec.name for spec in pruner.inputs if spec.name in outputs and spec.name != IMAGE_FEATURES)


def crop_inputs(config: EngineDir) -> frozenset[str]:
    """The names of :func:`image_inputs` with a row for each crop of an image."""
    read = image_inputs(config)
    specs = [spec for pruner in config.by_role(PRUNER) for spec in pruner.inputs if spec.name in read]
    return frozenset(spec.name for spec in specs if spec.shape[1:2] == ("crops",))


def reads_text(config: EngineDir) -> bool:
    """Whether the pruner of a directory reads the prompt: what one of the text encoders returns."""
    encoders = [*config.by_role(EMBED), *config.by_role(CLIP_TEXT)]
    outputs = {spec.name for encoder in encoders for spec in encoder.outputs}
    return any(spec.name in outputs for pruner in config.by_role(PRUNER) for spec in pruner.inputs)


class Pruner:
    """Runs the pruner of a chain.

    Args:
        chain: With a component of role ``pruner`` that belongs to no segment.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._inputs = frozenset(spec.name for spec in chain.config.part(PRUNER).inputs)
        self._image_inputs = image_inputs(chain.config)
        self._newlines = chain.config.vision.newlines
        # N is a run-time dimension of the graph, unless every image has the same candidates.
        self._by_token = frozenset(
            spec.name
            for spec in chain.config.part(PRUNER).inputs
            if "visual_tokens" in spec.shape[1:2] and spec.name != GRID
        )
        self._by_crop = crop_inputs(chain.config)
        self.reads_embeds = TEXT_EMBEDS in self._inputs
        """Whether the pruner reads the prompt's embeddings."""

    def prune(
        self,
        features: Features,
        text: Array | None,
        keep: int,
        seed: int,
        given: Mapping[str, Array] | None = None,
    ) -> tuple[np.ndarray, Array]:
        """Selects the visual tokens of one image.

        An image without a choice (:meth:`~trtprune.runtime.images.TokenPlan.without_choice`) does not go through the
        graph.

        Args:
            features: The image's features.
            text: [T, D], the embeddings of the method's span of text, for one that reads them.
            keep: The number of tokens to keep.
            seed: The seed of a method that draws.
            given: Further inputs by name, without their batch dimension; those that the graph has are used.

        Returns:
            Kept indices int64 [n], ascending, and features [n, D]; n is ``keep`` and the newline tokens that stay.
        """
        settled = features.plan.without_choice(keep, self._newlines)
        if settled is not None:
            whole = len(settled) == features.visual_tokens
            return self._laid_out(features, settled, features.image if whole else features.image[settled])
        candidates = features.plan.choices(self._newlines)
        inputs: dict[str, Array] = {IMAGE_FEATURES: features.image, KEEP: np.array([keep], np.int64)}
        inputs |= {
            name: (features.crops if name in self._by_crop else features.extras)[name] for name in self._image_inputs
        }
        if len(candidates) < features.visual_tokens:
            inputs |= {name: inputs[name][candidates] for name in self._by_token}
        inputs |= {name: inputs[name][None] for name in (IMAGE_FEATURES, *self._image_inputs)}
        if GRID in self._inputs:
            inputs[GRID] = features.plan.grid[candidates].astype(np.int64)[None]
        inputs |= {name: array[None] for name, array in (given or {}).items() if name in self._inputs}
        if self.reads_embeds:
            assert text is not None
            inputs[TEXT_EMBEDS] = text[None]
            inputs[TEXT_MASK] = np.ones((1, len(text)), np.int64)
        if SEED in self._inputs:
            inputs[SEED] = np.array([seed], np.int64)
        out = self._chain.session(PRUNER).run(inputs)
        places = self._chain.memory.to_host(out[KEPT_INDICES])[0]
        # Below 0: no visual token, but one of the tower's own.
        kept = np.where(places < 0, places, candidates[np.maximum(places, 0)])
        return self._laid_out(features, kept, out[PRUNED_FEATURES][0])

    def _laid_out(self, features: Features, kept: np.ndarray, rows: Array) -> tuple[np.ndarray, Array]:
        """Kept indices and features, by the build's rule with the newline tokens of every line that keeps a token."""
        ends = np.unique(features.plan.newline[kept[kept >= 0]])
        ends = np.setdiff1d(ends[ends >= 0], kept)
        if self._newlines != "keep" or not len(ends):
            return kept, rows
        together = np.concatenate((kept, ends))
        order = np.argsort(together, kind="stable")
        joined = self._chain.memory.concatenate([rows, features.image[ends]])
        return together[order], joined[order]
