"""One crop an image: its features are the visual tokens, and each lies where its patch's pixels come from.

The pixels themselves are held to transformers' in ``tests/runtime/test_pictures.py``.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil

from tests.runtime.images.kit import noise, ramp
from tests.runtime.test_pictures import PROCESSORS
from trtprune.errors import EngineDirError, InputError
from trtprune.runtime.images import CropShape, Processor, processor_from_files, processor_from_settings

SHAPE = CropShape(28, 28, (7, 7))


def made(name: str, shape: CropShape = SHAPE, **more: Any) -> Processor:
    kind, values = PROCESSORS[name]
    return processor_from_settings("single", {**kind(**{**values, **more}).to_dict(), **shape.settings()}, "f.json")


def means(pixel_values: np.ndarray, values: Any) -> np.ndarray:
    """Mean red, green and blue of each patch: 8-bit values [patches, 3]."""
    pixels = pixel_values[0]
    if values.do_normalize:
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (values.image_mean, values.image_std))
        pixels = pixels * std + mean
    pixels = pixels * 255 if values.do_rescale else pixels
    return pixels.reshape(3, 4, 7, 4, 7).mean(axis=(2, 4)).reshape(3, -1).T


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=40, deadline=None)
@given(width=st.integers(30, 250), height=st.integers(30, 250))
def test_boxes_lie_where_the_pixels_come_from(name: str, width: int, height: int) -> None:
    processor = made(name, resample=2)
    prepared = processor.prepare(ramp(width, height))
    plan = prepared.plan
    colours = means(prepared.pixel_values, PROCESSORS[name][0](**PROCESSORS[name][1]))
    left, top, right, bottom = plan.boxes.T
    # Where the background is mixed in, colours say nothing of places; it has no pure blue.
    inside = (left > 0) & (top > 0) & (right < width) & (bottom < height) & (colours[:, 2] > 254)
    slack = 0.75 + 0.04 * np.maximum(right - left, bottom - top)
    assert (np.abs((left + right) / 2 - 0.5 - colours[:, 0]) <= slack)[inside].all()
    assert (np.abs((top + bottom) / 2 - 0.5 - colours[:, 1]) <= slack)[inside].all()


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 250), height=st.integers(1, 250))
def test_the_plan_is_the_identity(name: str, width: int, height: int) -> None:
    processor = made(name)
    plan = processor.plan(height, width)
    assert processor.tokens_range == (plan.tokens, plan.tokens) == (16, 16)
    assert processor.crops_range == (plan.crops, plan.crops) == (1, 1)
    np.testing.assert_array_equal(plan.pack_index[:, 0], np.arange(16))
    assert (plan.pack_weight == 1).all()
    assert (plan.newline == -1).all()
    assert plan.overview == 0
    np.testing.assert_array_equal(plan.grid, [[0, row, column] for row in range(4) for column in range(4)])
    assert not plan.padding.all()


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 250), height=st.integers(1, 250))
def test_padding_of_a_square(width: int, height: int) -> None:
    """Tokens of padding alone are those whose pixels are the background's; the nearest filter smears nothing."""
    assume(max(width, height) <= 3 * min(width, height))
    kind, values = PROCESSORS["llava-pads-no-crop"]
    values = {**values, "resample": 0, "image_mean": [0, 0, 0]}
    processor = processor_from_settings("single", {**kind(**values).to_dict(), **SHAPE.settings()}, "f.json")
    prepared = processor.prepare(Image.new("RGB", (width, height), (255, 255, 255)))
    colours = means(prepared.pixel_values, kind(**values))
    assert (colours[prepared.plan.padding] < 1).all()
    sides = prepared.plan.boxes[:, 2:] - prepared.plan.boxes[:, :2]
    large = (sides > sides.max(axis=0) / 2).all(axis=1)
    assert (colours[large] > 0).all()


@pytest.mark.parametrize("first", [-1, 1])
def test_features_that_are_no_patches(first: int) -> None:
    """The CLS token is a token without a row and a column; a tower without one may drop the first patch."""
    shape = CropShape(28, 28, (7, 7), first_patch=first)
    plan, whole = made("clip", shape).plan(60, 40), made("clip").plan(60, 40)
    assert plan.tokens == shape.features == 16 - first
    np.testing.assert_array_equal(plan.pack_index[:, 0], np.arange(plan.tokens))
    if first == 1:
        np.testing.assert_array_equal(plan.grid, whole.grid[1:])
        np.testing.assert_array_equal(plan.boxes, whole.boxes[1:])
    else:
        assert plan.grid[0].tolist() == [0, -1, -1]
        np.testing.assert_array_equal(plan.boxes[0], [0, 10, 40, 50])
        np.testing.assert_array_equal(plan.grid[1:], whole.grid)
        np.testing.assert_array_equal(plan.boxes[1:], whole.boxes)
    assert processor_from_settings("single", made("clip", shape).settings(), "f.json") == made("clip", shape)


@pytest.mark.parametrize("name", PROCESSORS)
def test_settings_make_an_equal_processor(name: str) -> None:
    processor = made(name)
    again = processor_from_settings("single", json.loads(json.dumps(processor.settings())), "config.json")
    assert again == processor
    image = noise(41, 60)
    np.testing.assert_array_equal(again.prepare(image).pixel_values, processor.prepare(image).pixel_values)


def test_the_checkpoints_file() -> None:
    text = json.dumps({"image_processor_type": "CLIPImageProcessorFast", "size": 28, "crop_size": 28})
    assert processor_from_files({"preprocessor_config.json": text}, SHAPE, {}, ["single"]) == made("clip")
    with pytest.raises(EngineDirError, match="image processor 'CLIPImageProcessorFast' does not fit this model"):
        processor_from_files({"preprocessor_config.json": text}, SHAPE, {}, ["llava_next"])
    with pytest.raises(EngineDirError, match="layout='paper': not offered"):
        processor_from_files({"preprocessor_config.json": text}, SHAPE, {}, ["single"], "paper")


@pytest.mark.parametrize("square", [True, False])
def test_a_number_as_size(square: bool) -> None:
    """``default_to_square`` says whether it is both sides or the shorter one."""
    values = {"size": 28, "default_to_square": square, "do_center_crop": not square, "crop_size": 28}
    theirs, image = CLIPImageProcessorPil(**values), noise(40, 60)
    processor = processor_from_settings("single", {**values, **SHAPE.settings()}, "f.json")
    expected = theirs(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(processor.prepare(image).pixel_values, expected.astype(np.float32))


def test_sizes_that_the_steps_do_not_reach() -> None:
    values = {"size": {"shortest_edge": 28}, "do_center_crop": False, **SHAPE.settings()}
    processor = processor_from_settings("single", values, "f.json")
    assert processor.plan(40, 40).tokens == 16
    with pytest.raises(InputError, match=r"takes exactly \(28, 28\)"):
        processor.plan(40, 60)
    with pytest.raises(InputError, match="20000000 × 1 is too narrow"):
        processor.prepare(Image.new("RGB", (20_000_000, 1)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"background": [0, 0, 300]}, "background .* is no colour"),
        ({"background": "red"}, "background"),
        ({"layout": "paper"}, "layout 'paper' is none of model"),
        (
            {"crop": {"height": 7, "width": 7, "patch": [7, 7], "first_patch": 1}},
            "no patch but the one that is dropped",
        ),
        ({"crop": {"height": 28, "width": 28, "patch": [7, 7], "first_patch": 2}}, "crop.first_patch 2"),
        ({"crop": {"height": 56, "width": 28, "patch": [7, 7]}}, r"makes pictures of \(28, 28\)"),
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "image processor 'Qwen2VLImageProcessor' is not supported"),
    ],
)
def test_a_damaged_config(change: dict[str, Any], named: str) -> None:
    kept = made("llava-pads-no-crop").settings()
    with pytest.raises(EngineDirError, match=named):
        processor_from_settings("single", {**kept, **change}, "config.json")
