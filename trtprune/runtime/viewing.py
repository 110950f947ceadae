"""An image's features and its kept visual tokens for a prompt, without an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtprune.runtime.clock import Clock
from trtprune.runtime.pipeline import turns_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from trtprune.backends.base import Array
    from trtprune.runtime.features import Features
    from trtprune.runtime.images.steps import Geometry
    from trtprune.runtime.pictures import ImageInput
    from trtprune.runtime.pipeline import Pipeline
    from trtprune.runtime.prompt import Prompt

__all__ = ["View", "look", "select"]


@dataclass(frozen=True)
class View:
    """One image as the model sees it: its features, and the text for the method's selection."""

    image: Image.Image
    geometry: Geometry | None
    """The place of the crop in the image; None with several crops."""
    features: Features
    prompt: Prompt
    text_embeds: Array
    """Embeddings [T, D] of all ids of the prompt."""


def look(pipeline: Pipeline, image: ImageInput, prompt: str, *, system: str | None = None) -> View:
    """Features of one image, and the text for the selection of its tokens."""
    loaded = pipeline.load(image)
    features = pipeline.chain.look([pipeline.processor.prepare(loaded)])[0]
    encoded = pipeline.encode(turns_of(prompt, 1, system), [features])
    embeds = pipeline.chain.embed(encoded.ids[None], pipeline.encoder.token)[0]
    return View(loaded, pipeline.processor.geometry(loaded.height, loaded.width), features, encoded, embeds)


def select(pipeline: Pipeline, view: View, *, keep: int, seed: int | None = None) -> np.ndarray:
    """Kept indices, int64 [n], ascending, of a viewed image; if the decoder prunes, of its last layer.

    Raises:
        BudgetError: for a budget that the build does not serve.
    """
    budget = pipeline.budget(keep, None)
    selection = pipeline.select(view.prompt, view.text_embeds, [view.features], budget, seed or 0, Clock())
    layout = pipeline.lay_out(view.prompt, view.text_embeds, selection)
    return pipeline.decoder.select(layout)[0]
