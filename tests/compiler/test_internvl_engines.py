"""InternVL's engines: built by TensorRT-RTX with no GPU, run on a made-up one, and read by OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import trtprune
from tests.kit import tiny, trt_kit
from tests.kit.engine_kit import build
from tests.kit.runtime_kit import Kit, same
from tests.kit.tiles import METHODS, REQUESTS
from tests.runtime.test_internvl import internvl
from trtprune.backends.onnxruntime import OrtBackend
from trtprune.runtime import Vlm

MORE: dict[str, dict[str, Any]] = {
    **METHODS,
    "hiprune": {"method": "hiprune", "keep": 9, "options": {"object_layer": 1}},
    "visionzip": {"method": "visionzip", "keep": 9, "options": {"cls_token": "drop", "crops": "each"}},
}
FAST = ("adafv",)


def chosen() -> list[Any]:
    """The methods, most of them slow."""
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MORE]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    tower = {"use_qk_norm": True, "use_mean_pooling": False, "norm_type": "rms_norm"}
    made = internvl(tiny.Tiny(decoder="qwen2", seed=7, layers=6, vision=tower))
    return Kit.make(tmp_path_factory.mktemp("internvl") / "engines", made)


@pytest.mark.parametrize("name", chosen())
def test_engines_are_built(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each graph parses, passes the checks and builds for SM89; a crop has 2 × 2 visual tokens, an image 1 to 13."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("trtprune.backends.tensorrt.gpus.find_gpus", list)
    made = build(kit.path, tmp_path / "out", "sm89", **MORE[name])
    assert (made.vision.crops, made.vision.tokens) == ((1, 13), (4, 52))
    for component in made.components:
        assert component.engine is not None
        assert made.path(component.engine).stat().st_size > 1000
    profiles = {component.name: component.profiles[0] for component in made.components}
    assert [shape[0] for shape in profiles["vision"]["pixel_values"]] == [1, 8, 8]
    assert [shape[0] for shape in profiles["pack"]["pack_index"]] == [4, 52, 52]


@pytest.mark.parametrize("name", chosen())
def test_engines_answer_as_their_graphs(kit: Kit, name: str) -> None:
    """Prompts of images of several crop counts, in a batch and one by one."""
    path = trt_kit.make_dir(
        kit, name, backend="tensorrt-rtx", max_images=2, max_batch_size=4, max_input_len=400, **MORE[name]
    )
    engines, _ = trt_kit.load(path)
    graphs = trtprune.load(path, provider="cpu", threads=1)
    wanted = [graphs.generate_batch([request])[0] for request in REQUESTS]
    for one, other in zip(engines.generate_batch(REQUESTS), wanted, strict=True):
        assert same(one, other)
        assert one.segment_tokens == other.segment_tokens


@pytest.mark.parametrize("name", chosen())
def test_openvino(kit: Kit, name: str) -> None:
    openvino = pytest.importorskip("openvino")
    out = kit.path.parent / f"openvino-{name}"
    made = trtprune.build(str(kit.path), out, provider="openvino", **MORE[name])
    ours, theirs = Vlm(made, OrtBackend("cpu", 1), max_pixels=10**6), trtprune.load(made.root, threads=1)
    assert theirs.provider == "openvino"
    for component in made.components:
        assert openvino.Core().read_model(made.path(component.onnx)).inputs
    # Tokens of an image of one pixel are all alike: the last bit would choose among them.
    requests = [request for request in REQUESTS if request.images[0].size != (1, 1)]
    for one, other in zip(theirs.generate_batch(requests), ours.generate_batch(requests), strict=True):
        assert same(one, other)
        assert one.segment_tokens == other.segment_tokens
