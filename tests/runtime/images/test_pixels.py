"""Pixels of every crop: bit for bit those of transformers' Pillow processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.runtime.images.kit import NEXT, ONEVISION, Theirs, noise
from trtprune.errors import InputError
from trtprune.runtime.images import CropShape

SHAPE = CropShape(28, 28, (7, 7))
SQUARE = {"height": 28, "width": 28}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84], [84, 140]]
CLIP = {"size": {"shortest_edge": 28}, "crop_size": SQUARE, "image_grid_pinpoints": PINPOINTS}
SIGLIP = {"size": SQUARE, "do_center_crop": False, "image_grid_pinpoints": PINPOINTS, **HALF}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "next-clip": (NEXT, CLIP),
    "next-siglip": (NEXT, {**SIGLIP, "crop_size": SQUARE}),
    "next-cuts-the-middle": (NEXT, {**CLIP, "size": {"shortest_edge": 40}, "resample": 2}),
    "next-pads-with-zeros": (NEXT, {**CLIP, "size": {"shortest_edge": 19}}),
    "next-odd-overview": (NEXT, {**CLIP, "size": {"height": 33, "width": 50}}),
    "next-no-resize": (NEXT, {**CLIP, "do_resize": False}),
    "next-no-pad": (NEXT, {**CLIP, "do_pad": False}),
    "next-no-normalize": (NEXT, {**CLIP, "do_normalize": False, "resample": 1}),
    "next-no-rescale": (NEXT, {**CLIP, "do_rescale": False}),
    "next-nearest": (NEXT, {**CLIP, "resample": 0, "image_grid_pinpoints": [[28, 28]]}),
    "onevision": (ONEVISION, SIGLIP),
    "onevision-clip": (ONEVISION, {**CLIP, "do_center_crop": True}),
    "onevision-cuts-the-middle": (ONEVISION, {**CLIP, "do_center_crop": True, "size": {"shortest_edge": 31}}),
    "onevision-no-normalize": (ONEVISION, {**SIGLIP, "do_normalize": False, "image_mean": [0.2, 0.5, 0.9]}),
}
SIDES = st.integers(1, 200)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=40, deadline=None)
@given(width=SIDES, height=SIDES, seed=st.integers(0, 9))
def test_a_single_image(name: str, width: int, height: int, seed: int) -> None:
    kind, values = CASES[name]
    theirs = Theirs(kind, SHAPE, values)
    image = noise(width, height, seed)
    prepared = theirs.ours().prepare(image)
    (expected,) = theirs.pixels(image)
    assert prepared.pixel_values.dtype == np.float32
    assert prepared.pixel_values.flags.c_contiguous
    assert len(prepared.pixel_values) == prepared.plan.crops
    np.testing.assert_array_equal(prepared.pixel_values, expected)


@pytest.mark.parametrize("name", [name for name, (kind, _) in CASES.items() if kind == ONEVISION])
@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.tuples(SIDES, SIDES), min_size=2, max_size=4))
def test_several_images_of_a_prompt(name: str, sizes: list[tuple[int, int]]) -> None:
    kind, values = CASES[name]
    theirs = Theirs(kind, SHAPE, values)
    images = [noise(width, height, place) for place, (width, height) in enumerate(sizes)]
    ours = theirs.ours()
    for image, expected in zip(images, theirs.pixels(*images), strict=True):
        np.testing.assert_array_equal(ours.prepare(image, images=len(images)).pixel_values, expected)


@pytest.mark.parametrize("size", [(1000, 1000), (3000, 4000), (10, 1000), (1, 1)])
def test_as_published(size: tuple[int, int]) -> None:
    height, width = size
    image = noise(width, height)
    from tests.runtime.images.test_counts import OURS, PUBLISHED

    for name, theirs in PUBLISHED.items():
        np.testing.assert_array_equal(OURS[name].prepare(image).pixel_values, theirs.pixels(image)[0])


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=100, deadline=None)
@given(width=st.integers(1, 5000), height=st.integers(1, 5000), images=st.integers(1, 2))
def test_pixels_taken(name: str, width: int, height: int, images: int) -> None:
    """No picture on transformers' way is larger, nor are the arrays."""
    kind, values = CASES[name]
    theirs = Theirs(kind, SHAPE, values)
    taken = theirs.ours().pixels_taken(width, height, images)
    sizes = [width * height, 28**2]
    if kind == ONEVISION and images > 1:
        sizes.append(max(width, height) ** 2)
    else:
        from transformers.image_processing_utils import select_best_resolution

        best = select_best_resolution((height, width), theirs.images.image_grid_pinpoints)
        sizes += [best[0] * best[1], (best[0] * best[1] // 28**2 + 1) * 28**2]
    assert taken >= max(sizes)
    assert taken <= 3 * max(sizes)


def test_more_memory_than_a_picture_may_take() -> None:
    """A narrow image of several would be padded to a square of gigabytes."""
    ours = Theirs(ONEVISION, SHAPE, SIGLIP).ours()
    image = Image.new("RGB", (20_000, 1))
    assert ours.prepare(image).pixel_values.shape[1:] == (3, 28, 28)
    with pytest.raises(InputError, match="20000 × 1 is too large or too narrow"):
        ours.prepare(image, images=2)
    assert ours.pixels_taken(20_000, 1, images=2) == 20_000**2


def test_several_images_that_no_step_brings_to_the_crops_size() -> None:
    ours = Theirs(ONEVISION, SHAPE, {**SIGLIP, "do_resize": False}).ours()
    assert ours.prepare(noise(40, 50)).pixel_values.shape[1:] == (3, 28, 28)
    with pytest.raises(InputError, match="is not brought to 28 × 28"):
        ours.prepare(noise(40, 50), images=2)
