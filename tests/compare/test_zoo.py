"""compare, of builds whose vision graph returns more and whose pruner merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polygraphy.comparator import IterationResult, RunResults

from tests.kit import compare_kit as kit
from tests.kit import tiny
from trtprune import pruning
from trtprune.compare import Draw, Running, compare
from trtprune.compare.numerics import judge, selection_as_mask
from trtprune.compare.tolerance import defaults

# Between them they read every output of the tower, the grid, and merge.
METHODS: dict[str, dict[str, Any]] = {"visionzip": {}, "hiprune": {"object_layer": 2}, "vispruner": {}}
NEEDS = {
    "visionzip": {"cls_attention", "vision_keys", "cls_feature"},
    "hiprune": {"shallow_attention", "deep_attention", "grid"},
    "vispruner": {"cls_attention", "vision_features"},
}


@pytest.fixture(scope="module", params=["clip", "dinov2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    layer = -2 if request.param == "dinov2" else [-2, 1]
    return kit.checkpoint(folder / "source", tiny.Tiny(seed=61, tower=request.param, layers=1, feature_layer=layer))


@pytest.mark.parametrize("name", METHODS)
def test_against_transformers(source: Path, tmp_path: Path, name: str) -> None:
    assert pruning.get(name).needs >= NEEDS[name]
    out = kit.build(source, tmp_path / "out", method=name, options=METHODS[name], keep=6)
    found = compare(out, checkpoint=str(source), components=["vision", "pruner"], draw=Draw(iterations=2, batch_size=2))
    assert found.passed, [o for c in found.components for o in c.outputs if not o.passed]
    vision, pruner = found.components
    seen = {o.name: o for o in vision.outputs}
    assert seen.keys() == {"image_features", "cls_attention"} | (NEEDS[name] - {"grid"})
    assert all(0 < o.max_abs < 1e-4 for o in vision.outputs if o.name != "vision_keys")  # rounding, and not nothing
    assert [o.name for o in pruner.outputs] == ["kept_indices", "pruned_features"]


def test_the_first_layer_of_the_decoder(source: Path, tmp_path: Path) -> None:
    """hawk's pruner beside its NumPy code on what transformers' first layer projects; and not beside another's."""
    out = kit.build(source, tmp_path / "out", method="hawk", keep=6, weights="copy")
    draw = Draw(iterations=2, batch_size=2)
    found = compare(out, checkpoint=str(source), components=["pruner"], draw=draw)
    assert found.passed, [o for c in found.components for o in c.outputs if not o.passed]
    assert [o.name for o in found.components[0].outputs] == ["kept_indices", "pruned_features"]
    kit.disturb_weight(out, next(name for name in kit_names(out) if name.endswith("layers.0.self_attn.k_proj.weight")))
    running = Running(verify="none")
    assert not compare(out, checkpoint=str(source), components=["pruner"], draw=draw, running=running).passed


def test_a_wrong_map_fails(source: Path, tmp_path: Path) -> None:
    """Tolerances for attention are in proportion: a disturbed layer is not taken for rounding."""
    out = kit.build(source, tmp_path / "out", method="hiprune", options={"object_layer": 2}, keep=6, weights="copy")
    key = next(
        n
        for n in kit_names(out)
        if n.endswith(("layers.1.self_attn.k_proj.weight", "layer.1.attention.attention.key.weight"))
    )
    kit.disturb_weight(out, key)
    found = compare(out, checkpoint=str(source), components=["vision"], running=Running(verify="none"))
    wrong = {o.name for o in found.components[0].outputs if not o.passed}
    assert {"shallow_attention", "image_features"} <= wrong


def kit_names(out: Path) -> list[str]:
    from trtprune.checkpoint.safetensors import read_header

    return [name for path in (out / "onnx/weights").glob("*.safetensors") for name in read_header(path).tensors]


def test_builds_of_different_methods_share_what_is_common(source: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = kit.build(source, tmp_path / "zip", method="visionzip", keep=6)
    plain = kit.build(source, tmp_path / "plain", method="random", keep=6)
    found = compare(out, str(plain), report=lambda name, text: said.append(f"{name}: {text}"))
    assert found.passed
    assert [o.name for o in found.components[0].outputs] == ["image_features", "cls_attention"]
    assert "vision: not compared, since one side only has it: cls_feature, vision_keys" in said
    assert [note.split()[0] for note in found.notes] == ["pruner"]
    deep = kit.build(source, tmp_path / "deep", method="hiprune", options={"object_layer": 1}, keep=6)
    deeper = kit.build(source, tmp_path / "deeper", method="hiprune", options={"object_layer": 3}, keep=6)
    notes = compare(deep, str(deeper)).notes
    assert any(
        note.startswith("vision is not compared: shallow_attention is that of layer 1 here and 3") for note in notes
    )


def test_merged_rows_are_compared_where_selections_agree() -> None:
    """-1 is a token of its own, and not the last one."""
    features = np.random.default_rng(0).standard_normal((1, 3, 4)).astype(np.float32)

    def results(*indices: list[int]) -> Any:
        found = RunResults()
        for name, row in zip("ab", indices, strict=True):
            outputs = {"kept_indices": np.array([row], np.int64), "pruned_features": features}
            found.append((name, [IterationResult(outputs, 0.1, name)]))
        return found

    same = judge(selection_as_mask(results([-1, 1, 4], [-1, 1, 4]), 6, merges=True), defaults("float32", 6), ["x"])
    assert [(o.name, o.passed) for o in same] == [("kept_indices", True), ("pruned_features", True)]
    (mask,) = judge(selection_as_mask(results([-1, 1, 4], [1, 4, 5]), 6, merges=True), defaults("float32", 6), ["x"])
    assert not mask.passed
    assert mask.max_abs == 1
