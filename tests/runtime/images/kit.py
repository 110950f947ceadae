"""Our image processors beside transformers' own, made of the same settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    LlavaNextImageProcessorPil,
    LlavaNextModel,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionModel,
    LlavaOnevisionProcessor,
)
from transformers.image_processing_utils import select_best_resolution

from trtprune.runtime.images import CropShape, Processor, TokenPlan, processor_from_settings

NEXT, ONEVISION = "llava_next", "llava_onevision"
IMAGE_PROCESSORS = {NEXT: LlavaNextImageProcessorPil, ONEVISION: LlavaOnevisionImageProcessorPil}

CLIP_336 = CropShape(336, 336, (14, 14))
SIGLIP_384 = CropShape(384, 384, (14, 14))
NEXT_SETTINGS: dict[str, Any] = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}


class Theirs:
    """transformers' image processor, its token count and its packing, for one kind of processor.

    Args:
        name: Our name of the processor.
        shape: A crop.
        values: What its ``preprocessor_config.json`` has.
        most: 9 of ``anyres_max_9``.
    """

    def __init__(self, name: str, shape: CropShape, values: dict[str, Any], most: int = 9) -> None:
        self.name, self.shape, self.most = name, shape, most
        self.images: Any = IMAGE_PROCESSORS[name](**values)
        self.ratio = f"anyres_max_{most}"
        kind = LlavaNextProcessor if name == NEXT else LlavaOnevisionProcessor
        self.processor = object.__new__(kind)
        self.processor.image_processor = self.images
        self.processor.patch_size = shape.patch[0]
        self.processor.num_additional_image_tokens = 0
        self.processor.num_image_tokens = shape.patches
        self.processor.vision_aspect_ratio = self.ratio

    @property
    def settings(self) -> dict[str, Any]:
        """The content of its ``preprocessor_config.json``."""
        return self.images.to_dict()

    def ours(self, **more: Any) -> Processor:
        """Our processor of the same settings."""
        ratio = {"vision_aspect_ratio": self.ratio} if self.name == ONEVISION else {}
        values = {**self.settings, **self.shape.settings(), **ratio, **more}
        return processor_from_settings(self.name, values, "preprocessor_config.json")

    def tokens(self, height: int, width: int) -> int:
        """N of a single image."""
        return self.processor._get_number_of_features(height, width, self.shape.height, self.shape.width)

    def best(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the plane of tiles."""
        best = select_best_resolution((height, width), self.images.image_grid_pinpoints)
        return best[0], best[1]

    def pack(self, features: np.ndarray, size: tuple[int, int], newline: np.ndarray) -> np.ndarray:
        """The model's visual tokens [N, width] of crop features [crops, patches, width] of an image (height, width)."""
        vision = SimpleNamespace(image_size=self.shape.height, patch_size=self.shape.patch[0])
        pinpoints = [list(pinpoint) for pinpoint in self.images.image_grid_pinpoints]
        model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))
        given: dict[str, Any] = {"image_newline": torch.from_numpy(newline)}
        if self.name == NEXT:
            packer, given["vision_feature_select_strategy"] = LlavaNextModel.pack_image_features, "full"
        else:
            packer, given["vision_aspect_ratio"] = LlavaOnevisionModel.pack_image_features, self.ratio
        packed, lengths = packer(model, [torch.from_numpy(features)], [size], **given)
        assert lengths.tolist() == [len(packed[0])]
        return packed[0].numpy()

    def pixels(self, *images: Image.Image) -> list[np.ndarray]:
        """``pixel_values`` of the images of one prompt, as a chat gives them."""
        nested = list(images) if self.name == NEXT else [list(images)]
        batch = self.images(nested, return_tensors=None)["pixel_values"]
        return [np.asarray(array, np.float32) for array in batch]


def pack(plan: TokenPlan, features: np.ndarray, newline: np.ndarray) -> np.ndarray:
    """Visual tokens [N, width] as the plan says, in NumPy."""
    rows = np.concatenate((features.reshape(-1, features.shape[-1]), newline[None]))
    tokens = np.zeros((plan.tokens, features.shape[-1]), np.float32)
    for index, weight in zip(plan.pack_index.T, plan.pack_weight.T, strict=True):
        tokens += weight[:, None] * rows[index]
    return tokens


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ramp(width: int, height: int) -> Image.Image:
    """An image whose red says the column and whose green says the row of each pixel."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    pixels[..., 2] = 255  # padding has less
    return Image.fromarray(pixels)


@st.composite
def shapes_and_pinpoints(draw: st.DrawFn) -> tuple[CropShape, list[list[int]]]:
    """A crop of 2 to 6 patches a side, with or without pixels to spare, and one to six resolutions of up to 5 × 5."""
    patch, side = draw(st.integers(2, 5)), draw(st.integers(2, 6))
    edge = patch * side + draw(st.integers(0, patch - 1))
    tiles = st.tuples(st.integers(1, 5), st.integers(1, 5))
    pinpoints = draw(st.lists(tiles, min_size=1, max_size=6))
    return CropShape(edge, edge, (patch, patch)), [[edge * down, edge * across] for down, across in pinpoints]


SIDES = st.one_of(st.integers(1, 60), st.integers(1, 4000))
