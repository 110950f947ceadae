"""Engines of images of several crops: built by TensorRT-RTX with no GPU, and run on a made-up one.

The bounds of crops and visual tokens that the engines serve are written out by hand here, from the pinpoints.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtprune
from tests.kit import tiny, trt_kit
from tests.kit.engine_kit import build, command
from tests.kit.runtime_kit import Kit, picture, same
from tests.kit.tiles import CASES, METHODS, REQUESTS, make_kit
from trtprune.engine_dir import EngineDir, open_engine_dir
from trtprune.engine_dir.graphs import count_operators, read_graph
from trtprune.errors import BudgetError, InputError

# A crop is 4 × 4 patches.  NeXT: 16 and the 12 × 4 plane with a newline token a row, or 8 × 8; at least the overview
# alone.  OneVision: the 8 × 8 plane is shrunk by √(64 / 32) to 5 × 5 and five newline tokens; 4 × 12 by √(48 / 32) to
# 3 × 9; the fewest are a picture among several, 17.
TOKENS = {"next": (16, 16 + 72), "onevision": (16, 16 + 40)}
CROPS = {"next": (3, 5), "onevision": (1, 5)}
PAIRS = [(family, name) for family in CASES for name in METHODS]


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kit]:
    return {name: make_kit(tmp_path_factory.mktemp("tiles") / name, case) for name, case in CASES.items()}


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a machine that has one."""
    monkeypatch.setattr("trtprune.backends.tensorrt.gpus.find_gpus", list)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_engines_are_built(kits: dict[str, Kit], tmp_path: Path, no_gpu: None, family: str, name: str) -> None:
    """Each graph parses, passes the checks and builds for SM89, with profiles that the processor decides."""
    pytest.importorskip("tensorrt_rtx")
    made = build(kits[family].path, tmp_path / "out", "sm89", **METHODS[name])
    fewest, most = made.vision.tokens
    assert (made.vision.crops, made.vision.tokens) == (CROPS[family], TOKENS[family])
    for component in made.components:
        assert component.engine is not None
        assert made.path(component.engine).stat().st_size > 1000
        assert len(component.profiles) == 1
    profiles = {component.name: component.profiles[0] for component in made.components}
    assert [shape[0] for shape in profiles["vision"]["pixel_values"]] == [1, 5, 5]
    pack = profiles["pack"]
    assert [shape[:1] for shape in pack["image_features"]] == [(CROPS[family][0],), (5,), (5,)]
    assert [shape[0] for shape in pack["pack_index"]] == [fewest, most, most]
    assert ("pack_weight" in pack) == (family == "onevision")
    if "pruner" in profiles:
        low, high = made.pruning.keep_range
        assert profiles["pruner"]["keep"] == ((low,), (made.pruning.keep,), (high,))
        assert [shape[1] for shape in profiles["pruner"]["image_features"]] == [min(fewest, low), most, most]
    else:
        assert [shape[1] for shape in profiles["pruner.0"]["visual_index"]] == [fewest, most, most]
        assert profiles["decoder.0"]["inputs_embeds"][2][1] == 512 + most
    expected = {"adafv": most, "none": most, "divprune": min(most, 20 + 12)}
    if name in expected:
        assert profiles["decoder"]["inputs_embeds"][2][1] == 512 + expected[name]


def test_through_the_command(kits: dict[str, Kit], tmp_path: Path, no_gpu: None) -> None:
    """Batches and pictures of a prompt share the vision engine's runs of eight crops."""
    pytest.importorskip("tensorrt_rtx")
    code, _, err = command(
        "build", "-m", kits["next"].path, "-o", tmp_path / "out", "--backend", "tensorrt-rtx", "--keep", 6,
        "--keep-range", "2:12", "--compute-capability", "sm89", "--max-batch-size", 2, "--max-images", 3,
        "--max-input-len", 40,
    )  # fmt: skip
    assert code == 0, err
    made = open_engine_dir(tmp_path / "out", verify="full", backend="tensorrt-rtx")
    assert made.component("vision").profiles[0]["pixel_values"][2][0] == 8
    # The smallest image has 16 tokens and nothing but rows of the overview, so up to 12 and as many newline tokens
    # can stay as they are: 24.
    assert made.component("decoder").profiles[0]["inputs_embeds"][2] == (2, 40 + 3 * 24, 64)
    assert made.kv.capacity == 384  # 40 + 3 * 24 + 256 = 368, in steps of 128


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_engines_answer_as_their_graphs(kits: dict[str, Kit], family: str, name: str, backend: str) -> None:
    """Prompts of images of several crop counts, in a batch and one by one."""
    path = trt_kit.make_dir(
        kits[family], name, backend=backend, max_images=2, max_batch_size=4, max_input_len=120, **METHODS[name]
    )
    engines, fake = trt_kit.load(path)
    graphs = trtprune.load(path, provider="cpu", threads=1)
    wanted = [graphs.generate_batch([request])[0] for request in REQUESTS]
    fake.driver.d2h.clear()
    found = engines.generate_batch(REQUESTS)
    # Features stay on the device: 64 numbers of four bytes a visual token.
    assert max(fake.driver.d2h) < 64 * 4 * max(result.visual_tokens for result in found)
    for one, other in zip(found, wanted, strict=True):
        assert same(one, other)
        assert one.segment_tokens == other.segment_tokens
    for request, other in zip(reversed(REQUESTS), reversed(wanted), strict=True):
        assert same(engines.generate_batch([request])[0], other)


def test_newline_tokens_beside_the_budget(kits: dict[str, Kit]) -> None:
    """Rows of several places of the device's memory put together."""
    build: dict[str, Any] = {"method": "random", "keep": 9, "keep_range": (2, 30), "newlines": "keep"}
    path = trt_kit.make_dir(kits["next"], "newlines", max_input_len=120, **build)
    engines, _ = trt_kit.load(path)
    graphs = trtprune.load(path, provider="cpu", threads=1)
    for keep in (2, 9, 30):
        found, wanted = (
            vlm.generate(picture(1), "Why?", keep=keep, max_new_tokens=6, seed=3) for vlm in (engines, graphs)
        )
        assert same(found, wanted)
        assert found.kept_tokens > keep


def test_two_conversations(kits: dict[str, Kit]) -> None:
    path = trt_kit.make_dir(kits["onevision"], "chat", method="divprune", keep=9, max_images=2, max_input_len=200)
    vlms = trt_kit.load(path)[0], trtprune.load(path, provider="cpu", threads=1)
    chats = [[vlm.chat(picture(1)), vlm.chat([picture(2), picture(3, (200, 30))])] for vlm in vlms]
    for question in ("What is it?", "And now?"):
        for ours, theirs in zip(*chats, strict=True):
            assert same(ours.ask(question, max_new_tokens=5), theirs.ask(question, max_new_tokens=5))


def test_what_is_beyond_the_limits(kits: dict[str, Kit]) -> None:
    path = trt_kit.make_dir(kits["next"], "limits", method="divprune", keep=6, keep_range=(2, 12), max_input_len=64)
    vlm, _ = trt_kit.load(path)
    many = [picture(i) for i in range(6)]
    with pytest.raises(InputError, match="--max-images"):
        vlm.generate(many, "Which?", keep=12, max_new_tokens=2)
    with pytest.raises(BudgetError, match="keep_range"):
        vlm.generate(picture(1), "Which?", keep=13, max_new_tokens=2)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Images of up to 196 · 31 visual tokens and more, beyond the 3840 entries of TensorRT's TopK."""
    pinpoints = [[56, 56], [56, 112], [336, 336]]
    more = {"image_grid_pinpoints": pinpoints, "vision_aspect_ratio": "anyres_max_30"}
    case = replace(CASES["onevision"], more=more, max_positions=8192, patch_size=4, layers=4)
    return Kit.make(tmp_path_factory.mktemp("tiles") / "large", case)


LARGE = {
    "divprune": {"keep": 9},
    "divprune-most": {"keep": 4000},
    "dart": {"keep": 9},
    "visionzip": {"keep": 9},
    "fastv": {"keep": 4000},
}


@pytest.mark.parametrize("name", LARGE)
def test_more_tokens_than_one_topk_orders(large: Kit, name: str) -> None:
    """Graphs for TensorRT choose as those for ONNX Runtime, whose TopK has no limit."""
    settings: dict[str, Any] = {"method": name.partition("-")[0], **LARGE[name]}
    path = trt_kit.make_dir(large, f"{name}-engines", max_input_len=64, **settings)
    made = open_engine_dir(path)
    assert made.model.visual_tokens > 3840
    pruner = next(component for component in made.components if component.role == "pruner")
    assert count_operators(read_graph(made.path(pruner.onnx)))["TopK"] > 2
    image, keep = picture(1, (330, 340)), settings["keep"]
    found = trt_kit.load(path)[0].generate(image, "What is it?", keep=keep, max_new_tokens=2)
    wanted = large.load(name, **settings).generate(image, "What is it?", keep=keep, max_new_tokens=2)
    assert found.visual_tokens > 3840
    assert found.kept_indices == wanted.kept_indices


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fastv", "sparsevlm", "pyramiddrop", "dart"])
def test_engines_of_many_tokens(large: Kit, tmp_path: Path, no_gpu: None, method: str) -> None:
    """Built by TensorRT-RTX without a flag, methods inside the decoder among them."""
    pytest.importorskip("tensorrt_rtx")
    options = {"pyramiddrop": {"first": 1}, "sparsevlm": {"schedule": "auto"}}.get(method, {})
    made = build(large.path, tmp_path / "out", "sm89", method=method, keep=4000, options=options)
    assert made.model.visual_tokens > 3840
    assert all(component.engine for component in made.components)


@pytest.mark.parametrize("method", ["divprune", "dart", "fastv"])
def test_as_many_tokens_in_onnx_runtime(large: Kit, method: str) -> None:
    vlm = large.load(method, method=method, keep=4000 if method == "fastv" else 9)
    assert vlm.config.model.visual_tokens > 3840
    result = vlm.generate(picture(1, (330, 340)), "What is it?", max_new_tokens=2)
    assert result.visual_tokens > 3840
    assert len(result.token_ids) == 2


# -- half precision


def dtypes(made: EngineDir, role: str) -> dict[str, str]:
    return {spec.name: spec.dtype for spec in (*made.part(role).inputs, *made.part(role).outputs)}


@pytest.mark.parametrize(("family", "method"), [("next", "fastervlm"), ("onevision", "divprune")])
def test_float16_in_onnx_runtime(kits: dict[str, Kit], family: str, method: str) -> None:
    """Features in half precision, attention and weights of the gather not; close to transformers in float32."""
    kit = kits[family]
    vlm = kit.load("half", method=method, keep=9, dtype="float16")
    found = dtypes(vlm.config, "pack")
    assert found.pop("pack_index") == "int64"
    assert found.pop("pack_weight", "float32") == "float32"
    assert {found.pop(name, "float32") for name in ("cls_attention", "packed_cls_attention")} == {"float32"}
    assert found == {"image_features": "float16", "packed_image_features": "float16"}
    for size in ((90, 70), (400, 380), (7, 500)):
        image = picture(2, size)
        inputs = kit.inputs([image], "Why?")
        ids = inputs["input_ids"][0] == tiny.IMAGE_TOKEN_ID
        wanted = kit.embeds(inputs)[0][ids].numpy()
        features = vlm.look(image, "Why?").features
        assert features.image.dtype == np.float16
        np.testing.assert_allclose(features.image.astype(np.float32), wanted, rtol=0, atol=0.02)
        assert vlm.generate(image, "Why?", max_new_tokens=3).kept_tokens == 9


@pytest.mark.parametrize("family", CASES)
def test_bfloat16(kits: dict[str, Kit], tmp_path: Path, no_gpu: None, family: str) -> None:
    """Engines; ONNX Runtime computes with it on GPUs only."""
    pytest.importorskip("tensorrt_rtx")
    made = build(kits[family].path, tmp_path / "out", "sm89", method="divprune", keep=9, dtype="bfloat16")
    found = dtypes(made, "pack")
    assert {found[name] for name in ("image_features", "packed_image_features")} == {"bfloat16"}
    assert all(component.engine is not None for component in made.components)
