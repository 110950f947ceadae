"""Engines of InternVL and SmolVLM: built by TensorRT-RTX with no GPU, run on a made-up one, and read by OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import trtprune
from tests.kit import tiny, trt_kit
from tests.kit.engine_kit import build
from tests.kit.runtime_kit import Kit, same
from tests.kit.tiles import METHODS, REQUESTS
from tests.models.test_smolvlm import case
from tests.runtime.test_internvl import internvl
from trtprune.backends.onnxruntime import OrtBackend
from trtprune.runtime import Vlm


def make_internvl() -> tiny.Tiny:
    tower = {"use_qk_norm": True, "use_mean_pooling": False, "norm_type": "rms_norm"}
    return internvl(tiny.Tiny(decoder="qwen2", seed=7, layers=6, vision=tower))


def make_smolvlm() -> tiny.Tiny:
    return replace(case(seed=7, layers=6), max_positions=1024)


@dataclass(frozen=True)
class Family:
    """A family's checkpoint, its methods, those of the fast run, and the bounds of an image's crops.

    A crop has 2 × 2 visual tokens.
    """

    make: Callable[[], tiny.Tiny]
    methods: dict[str, dict[str, Any]]
    fast: tuple[str, ...]
    crops: tuple[int, int]


FAMILIES = {
    "internvl": Family(
        make_internvl,
        {
            **METHODS,
            "hiprune": {"method": "hiprune", "keep": 9, "options": {"object_layer": 1}},
            "visionzip": {"method": "visionzip", "keep": 9, "options": {"cls_token": "drop", "crops": "each"}},
        },
        ("adafv",),
        (1, 13),
    ),
    # AdaFV needs CLIP.  A longest edge of three tiles makes at least 3 × 1 of them, and the whole image.
    "smolvlm": Family(make_smolvlm, {n: m for n, m in METHODS.items() if n != "adafv"}, ("divprune", "fastv"), (4, 10)),
}
CHOSEN = [
    pytest.param(name, method, marks=() if method in family.fast else pytest.mark.slow)
    for name, family in FAMILIES.items()
    for method in family.methods
]


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kit]:
    root = tmp_path_factory.mktemp("tiled")
    return {name: Kit.make(root / name / "model", family.make()) for name, family in FAMILIES.items()}


@pytest.mark.parametrize(("name", "method"), CHOSEN)
def test_engines_are_built(
    kits: dict[str, Kit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str
) -> None:
    """Each graph parses, passes the checks and builds for SM89."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("trtprune.backends.tensorrt.gpus.find_gpus", list)
    family = FAMILIES[name]
    made = build(kits[name].path, tmp_path / "out", "sm89", **family.methods[method])
    least, most = family.crops
    assert (made.vision.crops, made.vision.tokens) == ((least, most), (4 * least, 4 * most))
    for component in made.components:
        assert component.engine is not None
        assert made.path(component.engine).stat().st_size > 1000
    profiles = {component.name: component.profiles[0] for component in made.components}
    assert [shape[0] for shape in profiles["vision"]["pixel_values"]] == [1, 8, 8]
    assert [shape[0] for shape in profiles["pack"]["pack_index"]] == [4 * least, 4 * most, 4 * most]


@pytest.mark.parametrize(("name", "method"), CHOSEN)
def test_engines_answer_as_their_graphs(kits: dict[str, Kit], name: str, method: str) -> None:
    """Prompts of images of several crop counts, in a batch and one by one."""
    own = FAMILIES[name].methods[method]
    sizes = {"max_images": 2, "max_batch_size": 4, "max_input_len": 400}
    path = trt_kit.make_dir(kits[name], method, backend="tensorrt-rtx", **sizes, **own)
    engines, _ = trt_kit.load(path)
    graphs = trtprune.load(path, provider="cpu", threads=1)
    wanted = [graphs.generate_batch([request])[0] for request in REQUESTS]
    for one, other in zip(engines.generate_batch(REQUESTS), wanted, strict=True):
        assert same(one, other)
        assert one.segment_tokens == other.segment_tokens


@pytest.mark.parametrize(("name", "method"), CHOSEN)
def test_openvino(kits: dict[str, Kit], name: str, method: str) -> None:
    openvino = pytest.importorskip("openvino")
    out = kits[name].path.parent / f"openvino-{method}"
    made = trtprune.build(str(kits[name].path), out, provider="openvino", **FAMILIES[name].methods[method])
    ours, theirs = Vlm(made, OrtBackend("cpu", 1), max_pixels=10**6), trtprune.load(made.root, threads=1)
    assert theirs.provider == "openvino"
    for component in made.components:
        assert openvino.Core().read_model(made.path(component.onnx)).inputs
    # Crops of an image of one pixel are all alike: the last bit would choose among their tokens.
    requests = [request for request in REQUESTS if request.images[0].size != (1, 1)]
    for one, other in zip(theirs.generate_batch(requests), ours.generate_batch(requests), strict=True):
        assert same(one, other)
        assert one.segment_tokens == other.segment_tokens
