"""InternVL's image processor: grids, crops, pixels and places beside transformers'."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GotOcr2ImageProcessorPil, InternVLProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from tests.runtime.images.kit import noise, ramp
from trtprune.errors import EngineDirError, InputError
from trtprune.runtime.images import CropShape, processor_from_files, processor_from_settings
from trtprune.runtime.images.internvl import InternVL, best_grid

FILE = "preprocessor_config.json"
PUBLISHED = CropShape(448, 448, (28, 28))
SMALL = CropShape(28, 28, (7, 7))
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
MARKERS = ["<img>", "</img>"]
SIDES = st.one_of(st.integers(1, 60), st.integers(1, 4000))


def ours(shape: CropShape = PUBLISHED, **values: Any) -> InternVL:
    size = {"size": {"height": shape.height, "width": shape.width}, "markers": MARKERS}
    made = processor_from_settings("internvl", {**size, **IMAGENET, **values, **shape.settings()}, FILE)
    assert isinstance(made, InternVL)
    return made


def theirs(shape: CropShape = PUBLISHED, **values: Any) -> Any:
    return GotOcr2ImageProcessorPil(size={"height": shape.height, "width": shape.width}, **{**IMAGENET, **values})


def pixels(processor: Any, image: Any) -> np.ndarray:
    """``pixel_values`` as InternVL's processor asks for them."""
    arrays = processor(image, return_tensors=None, **InternVLProcessor.images_kwargs)["pixel_values"]
    return np.stack([np.asarray(array, np.float32) for array in arrays])


@pytest.mark.parametrize(
    ("height", "width", "crops"),
    [(480, 640, 13), (1080, 1920, 9), (1000, 1000, 10), (448, 448, 1), (1, 1, 1), (10, 1000, 13), (4000, 3, 13)],
)
def test_golden_counts(height: int, width: int, crops: int) -> None:
    plan = ours().plan(height, width)
    assert (plan.crops, plan.tokens) == (crops, 256 * crops)


def test_sweep_of_the_published_models() -> None:
    """Twenty thousand sizes, random and on the borders between two grids: the grid, and the number of crops."""
    mine, processor = ours(), theirs()
    random = np.random.default_rng(3)
    drawn = np.exp(random.uniform(0, np.log(5000), (16000, 2))).astype(int)
    across, down, scale = (random.integers(1, most, 4000) for most in (13, 13, 400))
    ties = np.stack((down * scale, across * scale), axis=1) + random.integers(-1, 2, (4000, 2))
    for height, width in np.maximum(np.concatenate((drawn, ties)), 1).tolist():
        columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
        assert best_grid(height, width, (448, 448), 1, 12) == (rows, columns), (height, width)
        count = processor.get_number_of_image_patches(height, width, {"crop_to_patches": True})
        assert rows * columns + (rows * columns > 1) == count
        assert mine.crops_range[0] <= count <= mine.crops_range[1]


@settings(max_examples=300, deadline=None)
@given(height=SIDES, width=SIDES, bounds=st.tuples(st.integers(1, 20), st.integers(1, 20)), edge=st.integers(1, 500))
def test_any_bounds(height: int, width: int, bounds: tuple[int, int], edge: int) -> None:
    least, most = sorted(bounds)
    columns, rows = get_optimal_tiled_canvas((height, width), (edge, edge), least, most)
    assert best_grid(height, width, (edge, edge), least, most) == (rows, columns)
    mine = ours(SMALL, min_patches=least, max_patches=most)
    plan = mine.plan(height, width)
    assert mine.crops_range[0] <= plan.crops <= mine.crops_range[1]
    assert mine.tokens_range[0] <= plan.tokens == 16 * plan.crops <= mine.tokens_range[1]


@pytest.mark.parametrize("bounds", [(1, 12), (1, 1), (2, 2), (3, 11), (5, 8)])
def test_bounds_are_reached(bounds: tuple[int, int]) -> None:
    mine = ours(SMALL, min_patches=bounds[0], max_patches=bounds[1])
    counts = {mine.plan(1, n).crops for n in range(1, 41)} | {mine.plan(28 * n, 28 * n).crops for n in range(1, 41)}
    assert (min(counts), max(counts)) == mine.crops_range
    assert mine.fixed_tokens == (bounds[0] == bounds[1])


CASES: dict[str, dict[str, Any]] = {
    "published": {},
    "not-cut": {"crop_to_patches": False},
    "one-tile": {"max_patches": 1},
    "few": {"min_patches": 2, "max_patches": 4, "resample": 2},
    "no-normalize": {"do_normalize": False},
    "no-rescale": {"do_rescale": False, "resample": 1},
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 200), height=st.integers(1, 200), seed=st.integers(0, 9))
def test_pixels(name: str, width: int, height: int, seed: int) -> None:
    image = noise(width, height, seed)
    prepared = ours(SMALL, **CASES[name]).prepare(image)
    np.testing.assert_array_equal(prepared.pixel_values, pixels(theirs(SMALL, **CASES[name]), image))
    assert prepared.plan.crops == len(prepared.pixel_values)


def test_pixels_of_the_published_size() -> None:
    image = noise(333, 700)
    np.testing.assert_array_equal(ours().prepare(image).pixel_values, pixels(theirs(), image))


@settings(max_examples=100, deadline=None)
@given(height=SIDES, width=SIDES)
def test_places(height: int, width: int) -> None:
    """Crop after crop, each row by row; rows and columns count over all tiles, and those of the thumbnail anew."""
    mine = ours(SMALL)
    plan = mine.plan(height, width)
    down, across = best_grid(height, width, (28, 28), 1, 12)
    token = np.arange(plan.tokens)
    crop, place = np.divmod(token, 16)
    tile = np.where(crop < down * across, crop, 0)
    np.testing.assert_array_equal(plan.pack_index[:, 0], token)
    np.testing.assert_array_equal(plan.grid[:, 0], crop)
    np.testing.assert_array_equal(plan.grid[:, 1], tile // across * 4 + place // 4)
    np.testing.assert_array_equal(plan.grid[:, 2], tile % across * 4 + place % 4)
    assert plan.overview == plan.crops - 1
    assert (plan.spans, plan.markers) == ((plan.tokens,), ("<img>", "</img>"))
    assert (plan.newline == -1).all()
    assert not plan.padding.any()
    assert not plan.newlines.any()
    assert plan.choices("drop").tolist() == token.tolist()
    # Every crop's boxes fill what the crop shows.
    boxes = plan.boxes.reshape(plan.crops, 16, 4)
    areas = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).sum(axis=1)
    shown = np.array([width * height / (down * across)] * (down * across) + [width * height])[: plan.crops]
    np.testing.assert_allclose(areas, shown, rtol=1e-4)


@pytest.mark.parametrize("size", [(250, 250), (250, 100), (90, 250)])
def test_boxes_show_what_the_tokens_see(size: tuple[int, int]) -> None:
    """An image whose colours say where they are: each token's mean colour is the middle of its box."""
    width, height = size
    mine = ours(SMALL, do_normalize=False, do_rescale=False)
    prepared = mine.prepare(ramp(width, height))
    seen = prepared.pixel_values.reshape(-1, 3, 4, 7, 4, 7).mean(axis=(3, 5)).transpose(0, 2, 3, 1).reshape(-1, 3)
    boxes = prepared.plan.boxes
    np.testing.assert_allclose(seen[:, 0] + 0.5, boxes[:, [0, 2]].mean(axis=1), atol=3)
    np.testing.assert_allclose(seen[:, 1] + 0.5, boxes[:, [1, 3]].mean(axis=1), atol=3)


def opened(values: Any, shape: CropShape = PUBLISHED) -> Any:
    return processor_from_files({FILE: json.dumps(values)}, shape, {}, ["internvl"], more={"markers": MARKERS})


def test_defaults_are_those_of_transformers() -> None:
    made = GotOcr2ImageProcessorPil()
    for key, value in InternVL.defaults.items():
        if key != "layout":
            their = getattr(made, key)
            their = {name: their[name] for name in ("height", "width")} if key == "size" else their
            assert json.loads(json.dumps(value)) == json.loads(json.dumps(their or False)), key
    assert InternVLProcessor.images_kwargs == {"crop_to_patches": True}


@pytest.mark.parametrize("name", CASES)
def test_settings_make_an_equal_processor(name: str) -> None:
    made = ours(SMALL, **CASES[name])
    kept = json.loads(json.dumps(made.settings()))
    again = processor_from_settings("internvl", kept, "config.json")
    assert (again, again.settings()) == (made, made.settings())


def test_the_file_of_a_checkpoint() -> None:
    """As the published -hf repositories have it."""
    values = {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "processor_class": "InternVLProcessor",
        "crop_size": None,
        "crop_to_patches": False,
        "do_center_crop": None,
        "do_convert_rgb": True,
        "max_patches": 12,
        "min_patches": 1,
        "size": {"height": 448, "width": 448},
        **IMAGENET,
    }
    assert opened(values) == ours()
    assert opened({**values, "image_processor_type": "GotOcr2ImageProcessor"}) == ours()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_patches": 13}, "min_patches 13 is above max_patches 12"),
        ({"max_patches": 0}, "max_patches 0 is not between 1 and 256"),
        ({"max_patches": 10**9}, "max_patches 1000000000 is not between"),
        ({"min_patches": "1"}, "min_patches '1' is not between"),
        ({"min_patches": True}, "min_patches True is not between"),
        ({"max_patches": 256, "size": 448}, None),
        ({"do_resize": False}, "do_resize is false"),
        ({"size": {"height": 384, "width": 384}}, "tiles are 384 × 384 pixels, the vision graph takes 448 × 448"),
        ({"size": {"shortest_edge": 448}}, "size"),
        ({"layout": "paper"}, "layout 'paper' is none of model"),
        ({"markers": None}, "no 'markers'"),
        ({"markers": ["<img>"]}, "are no two texts"),
        ({"markers": ["<img>", ""]}, "markers '' is no text of 1 to 200 characters"),
        ({"markers": ["<img>", 5]}, "markers 5 is no text"),
        ({"image_processor_type": "CLIPImageProcessor"}, "'CLIPImageProcessor' does not fit this model"),
        ({"image_processor_type": "Qwen2VLImageProcessorFast"}, "does not fit this model"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str | None) -> None:
    base = {"size": {"height": 448, "width": 448}}
    if message is None:
        assert opened({**base, **values}).crops_range == (1, 257)
        return
    with pytest.raises(EngineDirError, match=message):
        if values.keys() & {"layout", "markers"}:
            ours(**values)
        else:
            opened({**base, **values})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (CropShape(448, 476, (28, 28)), "are not square"),
        (CropShape(448, 448, (28, 14)), "are not square"),
        (CropShape(448, 448, (28, 28), -1), "have a feature for each visual token, and none beside"),
        (CropShape(448, 448, (1, 1)), "above the limit"),
    ],
)
def test_crops_that_do_not_fit(shape: CropShape, message: str) -> None:
    with pytest.raises(EngineDirError, match=message):
        ours(shape)


def test_images_that_are_none_or_too_large() -> None:
    for size in ((0, 5), (5, 0), (-3, 5)):
        with pytest.raises(InputError, match="is empty"):
            ours().plan(*size)
    assert ours().pixels_taken(1, 1) == 448**2
    assert ours().pixels_taken(640, 480) == 13 * 448**2
    assert ours().pixels_taken(10000, 10000) == 10**8


def test_a_plan_is_shared_and_quick() -> None:
    mine = ours()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        mine._plan(480, 640)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.006
    assert mine.plan(480, 640, 2) is mine.plan(480, 640)
