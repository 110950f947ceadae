"""Images in C++ beside Python's: plans, prepared arrays, settings, and Pillow's resampling, equal in every element."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conformance import write_spans
from tests.conformance.write_images import digest, picture
from tests.runtime.images.kit import CLIP_336, NEXT, NEXT_SETTINGS, ONEVISION, SIGLIP_384, Theirs
from trtprune.errors import TrtpruneError
from trtprune.runtime.images import CropShape, processor_from_settings

CONFORMANCE = Path(__file__).parents[1] / "conformance" / "images.json"
SMALL = CropShape(28, 28, (7, 7))
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84], [84, 140]]
TILES = {"size": 28, "crop_size": 28, "image_grid_pinpoints": PINPOINTS}
SQUARE = {"size": {"height": 28, "width": 28}, "image_grid_pinpoints": PINPOINTS}
LLAVA = {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
DTYPES = {
    "grid": np.int32,
    "newline": np.int32,
    "pack_index": np.int32,
    "pack_weight": np.float32,
    "boxes": np.float32,
    "padding": np.bool_,
}

MERGED = CropShape(28, 28, (14, 14))
"""Two by two visual tokens a crop."""

Call = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def _single(**values: Any) -> tuple[str, dict[str, Any]]:
    shape = values.pop("shape", SMALL)
    return "single", {"size": 28, "crop_size": 28, **values, **shape.settings()}


def _tiled(theirs: Theirs, **values: Any) -> tuple[str, dict[str, Any]]:
    return theirs.name, {**theirs.ours().settings(), **values}


def _stretched(name: str, **values: Any) -> tuple[str, dict[str, Any]]:
    return name, {"max_image_size": {"longest_edge": 28}, "markers": ["<img>", "</img>"], **values, **MERGED.settings()}


SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": _single(),
    "clip-with-cls": _single(shape=CropShape(28, 28, (7, 7), -1)),
    "clip-without-the-first": _single(
        shape=CropShape(29, 30, (7, 9), 1), size=31, crop_size={"height": 29, "width": 30}
    ),
    "crop-of-a-larger": _single(size=40, resample=2),
    "crop-of-a-smaller": _single(size=17, resample=5),
    "no-resize": _single(do_resize=False),
    "no-crop": _single(size={"height": 28, "width": 28}, do_center_crop=False, resample=1),
    "no-rescale": _single(do_rescale=False, resample=4),
    "no-normalize": _single(do_normalize=False, resample=0),
    "other-values": _single(rescale_factor=1 / 127.5, image_mean=[0.3, 0.5, 0.7], image_std=0.25),
    "pads": _single(**LLAVA),
    "pads-with-white": _single(**LLAVA, background=[255, 254.9, 0]),
    "siglip": _single(image_processor_type="SiglipImageProcessorFast", size={"height": 28, "width": 28}),
    "next": _tiled(Theirs(NEXT, SMALL, TILES)),
    "next-paper": _tiled(Theirs(NEXT, SMALL, TILES), layout="paper"),
    "next-crops-tiles": _tiled(Theirs(NEXT, SMALL, {**TILES, "size": 40})),
    "onevision-2": _tiled(Theirs(ONEVISION, SMALL, SQUARE, 2)),
    "onevision-1": _tiled(Theirs(ONEVISION, SMALL, SQUARE, 1)),
    "onevision-9": _tiled(Theirs(ONEVISION, SMALL, SQUARE, 9)),
    "smolvlm": _stretched("smolvlm", size={"longest_edge": 112}),
    "smolvlm-odd": _stretched("smolvlm", size={"longest_edge": 111}, resample=3, do_normalize=False),
    "smolvlm-larger": _stretched("smolvlm", size={"longest_edge": 400}, resample=2),
    "smolvlm-tile": _stretched("smolvlm", size={"longest_edge": 28}),
    "smolvlm-whole": _stretched("smolvlm", size={"longest_edge": 112}, do_image_splitting=False),
    "internvl": _stretched("internvl", size={"height": 28, "width": 28}),
    "internvl-more": _stretched("internvl", size=28, min_patches=3, max_patches=30, resample=2, markers=["<a>", "\n"]),
    "internvl-one": _stretched("internvl", size=28, max_patches=1, do_rescale=False),
}


def _real(name: str, shape: CropShape, tile: int, **values: Any) -> tuple[str, dict[str, Any]]:
    return name, {**_stretched(name, max_image_size={"longest_edge": tile}, **values)[1], **shape.settings()}


REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "next-336": _tiled(Theirs(NEXT, CLIP_336, NEXT_SETTINGS)),
    "onevision-384": _tiled(Theirs(ONEVISION, SIGLIP_384, {})),
    "smolvlm-512": _real("smolvlm", CropShape(512, 512, (64, 64)), 512, size={"longest_edge": 2048}),
    "smolvlm-384": _real("smolvlm", CropShape(384, 384, (42, 42)), 384, size={"longest_edge": 1536}),
    "internvl-448": _real("internvl", CropShape(448, 448, (28, 28)), 448, size={"height": 448, "width": 448}),
}


@pytest.fixture(scope="module")
def call(driver: Callable[..., Any]) -> Call:
    """The driver of the C++ library."""
    program: Call = driver("images")
    return program


def decoded(text: str, dtype: Any) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), dtype)


def python(action: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """The result of a call, or its error as the driver writes it."""
    try:
        return action(), {}
    except TrtpruneError as error:
        return None, {"error": error.message, "hint": error.hint or ""}


def same_error(answer: dict[str, Any], error: dict[str, Any]) -> bool:
    """Whether C++ fails where Python does, in the same words."""
    assert {key: answer.get(key) for key in error} == error, answer
    assert bool(error) == ("error" in answer), answer
    return bool(error)


def sizes(random: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Sizes of images, of every scale and of all shapes: squares, near squares, strips."""
    result = []
    for _ in range(count):
        height = int(np.exp(random.uniform(0, np.log(3000))))
        width = height + int(random.integers(-1, 2)) if random.random() < 0.2 else int(np.exp(random.uniform(0, 8)))
        result.append((height, max(1, width)))
    return result


def test_conformance(call: Call) -> None:
    cases = json.loads(CONFORMANCE.read_text())["cases"]
    cases += [{"images": 1, **case} for case in json.loads(write_spans.PATH.read_text())["images"]]
    requests = [
        {
            "op": "prepare",
            "name": case["processor"],
            "settings": case["settings"],
            "height": case["height"],
            "width": case["width"],
            "images": case["images"],
            "pixels": np.asarray(picture(case["height"], case["width"])).tobytes().hex(),
        }
        for case in cases
    ]
    for case, answer in zip(cases, call(requests), strict=True):
        assert answer["shape"][0] == case["crops"]
        assert digest(decoded(answer["pixel_values"], np.float32), "float32") == case["pixel_values"], case


@pytest.mark.parametrize("name", [*SETTINGS, *REAL])
def test_plans(name: str, call: Call) -> None:
    """Each member of the plan, for a hundred sizes and their errors."""
    kind, settings = {**SETTINGS, **REAL}[name]
    random = np.random.default_rng(len(name))
    ours = processor_from_settings(kind, settings, "config.json")
    count = 25 if name in REAL else 150
    requests = [
        {
            "op": "plan",
            "name": kind,
            "settings": settings,
            "height": height,
            "width": width,
            "images": int(random.integers(1, 3)),
            "newlines": str(random.choice(["drop", "keep", "candidates"])),
            "keep": [int(random.integers(0, 80)) for _ in range(3)],
        }
        for height, width in [*sizes(random, count), (1, 1), (28, 28), (0, 5), (7, 0), (1, 30000), (30000, 1)]
    ]
    for request, answer in zip(requests, call(requests), strict=True):
        plan, error = python(lambda r=request: ours.plan(r["height"], r["width"], r["images"]))
        if same_error(answer, error):
            continue
        assert [answer[key] for key in ("crops", "tokens", "overview")] == [plan.crops, plan.tokens, plan.overview]
        assert (answer["spans"], answer["markers"]) == (list(plan.spans), list(plan.markers))
        for key, dtype in DTYPES.items():
            expected = getattr(plan, key)
            found = decoded(answer[key], dtype).reshape(expected.shape)
            np.testing.assert_array_equal(found, expected, err_msg=f"{key} of {request}")
        assert answer["candidates"] == plan.candidates.tolist()
        assert answer["choices"] == plan.choices(request["newlines"]).tolist()
        for keep, kept in zip(request["keep"], answer["without_choice"], strict=True):
            expected = plan.without_choice(keep, request["newlines"])
            assert kept == (None if expected is None else expected.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in {**SETTINGS, **REAL} if name.startswith(("smolvlm", "internvl"))])
def test_spans_of_thousands_of_sizes(name: str, call: Call) -> None:
    kind, settings = {**SETTINGS, **REAL}[name]
    ours = processor_from_settings(kind, settings, "config.json")
    given = [(h, w) for h, w in sizes(np.random.default_rng(3), 3000)]
    given += [(h, w) for h in range(1, 60) for w in range(1, 60)] if name in SETTINGS else []
    requests = [{"op": "spans", "name": kind, "settings": settings, "height": h, "width": w} for h, w in given]
    for (height, width), answer in zip(given, call(requests), strict=True):
        plan = ours.plan(height, width)
        expected = {"crops": plan.crops, "spans": list(plan.spans), "markers": list(plan.markers)}
        assert answer == expected, (height, width)


@pytest.mark.parametrize("name", SETTINGS)
def test_prepared_arrays(name: str, call: Call) -> None:
    """Every element, for random pixels of some sixty sizes."""
    kind, settings = SETTINGS[name]
    random = np.random.default_rng(len(name) + 1)
    ours = processor_from_settings(kind, settings, "config.json")
    shapes = [(int(h), int(w)) for h, w in random.integers(1, 120, (40, 2))]
    shapes += [(1, 1), (28, 28), (1, 90), (90, 1), (28, 29), (200, 20), (20, 200), (28, 28), (28, 28)]
    images = [random.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in shapes]
    requests = [
        {
            "op": "prepare",
            "name": kind,
            "settings": settings,
            "height": image.shape[0],
            "width": image.shape[1],
            "images": int(random.integers(1, 3)),
            "pixels": image.tobytes().hex(),
        }
        for image in images
    ]
    for image, request, answer in zip(images, requests, call(requests), strict=True):
        count = request["images"]
        result, error = python(lambda i=image, n=count: ours.prepare(Image.fromarray(i), n))
        if same_error(answer, error):
            continue
        found = decoded(answer["pixel_values"], np.float32).reshape(answer["shape"])
        np.testing.assert_array_equal(found, result.pixel_values, err_msg=f"{image.shape} of {count}")
        assert answer["taken"] == ours.pixels_taken(image.shape[1], image.shape[0], count)


@pytest.mark.parametrize("kind", range(6))
def test_resampling_is_pillows(kind: int, call: Call) -> None:
    """From any size to any other, both directions, with flat, random and extreme pixels."""
    random = np.random.default_rng(kind)
    requests, images = [], []
    for place in range(120):
        height, width, *to = (int(np.exp(random.uniform(0, np.log(160)))) for _ in range(4))
        low, high = [(0, 256), (0, 2), (254, 256)][place % 3]
        image = random.integers(low, high, (height, width, 3)) * (255 if high == 2 else 1)
        images.append(image.astype(np.uint8))
        hexed = images[-1].tobytes().hex()
        requests.append({"op": "resample", "height": height, "width": width, "pixels": hexed, "to": to, "filter": kind})
    for image, request, answer in zip(images, requests, call(requests), strict=True):
        height, width = request["to"]
        expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling(kind)))
        found = decoded(answer["pixels"], np.uint8).reshape(expected.shape)
        np.testing.assert_array_equal(found, expected, err_msg=f"{image.shape} to {request['to']}")


@pytest.mark.parametrize(
    ("shape", "to"), [((2, 300_001), (3, 7)), ((300_001, 2), (7, 3)), ((5, 300_001), (2, 4)), ((1, 5), (2, 300_001))]
)
def test_resampling_of_strips(shape: tuple[int, int], to: tuple[int, int], call: Call) -> None:
    """Where the coefficients of a whole row would be too many for the memory, and beyond what a float counts."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    request = {"op": "resample", "height": shape[0], "width": shape[1], "pixels": image.tobytes().hex(), "to": to}
    for kind in (0, 1, 3):
        (answer,) = call([{**request, "filter": kind}])
        expected = np.asarray(Image.fromarray(image).resize(to[::-1], Image.Resampling(kind)))
        np.testing.assert_array_equal(decoded(answer["pixels"], np.uint8).reshape(expected.shape), expected)


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("single", {"image_processor_type": "Qwen2VLImageProcessor"}),
    ("single", {"image_processor_type": ["CLIPImageProcessor"]}),
    ("single", {"image_processor_type": 10**15}),
    ("single", {"feature_extractor_type": 'it\'s "me" \n'}),
    ("single", {"size": {"shortest_edge": 28, "longest_edge": 50}}),
    ("single", {"size": {"height": "x", "width": 3}}),
    ("single", {"size": []}),
    ("single", {"size": {"shortest_edge": 10**9}}),
    ("single", {"size": {"shortest_edge": 30.5}}),
    ("single", {"size": True}),
    ("single", {"image_mean": [0.5]}),
    ("single", {"image_mean": ["a", "b", "c"]}),
    ("single", {"image_mean": 1e39}),
    ("single", {"crop_size": {"height": 56, "width": 56}}),
    ("single", {"crop_size": [28, 28]}),
    ("single", {"crop_size": {"height": 28}}),
    ("single", {"resample": 77}),
    ("single", {"resample": -1}),
    ("single", {"resample": "3"}),
    ("single", {"resample": True}),
    ("single", {"resample": 3.0}),
    ("single", {"do_pad": True}),
    ("single", {"do_pad": "no"}),
    ("single", {"rescale_factor": "0.1"}),
    ("single", {"rescale_factor": 3e38}),
    ("single", {"image_std": [0.1, 0, 0.1]}),
    ("single", {"image_std": [0.1, 1e-60, 0.1]}),
    ("single", {"image_std": [0.1, 1e-44, 0.1]}),
    ("single", {"do_resize": "false"}),
    ("single", {"do_normalize": 2}),
    ("single", {"do_normalize": 1.0}),
    ("single", {"layout": "paper"}),
    ("single", {"crop": 5}),
    ("single", {"crop": {"height": 28, "width": 28, "patch": [7]}}),
    ("single", {"crop": {"height": 28, "width": 28, "patch": [7, 29]}}),
    ("single", {"crop": {"height": 28, "width": 28, "patch": [28, 28], "first_patch": 1}}),
    ("single", {"crop": {"height": 28, "width": 28}}),
    ("single", {**LLAVA, "image_mean": 3}),
    ("single", {**LLAVA, "background": [0, 256, 0]}),
    ("single", {**LLAVA, "do_pad": "yes"}),
    (NEXT, {"image_grid_pinpoints": []}),
    (NEXT, {"image_grid_pinpoints": {"28": 56}}),
    (NEXT, {"image_grid_pinpoints": [28, 56]}),
    (NEXT, {"image_grid_pinpoints": [[28, 57]]}),
    (NEXT, {"image_grid_pinpoints": [[28.0, 56]]}),
    (NEXT, {"image_grid_pinpoints": [[28, 28, 28]]}),
    (NEXT, {"image_grid_pinpoints": [[28, 28]] * 1025}),
    (NEXT, {"image_grid_pinpoints": [[28 * 17, 28 * 17]]}),
    (NEXT, {"image_grid_pinpoints": [[-28, 28]]}),
    (NEXT, {"image_grid_pinpoints": "(1x1),...,(6x6)" * 20}),
    (NEXT, {"model_pinpoints": [[28, 28]]}),
    (NEXT, {"layout": "mine"}),
    (NEXT, {"layout": [["paper"], {"a": {"b": {"c": [{"d": 1}]}}}, 1, 2.5, None, True, "é'", 1e-7, 9, 10]}),
    (NEXT, {"crop_size": 224}),
    (NEXT, {"crop_size": {"height": 28, "width": 20}}),
    (NEXT, {"size": {"height": 40, "width": 30}, "do_center_crop": False}),
    (NEXT, {"crop": {"height": 28, "width": 21, "patch": [7, 7]}}),
    (NEXT, {"crop": {"height": 28, "width": 28, "patch": [7, 7], "first_patch": -1}}),
    (NEXT, {"do_pad": "yes"}),
    (ONEVISION, {"vision_aspect_ratio": "anyres"}),
    (ONEVISION, {"vision_aspect_ratio": "anyres_max_0"}),
    (ONEVISION, {"vision_aspect_ratio": "anyres_max_99999"}),
    (ONEVISION, {"vision_aspect_ratio": 9}),
    (ONEVISION, {"image_mean": [120, 110, 100]}),
    ("smolvlm", {"size": {"shortest_edge": 112}}),
    ("smolvlm", {"size": 112}),
    ("smolvlm", {"size": {"longest_edge": 28 * 16 + 1}}),
    ("smolvlm", {"size": {"longest_edge": 0}}),
    ("smolvlm", {"max_image_size": {"longest_edge": 29}}),
    ("smolvlm", {"max_image_size": {"longest_edge": True}}),
    ("smolvlm", {"max_image_size": [28]}),
    ("smolvlm", {"do_image_splitting": "yes"}),
    ("smolvlm", {"do_resize": False}),
    ("smolvlm", {"do_pad": 2}),
    ("smolvlm", {"layout": "paper"}),
    ("smolvlm", {"crop": {"height": 28, "width": 27, "patch": [14, 14]}}),
    ("smolvlm", {"crop": {"height": 28, "width": 28, "patch": [14, 14], "first_patch": -1}}),
    ("smolvlm", {"crop": {"height": 28, "width": 28, "patch": [1, 1]}, "size": {"longest_edge": 448}}),
    ("internvl", {"do_resize": False}),
    ("internvl", {"size": {"height": 28, "width": 27}}),
    ("internvl", {"size": {"shortest_edge": 28}}),
    ("internvl", {"min_patches": 0}),
    ("internvl", {"max_patches": 257}),
    ("internvl", {"min_patches": 9, "max_patches": 8}),
    ("internvl", {"crop": {"height": 28, "width": 28, "patch": [1, 1]}, "max_patches": 256}),
    ("internvl", {"markers": ["<img>"]}),
    ("internvl", {"markers": "ab"}),
    ("internvl", {"markers": ["", "</img>"]}),
    ("internvl", {"markers": ["<img>", "é" * 201]}),
    ("internvl", {"markers": None}),
    ("internvl", {"layout": 1}),
    ("qwen", {}),
]


@pytest.mark.parametrize(("name", "change"), WRONG)
def test_settings_that_are_refused(name: str, change: dict[str, Any], call: Call) -> None:
    base = {"single": "clip", NEXT: "next", ONEVISION: "onevision-2", "qwen": "clip"}.get(name, name)
    settings = {**SETTINGS[base][1], **change}
    (answer,) = call([{"op": "processor", "name": name, "settings": settings, "where": "out/config.json"}])
    _, error = python(lambda: processor_from_settings(name, settings, "out/config.json"))
    assert error
    same_error(answer, error)


NUMBERS = [0, 1, 2, 3, 5, 7, 14, 27, 28, 29, 56, -1, 336, 16384, 16385, 10**9, 2**63 - 1, -(2**63)]
NUMBERS += [0.0, 1.0, 0.5, 28.0, 1e-7, 1e22, 3.5e38, 3.3e38, -2.5, 1 / 3, 123456789.125, 1e15, 1e16, -1e-5, 255.0]
TEXTS = ["", "a", "model", "paper", "anyres_max_9", "anyres_max_1\n", "CLIPImageProcessor", "LlavaImageProcessorFast"]
TEXTS += [
    "it's",
    '"both\'"',
    "é\u200b\u00a0\n\t\\",
    "x" * 130,
    "ab" * 59 + "'" * 3,
    "\U0001f600" * 119 + "z" * 9,
    "\x7f\x80",
]
NAMES = ["height", "width", "shortest_edge", "longest_edge", "patch", "max_height", "first_patch", "é'"]
FURTHER = ["image_processor_type", "feature_extractor_type", "do_pad", "background", "model_pinpoints"]
FURTHER += ["vision_aspect_ratio", "default_to_square", "layout", "markers", "max_image_size", "do_image_splitting"]
FURTHER += ["min_patches", "max_patches"]


def anything(random: np.random.Generator, depth: int = 0) -> Any:
    """A JSON value."""
    kind = random.integers(0, 8)
    if kind < 2 or (kind > 5 and depth > 4):
        return [None, True, False][random.integers(0, 3)]
    if kind < 6:
        values: list[Any] = NUMBERS if kind < 5 else TEXTS
        return values[random.integers(0, len(values))]
    count = int(random.choice([0, 1, 2, 3, 3, 9]))
    if kind == 6:
        return [anything(random, depth + 1) for _ in range(count)]
    return {NAMES[random.integers(0, len(NAMES))]: anything(random, depth + 1) for _ in range(count)}


def test_settings_of_nobody(call: Call) -> None:
    """Whatever the settings are, they are taken where Python takes them, and else refused in its words."""
    random = np.random.default_rng(5)
    requests = []
    for _ in range(1500):
        name, settings = SETTINGS[list(SETTINGS)[random.integers(0, len(SETTINGS))]]
        keys = [*settings, *FURTHER]
        settings = settings | {
            keys[random.integers(0, len(keys))]: anything(random) for _ in range(random.integers(1, 4))
        }
        if random.random() < 0.3:
            crop = {"height": 28, "width": 28, "patch": [7, 7], "first_patch": 0}
            settings["crop"] = {key: anything(random) if random.random() < 0.3 else crop[key] for key in crop}
        requests.append({"op": "processor", "name": name, "settings": settings, "where": "config.json"})
    taken = 0
    for request, answer in zip(requests, call(requests), strict=True):
        name, settings = request["name"], request["settings"]
        _, error = python(lambda n=name, s=settings: processor_from_settings(n, s, "config.json"))
        taken += not same_error(answer, error)
    assert 100 < taken < 1400
