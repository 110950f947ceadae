"""Vision graphs with everything they can return, and whole builds of methods that read it, in TensorRT-RTX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.kit import tiny
from tests.kit.engine_kit import ALL, build
from tests.kit.runner import link_weights
from tests.kit.tiny_files import complete
from trtprune import pruning
from trtprune.checkpoint import open_checkpoint
from trtprune.graph import Lowering
from trtprune.models import open_model
from trtprune.pruning.inputs import FROM_CLIP, FROM_VISION

rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)

LOWERING = Lowering.for_backend("tensorrt-rtx")
TOWER = [name for name in FROM_VISION if name not in FROM_CLIP]
PLAIN = [name for name in TOWER if not name.startswith("cls_")]
CASES = {
    "clip": (tiny.Tiny(seed=51, vision_layers=3, dtype="float16", layers=1), TOWER),
    "clip-layers": (tiny.Tiny(seed=52, vision_layers=3, feature_layer=[-2, 1], strategy="full", layers=1), TOWER),
    "dinov2": (tiny.Tiny(seed=53, tower="dinov2", vision_layers=3, dtype="float16", layers=1), TOWER),
    "siglip": (tiny.Tiny(seed=54, tower="siglip", vision_layers=3, strategy="full", layers=1), PLAIN),
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vision-rtx")
    for name, (t, _) in CASES.items():
        tiny.make(folder / name, t)
        link_weights(open_checkpoint(folder / name), folder / name / "engine")
    return {name: folder / name for name in CASES}


@pytest.mark.parametrize(
    ("tower", "dtype", "targets"),
    [(tower, "float16", ("sm89",)) for tower in CASES]
    + [("clip", "bfloat16", ("sm89",)), ("clip", "float32", ("sm89",)), ("dinov2", "float32", ("sm89",))]
    + [("clip", "float16", ALL), ("siglip", "float16", ALL)],
)
def test_every_output(towers: dict[str, Path], tower: str, dtype: str, targets: tuple[str, ...]) -> None:
    """The attention of the layers stays an operator; beside it stands what has the weights to read."""
    path, wanted = towers[tower], CASES[tower][1]
    lowering = replace(LOWERING, products="primitives") if "sm75" in targets else LOWERING
    checkpoint = open_checkpoint(path)
    model = open_model(checkpoint)
    graphs = model.build_components(dtype=dtype, lowering=lowering, vision_outputs=wanted, shallow_layer=1)
    network = rtx.Network(graphs["vision"].to_bytes(), path / "engine")
    network.check(attention=model.spec.tower_layers, cache_updates=0)
    assert network.build(targets=targets) > 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete(tmp_path_factory.mktemp("checkpoint") / "clip", tiny.Tiny(seed=55))


def readers() -> list[str]:
    """Methods that together read everything of the tower; that each one's pruner builds is tested elsewhere."""
    found, left = [], {*TOWER} - {"cls_attention", "mean_query_attention"}
    for method in pruning.all_methods():
        if method.needs & left and not method.needs & set(FROM_CLIP):
            found.append(method.name)
            left -= method.needs
    assert not left
    return found


@pytest.mark.parametrize(
    ("name", "received"),
    [*((name, None) for name in readers()), ("fastervlm", "mean"), ("adafv", "all"), ("hawk", None)],
)
def test_whole_builds(checkpoint: Path, tmp_path: Path, name: str, received: str | None) -> None:
    method = pruning.get(name)
    options: dict[str, Any] = {option.name: 2 for option in method.options if option.name.endswith("_layer")}
    options |= {"received": received} if received else {}
    made = build(checkpoint, tmp_path / "out", method=name, options=options, keep=6, keep_range=(2, 12),
                 engine={"max_batch_size": 2, "max_images": 2})  # fmt: skip
    for component in made.components:
        assert component.engine is not None
        assert made.path(component.engine).stat().st_size > 10_000
    needs = {*made.pruning.needs} & {*TOWER}
    assert {spec.name for spec in made.component("vision").outputs} >= needs
    profile = made.component("pruner").profiles[0]
    assert profile["keep"] == ((2,), (6,), (12,))
    assert made.component("vision").profiles[0]["pixel_values"][2] == (4, 3, 56, 56)
    for read in needs:
        assert [shape[0] for shape in profile[read]] == [1, 1, 1]
