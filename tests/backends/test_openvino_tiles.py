"""Provider ``openvino`` on images of several crops: every graph is read, and answers are those of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

import trtprune
from tests.kit.runtime_kit import Kit, same
from tests.kit.tiles import CASES, METHODS, REQUESTS, make_kit
from trtprune.backends.onnxruntime import OrtBackend
from trtprune.engine_dir import EngineDir, open_engine_dir
from trtprune.runtime import Vlm

openvino = pytest.importorskip("openvino")

PAIRS = [(family, name) for family in CASES for name in ("adafv", "divprune", "none", "sparsevlm", "fastv")]


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kit]:
    return {name: make_kit(tmp_path_factory.mktemp("tiles") / name, case) for name, case in CASES.items()}


def built(kit: Kit, name: str) -> EngineDir:
    out = kit.path.parent / f"{kit.path.name}-{name}"
    return trtprune.build(str(kit.path), out, provider="openvino", **METHODS[name])


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_answers(kits: dict[str, Kit], family: str, name: str) -> None:
    """A batch of prompts with one and two images of different crop counts, then one by one."""
    made = built(kits[family], name)
    ours, theirs = Vlm(made, OrtBackend("cpu", 1), max_pixels=10**6), trtprune.load(made.root, threads=1)
    assert theirs.provider == "openvino"
    for component in made.components:
        assert openvino.Core().read_model(made.path(component.onnx)).inputs
    wanted = ours.generate_batch(REQUESTS)
    for one, other in zip(theirs.generate_batch(REQUESTS), wanted, strict=True):
        assert same(one, other)
        assert one.segment_tokens == other.segment_tokens
    for request, other in zip(REQUESTS, wanted, strict=True):
        assert same(theirs.generate_batch([request])[0], other)


@pytest.mark.parametrize("family", CASES)
def test_pack(kits: dict[str, Kit], family: str) -> None:
    """The graph in OpenVINO itself, at two image sizes."""
    made = open_engine_dir(built(kits[family], "none").root)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(made.path(made.part("pack").onnx)), "CPU")
    session = OrtBackend("cpu", 1).session(made.part("pack"), made.root)
    vlm = trtprune.load(made.root, provider="cpu", threads=1)
    rng = np.random.default_rng(0)
    for height, width in ((70, 90), (500, 7)):
        plan = vlm.pipeline.processor.plan(height, width)
        given = {"pack_index": plan.pack_index.astype(np.int64), "pack_weight": plan.pack_weight}
        for spec in made.part("pack").inputs:
            if spec.name not in given:
                shape = [plan.crops if isinstance(size, str) else size for size in spec.shape]
                given[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        inputs = {spec.name: given[spec.name] for spec in made.part("pack").inputs}
        wanted, found = session.run(inputs), compiled(inputs)
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5)
