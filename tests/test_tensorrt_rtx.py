"""Every graph parses and builds in TensorRT-RTX for SM89, in float16, and means there what it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.runner import link_weights
from trtprune.checkpoint import open_checkpoint
from trtprune.graph import Graph, Lowering
from trtprune.models import get_family

rtx = pytest.importorskip("tests.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)

CAPACITY = 128
LOWERING = Lowering.for_backend("tensorrt-rtx")
CASES = {
    "clip-llama": tiny.Tiny(dtype="float16"),
    "dinov2-qwen2-window": tiny.Tiny(
        seed=1,
        tower="dinov2",
        decoder="qwen2",
        tied=True,
        dtype="bfloat16",
        text={"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        vision={"use_swiglu_ffn": True},
    ),
    "siglip-mistral": tiny.Tiny(
        seed=2,
        tower="siglip",
        decoder="mistral",
        strategy="full",
        feature_layer=[-2, 1],
        text={"sliding_window": 16},
        rope={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("rtx")
    tiny.make(path, CASES[request.param])
    if CASES[request.param].tower == "dinov2":  # another size than the position table: Resize in the graph
        (path / "preprocessor_config.json").write_text('{"crop_size": {"height": 84, "width": 84}}')
    checkpoint = open_checkpoint(path)
    family = get_family(checkpoint.config)
    link_weights(checkpoint, path / "engine")
    graphs = family.build_components(checkpoint, dtype="float16", lowering=LOWERING)
    return family.spec(checkpoint), graphs, path / "engine"


def test_vision(built) -> None:
    spec, graphs, root = built
    network = rtx.Network(graphs["vision"].to_bytes(), root)
    network.check_attention(masked=False, count=max(spec.feature_layers))
    assert network.build() > 0


def test_embed(built) -> None:
    _, graphs, root = built
    assert rtx.Network(graphs["embed"].to_bytes(), root).build() > 0


def test_decoder(built) -> None:
    spec, graphs, root = built
    network = rtx.Network(graphs["decoder"].to_bytes(), root, {"capacity": CAPACITY})
    network.check_attention(masked=True, count=spec.num_layers)
    assert network.build() > 0
