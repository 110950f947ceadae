"""Images of packed towers in C++ beside Python's: sizes, plans, patches and index arrays, equal in every element."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conformance.write_images import digest, picture
from tests.cpp.test_images import DTYPES, Call, decoded, python, same_error, sizes
from trtprune.runtime.images import PackedShape, processor_from_settings

CONFORMANCE = Path(__file__).parents[1] / "conformance" / "packed_images.json"
NAME = "qwen2_vl"


def file(shape: PackedShape, **values: Any) -> dict[str, Any]:
    return {"image_processor_type": "Qwen2VLImageProcessor", **values, **shape.settings()}


SETTINGS = {
    "published": file(PackedShape(14, 2, 2, 4), min_pixels=3136, max_pixels=12845056),
    "defaults": file(PackedShape(14, 2, 2)),
    "qwen3": file(
        PackedShape(16, 2, 2),
        size={"shortest_edge": 65536, "longest_edge": 16777216},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ),
    "small": file(PackedShape(4, 2, 2, 3), min_pixels=64 * 7, max_pixels=64 * 90),
    "narrow": file(PackedShape(8, 3, 1, 2), size={"shortest_edge": 576 * 9, "longest_edge": 576 * 10}, resample=2),
    "one-token": file(PackedShape(2, 1, 3, 5), min_pixels=1, max_pixels=4, do_normalize=False),
}


@pytest.fixture(scope="module")
def call(driver: Callable[..., Any]) -> Call:
    """The driver of the C++ library."""
    program: Call = driver("images")
    return program


def request(settings: dict[str, Any], pixels: np.ndarray) -> dict[str, Any]:
    height, width = pixels.shape[:2]
    hexed = pixels.tobytes().hex()
    return {"op": "prepare", "name": NAME, "settings": settings, "height": height, "width": width, "pixels": hexed}


def test_conformance(call: Call) -> None:
    """What transformers gives; and the words of sizes that are none."""
    vectors = json.loads(CONFORMANCE.read_text())
    cases = vectors["cases"]
    requests = [request(case["settings"], np.asarray(picture(case["height"], case["width"]))) for case in cases]
    for case, answer in zip(cases, call(requests), strict=True):
        assert answer["shape"][0] == case["tokens"] * case["settings"]["packed"]["merge"] ** 2
        assert digest(decoded(answer["pixel_values"], np.float32), "float32") == case["pixel_values"], case
        arrays = {
            name: {"shape": array["shape"], "sha256": digest(np.array(array["values"], np.int64), "int64")}
            for name, array in answer["arrays"].items()
        }
        assert arrays == case["arrays"]
    for case in vectors["refused"]:
        size = {"height": case["height"], "width": case["width"]}
        (answer,) = call([{"op": "plan", "name": NAME, "settings": cases[0]["settings"], **size}])
        assert (answer["error"], answer["hint"]) == (case["message"], case["hint"])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_plans(name: str, count: int, call: Call) -> None:
    settings, random = SETTINGS[name], np.random.default_rng(len(name))
    ours = processor_from_settings(NAME, settings, "config.json")
    halves = [(int(h) * 7, int(w) * 7) for h, w in random.integers(1, 90, (count // 3, 2))]
    edges = [(1, 1), (0, 5), (7, 0), (1, 200), (200, 1), (1, 201), (402, 2), (3, 30000), (30000, 3), (5000, 5000)]
    requests = [
        {"op": "plan", "name": NAME, "settings": settings, "height": height, "width": width, "keep": [3, 50]}
        for height, width in [*sizes(random, count), *halves, *edges]
    ]
    for asked, answer in zip(requests, call(requests), strict=True):
        plan, error = python(lambda r=asked: ours.plan(r["height"], r["width"]))
        if same_error(answer, error):
            continue
        assert [answer[key] for key in ("crops", "tokens", "overview")] == [plan.crops, plan.tokens, plan.overview]
        for key, dtype in DTYPES.items():
            expected = getattr(plan, key)
            found = decoded(answer[key], dtype).reshape(expected.shape)
            np.testing.assert_array_equal(found, expected, err_msg=f"{key} of {asked}")


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "published"])
@pytest.mark.parametrize("count", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_prepared_arrays(name: str, count: int, call: Call) -> None:
    settings, random = SETTINGS[name], np.random.default_rng(len(name) + 1)
    ours = processor_from_settings(NAME, settings, "config.json")
    shapes = [(int(h), int(w)) for h, w in random.integers(1, 200, (count, 2))]
    images = [random.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [*shapes, (1, 1), (28, 28), (1, 201)]]
    for image, answer in zip(images, call([request(settings, image) for image in images]), strict=True):
        result, error = python(lambda i=image: ours.prepare(Image.fromarray(i)))
        if same_error(answer, error):
            continue
        found = decoded(answer["pixel_values"], np.float32).reshape(answer["shape"])
        np.testing.assert_array_equal(found, result.pixel_values, err_msg=f"{image.shape}")
        assert answer["taken"] == ours.pixels_taken(image.shape[1], image.shape[0])
        arrays = {name: array["values"] for name, array in answer["arrays"].items()}
        assert arrays == {name: array.reshape(-1).tolist() for name, array in result.arrays.items()}
        assert all(tuple(answer["arrays"][name]["shape"]) == array.shape for name, array in result.arrays.items())


@pytest.mark.parametrize(
    "change",
    [
        {"max_pixels": 3000},
        {"min_pixels": 0},
        {"max_pixels": 10**12},
        {"min_pixels": "3136"},
        {"min_pixels": None, "size": 336},
        {"min_pixels": None, "size": {"longest_edge": 10**6}},
        {"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 10}},
        {"size": []},
        {"do_resize": False},
        {"do_resize": "no"},
        {"patch_size": 16},
        {"merge_size": 3},
        {"patch_size": 14, "temporal_patch_size": True},
        {"patch_size": 14.0},
        {"image_std": [0, 1, 1]},
        {"image_mean": None},
        {"layout": "paper"},
        {"packed": None},
        {"packed": [14, 2, 2]},
        {"packed": {"patch": 14, "merge": 2}},
        {"packed": {"patch": 0, "merge": 2, "frames": 2}},
        {"packed": {"patch": 14, "merge": 2, "frames": 2, "window": None}},
        {"packed": {"patch": 14, "merge": 2, "frames": 2, "window": 65}},
        {"packed": {"patch": 14, "merge": True, "frames": 2}},
    ],
    ids=str,
)
def test_settings(change: dict[str, Any], call: Call) -> None:
    """The same are taken, and the others refused in the same words."""
    settings = {**SETTINGS["published"], **change}
    (answer,) = call([{"op": "processor", "name": NAME, "settings": settings, "where": "out/config.json"}])
    _, error = python(lambda: processor_from_settings(NAME, settings, "out/config.json"))
    same_error(answer, error)
