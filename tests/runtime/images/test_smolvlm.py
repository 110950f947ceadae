"""The image processor of Idefics3 and SmolVLM: tiles, pixels, places and text beside transformers'."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import (
    SmolVLMImageProcessorPil,
    get_resize_output_image_size,
)
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from tests.runtime.images.kit import noise, ramp
from trtprune.errors import EngineDirError, InputError
from trtprune.runtime.images import CropShape, processor_from_files, processor_from_settings
from trtprune.runtime.images.smolvlm import AROUND, WHOLE, SmolVLM, markers, scaled_size

FILE = "preprocessor_config.json"
PUBLISHED = {
    "smolvlm-256m": (CropShape(512, 512, (64, 64)), 2048),
    "smolvlm-2.2b": (CropShape(384, 384, (42, 42)), 1536),
    "idefics3-8b": (CropShape(364, 364, (28, 28)), 1456),
}
"""Crop and longest edge of the published models."""
SMALL = CropShape(28, 28, (14, 14))
SIDES = st.one_of(st.integers(1, 60), st.integers(1, 4000))


def ours(shape: CropShape = SMALL, longest: int = 112, **values: Any) -> SmolVLM:
    own = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": shape.height}, **values}
    made = processor_from_settings("smolvlm", {**own, **shape.settings()}, FILE)
    assert isinstance(made, SmolVLM)
    return made


class Sizes(SmolVLMImageProcessorPil):  # type: ignore[misc]
    """transformers' processor without pixels: every resized image is a view of one zero."""

    def resize(self, image: Any, size: Any, resample: Any = None, **more: Any) -> Any:
        new = get_resize_output_image_size(image, size.longest_edge) if size.longest_edge else (size.height, size.width)
        return np.broadcast_to(np.uint8(0), (3, *new))

    def tiles(self, height: int, width: int, edge: int, longest: int) -> tuple[tuple[int, int], int, int, int]:
        from transformers.image_utils import SizeDict

        image = self.resize(np.broadcast_to(np.uint8(0), (3, height, width)), SizeDict(longest_edge=longest))
        plane = self.resize_for_vision_encoder(image, edge)
        frames, rows, columns = self.split_images(plane, {"longest_edge": edge})
        assert all(frame.shape == (3, edge, edge) for frame in frames)
        return image.shape[1:], len(frames), rows, columns


@pytest.mark.parametrize("name", PUBLISHED)
def test_sweep_of_the_published_models(name: str) -> None:
    """Ten thousand sizes: the scaled image, rows, columns and crops; and the bounds."""
    shape, longest = PUBLISHED[name]
    mine, processor, random = ours(shape, longest), Sizes(), np.random.default_rng(7)
    drawn = np.exp(random.uniform(0, np.log(6000), (9000, 2))).astype(int)
    near = random.integers(1, 8, (1000, 2)) * shape.height + random.integers(-1, 2, (1000, 2))
    reached = set()
    for height, width in np.maximum(np.concatenate((drawn, near)), 1).tolist():
        scaled, crops, rows, columns = processor.tiles(height, width, shape.height, longest)
        assert scaled_size(height, width, longest) == scaled, (height, width)
        down, across = mine.grid(height, width)
        assert (down, across) == (rows or 1, columns or 1), (height, width)
        assert down * across + (down * across > 1) == crops
        reached.add(crops)
    assert (min(reached), max(reached)) == mine.crops_range
    assert not mine.fixed_tokens


def test_golden_counts() -> None:
    """The table of docs/images.md: crops of nine sizes, and bounds."""
    sizes = [(336, 336), (480, 640), (640, 480), (720, 1280), (1000, 1000), (10, 1000), (1080, 1920), (3000, 4000)]
    for shape, longest in PUBLISHED.values():
        mine = ours(shape, longest)
        assert [mine.plan(*size).crops for size in sizes] == [17, 13, 13, 13, 17, 5, 13, 13]
        assert mine.crops_range == (5, 17)


@settings(max_examples=200, deadline=None)
@given(height=SIDES, width=SIDES, edge=st.integers(8, 600), longest=st.integers(1, 5000))
def test_any_settings(height: int, width: int, edge: int, longest: int) -> None:
    shape = CropShape(edge, edge, (edge, edge))
    if min(longest + 1, 4096) / edge > 16:
        return
    mine = ours(shape, longest)
    scaled, crops, rows, columns = Sizes().tiles(height, width, edge, longest)
    assert scaled_size(height, width, longest) == scaled
    plan = mine.plan(height, width)
    assert plan.crops == crops
    assert mine.crops_range[0] <= crops <= mine.crops_range[1]
    assert mine.tokens_range[0] <= plan.tokens <= mine.tokens_range[1]
    text = get_image_prompt_string(rows, columns, 1, AROUND, "<image>", WHOLE)
    assert plan.markers == tuple(text.split("<image>"))
    assert plan.spans == (1,) * crops


@pytest.mark.parametrize(
    ("edge", "longest"), [(28, 112), (28, 28), (28, 29), (28, 27), (13, 13), (28, 5000), (512, 9000)]
)
def test_bounds_are_reached(edge: int, longest: int) -> None:
    if min(longest + 1, 4096) / edge > 16:
        return
    mine = ours(CropShape(edge, edge, (edge, edge)), longest)
    sizes = [(1, n) for n in range(1, 300)] + [(n, 1) for n in range(1, 300)] + [(1000, n) for n in range(1, 1001)]
    tiles = [mine.grid(*size) for size in sizes]
    counts = {down * across + (down * across > 1) for down, across in tiles}
    assert (min(counts), max(counts)) == mine.crops_range


def test_markers_of_many_tiles() -> None:
    for rows in range(1, 15):
        for columns in range(1, 15):
            text = get_image_prompt_string(
                *((0, 0) if rows * columns == 1 else (rows, columns)), 2, AROUND, "<image>", WHOLE
            )
            assert "<image><image>".join(markers(rows, columns)) == text


CASES: dict[str, dict[str, Any]] = {
    "published": {},
    "one-crop": {"do_image_splitting": False},
    "bilinear": {"resample": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
    "no-normalize": {"do_normalize": False},
    "no-rescale": {"do_rescale": False, "resample": 3},
}


def pixels(
    image: Any, kind: Any = SmolVLMImageProcessorPil, shape: CropShape = SMALL, longest: int = 112, **values: Any
) -> Any:
    own = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": shape.height}, **values}
    made = kind(**own)(image, return_tensors=None, return_row_col_info=True)
    assert np.asarray(made["pixel_attention_mask"]).all()
    return np.asarray(made["pixel_values"], np.float32)[0], made["rows"][0][0], made["cols"][0][0]


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 200), height=st.integers(1, 200), seed=st.integers(0, 9))
def test_pixels(name: str, width: int, height: int, seed: int) -> None:
    image = noise(width, height, seed)
    prepared = ours(**CASES[name]).prepare(image)
    kind = Idefics3ImageProcessorPil if seed % 2 else SmolVLMImageProcessorPil
    theirs, rows, columns = pixels(image, kind, **CASES[name])
    np.testing.assert_allclose(prepared.pixel_values, theirs, rtol=0, atol=1e-6)
    assert prepared.plan.crops == len(prepared.pixel_values)
    text = get_image_prompt_string(rows, columns, 4, AROUND, "<image>", WHOLE)
    assert ("<image>" * 4).join(prepared.plan.markers) == text


@pytest.mark.parametrize("name", PUBLISHED)
def test_pixels_of_the_published_sizes(name: str) -> None:
    shape, longest = PUBLISHED[name]
    image = noise(333, 700)
    theirs = pixels(image, shape=shape, longest=longest)[0]
    np.testing.assert_allclose(ours(shape, longest).prepare(image).pixel_values, theirs, rtol=0, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(height=SIDES, width=SIDES)
def test_places(height: int, width: int) -> None:
    """Crop after crop, each row by row; rows and columns count over all tiles, and those of the whole image anew."""
    mine = ours()
    plan = mine.plan(height, width)
    down, across = mine.grid(height, width)
    token = np.arange(plan.tokens)
    crop, place = np.divmod(token, 4)
    tile = np.where(crop < down * across, crop, 0)
    np.testing.assert_array_equal(plan.pack_index[:, 0], token)
    np.testing.assert_array_equal(plan.grid[:, 0], crop)
    np.testing.assert_array_equal(plan.grid[:, 1], tile // across * 2 + place // 2)
    np.testing.assert_array_equal(plan.grid[:, 2], tile % across * 2 + place % 2)
    assert plan.overview == plan.crops - 1
    assert plan.spans == (4,) * plan.crops
    assert not plan.newlines.any()
    boxes = plan.boxes.reshape(plan.crops, 4, 4)
    areas = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).sum(axis=1)
    shown = np.array([width * height / (down * across)] * (down * across) + [width * height])[: plan.crops]
    np.testing.assert_allclose(areas, shown, rtol=1e-4)


@pytest.mark.parametrize("size", [(250, 250), (250, 100), (90, 250)])
def test_boxes_show_what_the_tokens_see(size: tuple[int, int]) -> None:
    """An image whose colours say where they are: each token's mean colour is the middle of its box."""
    width, height = size
    prepared = ours(do_normalize=False, do_rescale=False).prepare(ramp(width, height))
    seen = prepared.pixel_values.reshape(-1, 3, 2, 14, 2, 14).mean(axis=(3, 5)).transpose(0, 2, 3, 1).reshape(-1, 3)
    boxes = prepared.plan.boxes
    np.testing.assert_allclose(seen[:, 0] + 0.5, boxes[:, [0, 2]].mean(axis=1), atol=3)
    np.testing.assert_allclose(seen[:, 1] + 0.5, boxes[:, [1, 3]].mean(axis=1), atol=3)


@pytest.mark.parametrize("kind", [SmolVLMImageProcessorPil, Idefics3ImageProcessorPil])
def test_defaults_are_those_of_transformers(kind: Any) -> None:
    made = kind()
    for key, value in SmolVLM.defaults.items():
        if key != "layout":
            their = getattr(made, key)
            their = {"longest_edge": their["longest_edge"]} if isinstance(value, dict) else their
            assert json.loads(json.dumps(value)) == json.loads(json.dumps(their)), key


@pytest.mark.parametrize("name", CASES)
def test_settings_make_an_equal_processor(name: str) -> None:
    made = ours(**CASES[name])
    kept = json.loads(json.dumps(made.settings()))
    again = processor_from_settings("smolvlm", kept, "config.json")
    assert (again, again.settings()) == (made, made.settings())


def opened(values: Any, shape: CropShape = SMALL) -> Any:
    return processor_from_files({FILE: json.dumps(values)}, shape, {}, ["smolvlm"])


BASE = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 28}}


@pytest.mark.parametrize("kind", ["SmolVLMImageProcessorFast", "Idefics3ImageProcessor", "Idefics3ImageProcessorFast"])
def test_the_file_of_a_checkpoint(kind: str) -> None:
    values = {"image_processor_type": kind, "do_convert_rgb": True, "processor_class": "SmolVLMProcessor", **BASE}
    assert opened(values) == ours()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_resize": False}, "do_resize is false"),
        ({"size": {"height": 28, "width": 28}}, r'size .* is not of the form {"longest_edge": PIXELS}'),
        ({"size": 112}, "size 112 is not of the form"),
        ({"size": {"longest_edge": 0}}, "size 0 is not between 1 and"),
        ({"size": {"longest_edge": "112"}}, "size '112' is not between"),
        ({"size": {"longest_edge": 4000}}, "size leads to 20449 tiles of 28 × 28 pixels, above the limit of 256"),
        (
            {"max_image_size": {"longest_edge": 56}},
            "max_image_size: tiles are 56 × 56 pixels, the vision graph takes 28 × 28",
        ),
        ({"max_image_size": [28]}, "max_image_size .28. is not of the form"),
        ({"do_image_splitting": "no"}, "do_image_splitting 'no' is neither true nor false"),
        ({"resample": 9}, "resample 9 is not a Pillow filter"),
        ({"image_processor_type": "CLIPImageProcessor"}, "'CLIPImageProcessor' does not fit this model"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineDirError, match=message):
        opened({**BASE, **values})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (CropShape(28, 56, (14, 14)), "are not square"),
        (CropShape(28, 28, (14, 14), -1), "have a feature for each visual token, and none beside"),
        (CropShape(500, 500, (1, 1)), "above the limit"),
    ],
)
def test_crops_that_do_not_fit(shape: CropShape, message: str) -> None:
    with pytest.raises(EngineDirError, match=message):
        ours(shape, 2 * shape.height)


def test_images_that_are_none_or_too_large() -> None:
    for size in ((0, 5), (5, 0), (-3, 5)):
        with pytest.raises(InputError, match="is empty"):
            ours().plan(*size)
    assert ours().pixels_taken(1, 1) == 17 * 28**2
    assert ours(do_image_splitting=False).pixels_taken(200, 2) == 28**2
    assert ours().pixels_taken(10000, 10000) == 10**8


def test_a_plan_is_shared_and_quick() -> None:
    mine = ours(*PUBLISHED["smolvlm-256m"])
    times = []
    for _ in range(7):
        start = time.perf_counter()
        mine._plan(480, 640)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.01
    assert mine.plan(480, 640, 2) is mine.plan(480, 640)
