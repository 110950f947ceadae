"""The packing of an image's crops in transformers, as the reference of the pack graph.

transformers packs by an image's size, the graph by an index that follows from it: the sizes come with the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trtprune.compare.draw import image_size, open_processor
from trtprune.errors import InputError
from trtprune.tensor_names import IMAGE_FEATURES, PACK_INDEX, PACK_WEIGHT, PACKED

if TYPE_CHECKING:
    import torch

    from trtprune.compare.draw import Draw
    from trtprune.compare.numerics import Feed
    from trtprune.engine_dir import EngineDir
    from trtprune.runtime.images import TokenPlan

__all__ = ["SizedPlan", "image_plans", "pack"]


class SizedPlan(NamedTuple):
    """The visual tokens of an image of some (height, width)."""

    size: tuple[int, int]
    plan: TokenPlan


def image_plans(made: EngineDir, draw: Draw, images: Sequence[str] = ()) -> list[SizedPlan]:
    """The images that the inputs of a comparison are about.

    Args:
        made: The engine directory.
        draw: Settings of random inputs.
        images: Those of a real input instead, all of one prompt.
    """
    from trtprune.runtime.pictures import load_picture, max_pixels_from

    processor = open_processor(made)
    if images:
        pictures = [load_picture(image, max_pixels_from(None), urls=True) for image in images]
        sizes = [(picture.height, picture.width) for picture in pictures]
    else:
        sizes = [image_size(processor, draw.seed + i) for i in range(draw.iterations)]
    return [SizedPlan(size, processor.plan(*size, max(1, len(images)))) for size in sizes]


def pack(model: Any, feed: Feed, plans: Sequence[SizedPlan]) -> dict[str, np.ndarray]:
    """The outputs of the pack graph: the features by transformers, all else, which it does not pack, in NumPy.

    Args:
        model: The checkpoint in transformers.
        feed: The graph's inputs.
        plans: Images, the one that is packed among them.

    Raises:
        InputError: for an image of unknown size.
    """
    import torch

    index = feed[PACK_INDEX]
    size = next((size for size, plan in plans if np.array_equal(plan.pack_index, index)), None)
    if size is None:
        raise InputError(
            "transformers packs an image by its size, and that of these inputs is not known",
            hint="--component vision, embed, pruner or decoder; or leave out --load-inputs",
        )
    found = {PACKED + IMAGE_FEATURES: _packed(model, torch.from_numpy(feed[IMAGE_FEATURES]), size).numpy()}
    weight = feed.get(PACK_WEIGHT, np.ones(index.shape, np.float32))
    for name, crops in feed.items():
        if name not in (IMAGE_FEATURES, PACK_INDEX, PACK_WEIGHT):
            rows = crops.reshape(crops.shape[0] * crops.shape[1], -1)
            rows = np.concatenate([rows, np.zeros_like(rows[:1])])
            packed = (rows[index] * weight[..., None]).sum(1, dtype=np.float32)
            found[PACKED + name] = packed.reshape(len(index), *crops.shape[2:])
    return found


def _packed(model: Any, features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The visual tokens [N, D] of crop features [crops, P, D] of an image (height, width)."""
    import torch

    inner, config = getattr(model, "model", model), model.config
    if not hasattr(inner, "pack_image_features"):  # they go into the prompt crop after crop
        return features.flatten(0, 1)
    settings = {
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "vision_aspect_ratio": getattr(config, "vision_aspect_ratio", None),
    }
    known = signature(inner.pack_image_features).parameters
    (tokens,), _ = inner.pack_image_features(
        [features],
        torch.tensor([size]),
        image_newline=inner.image_newline,
        **{name: value for name, value in settings.items() if name in known},
    )
    packed: torch.Tensor = tokens
    return packed
