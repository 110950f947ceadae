"""What a vision graph returns beside the image features, against transformers; and what a model cannot return."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from tests.kit import tiny
from tests.kit.runner import NUMPY, link_weights, session
from tests.kit.vision_maps import expected
from trtprune import pruning
from trtprune.checkpoint import Checkpoint, open_checkpoint
from trtprune.compiler.budget import check_needs, resolve_positions
from trtprune.engine_dir import PositionsInfo
from trtprune.errors import BudgetError
from trtprune.graph import Graph, Lowering
from trtprune.models import open_model
from trtprune.models.spec import VisionHead
from trtprune.pruning.base import TowerTraits
from trtprune.pruning.inputs import FROM_CLIP, FROM_VISION, INPUTS

CPU = Lowering.for_backend("onnxruntime")
TOWER = tuple(name for name in FROM_VISION if name not in FROM_CLIP)
ATTENTION = ("cls_attention", "mean_query_attention", "shallow_attention", "deep_attention")
LAYERS = 4


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="vision-outputs-"))


@functools.cache
def made(tower: str, states: int) -> tuple[tiny.Tiny, Any, Path]:
    """A checkpoint of each tower and width; which of its hidden states are used is set in its config.json."""
    t = tiny.Tiny(seed=31, tower=tower, layers=1, vision_layers=LAYERS, feature_layer=[-2] * states)
    path = folder() / f"{tower}-{states}"
    return t, tiny.make(path, t), path


def graph(checkpoint: Checkpoint, dtype: str = "float32", lowering: Lowering = CPU, **wanted: Any) -> Graph:
    model = open_model(checkpoint)
    return model.build_components(dtype=dtype, lowering=lowering, **wanted)["vision"]


def run(path: Path, g: Graph, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
    root = path / "engine"
    link_weights(open_checkpoint(path), root)
    s = session(g, root)
    out = s.run(None, {"pixel_values": pixel_values.astype(NUMPY[g.dtype_name])})
    return dict(zip([o.name for o in s.get_outputs()], out, strict=True))


def configured(tower: str, layer: int | list[int], strategy: str) -> tuple[tiny.Tiny, Any, Path]:
    """The checkpoint with these settings, its model in transformers, and where it lies."""
    t, model, path = made(tower, len(layer) if isinstance(layer, list) else 1)
    tiny.edit_config(path, vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    return dataclasses.replace(t, feature_layer=layer, strategy=strategy), model, path


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    one = st.integers(-LAYERS - 1, LAYERS)
    layer = draw(st.one_of(one, st.lists(one, min_size=2, max_size=2)))
    last = max(i % (LAYERS + 1) for i in (layer if isinstance(layer, list) else [layer]))
    return {
        "tower": draw(st.sampled_from(tiny.TOWERS)),
        "layer": layer,
        "strategy": draw(st.sampled_from(["default", "full"])),
        "shallow": draw(st.integers(1, last)) if last else None,
    }


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(layouts())
def test_all_outputs(case: dict[str, Any]) -> None:
    """Of every tower, any choice of layers, either strategy."""
    t, model, path = configured(case["tower"], case["layer"], case["strategy"])
    pixel_values = tiny.pixels(t, batch=2, seed=3)
    wanted = expected(t, model, pixel_values, case["shallow"])
    checkpoint = open_checkpoint(path)
    names = [name for name in TOWER if name in wanted]
    g = graph(checkpoint, vision_outputs=names, shallow_layer=case["shallow"])
    out = run(path, g, pixel_values)
    assert list(out) == ["image_features", *names]
    for name, value in out.items():
        assert value.dtype == np.float32
        assert value.shape == wanted[name].shape, name
        tolerance = 1e-6 if name in ATTENTION else 1e-4
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=tolerance, err_msg=name)
    for name in set(ATTENTION) & out.keys():  # far apart in comparison: another layer's would not pass
        assert out[name].std() > 1e-4


def test_the_shapes_the_graph_declares() -> None:
    _, _, path = configured("clip", [-2, 1], "default")
    g = graph(open_checkpoint(path), "float16", vision_outputs=TOWER, shallow_layer=2)
    declared = {o.name: (o.type.dtype.name, list(o.shape)) for o in g.outputs}  # type: ignore[union-attr,arg-type]
    spec = open_model(open_checkpoint(path)).spec
    sizes = {"N": 16, "D": spec.hidden_size, "C": spec.vision_width, "K": spec.key_width}
    assert (spec.vision_width, spec.key_width, spec.tower_layers) == (96, 12, 3)
    for name in TOWER:
        kind = "FLOAT16" if INPUTS[name].dtype == "model" else "FLOAT"
        assert declared[name] == (kind, ["batch", *(sizes[d] for d in INPUTS[name].dims)])


@pytest.mark.parametrize("tower", ["clip", "dinov2"])
def test_in_half_precision_attention_is_still_summed_in_float32(tower: str) -> None:
    """And every way of writing graphs gives the same."""
    t, model, path = configured(tower, -2, "default")
    pixel_values = tiny.pixels(t, batch=2, seed=5).astype(np.float16).astype(np.float32)
    wanted = expected(t, model, pixel_values, 1)
    checkpoint = open_checkpoint(path)
    half = run(path, graph(checkpoint, "float16", vision_outputs=TOWER, shallow_layer=1), pixel_values)
    for name in TOWER:
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(half[name], wanted[name], rtol=0, atol=0.02 * scale, err_msg=name)
    for lowering in (
        Lowering.for_backend("tensorrt"),
        Lowering.for_backend("openvino"),
        Lowering(products="primitives"),
    ):
        found = run(path, graph(checkpoint, "float32", lowering, vision_outputs=TOWER, shallow_layer=1), pixel_values)
        for name in TOWER:
            np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-4, err_msg=name)


def test_one_map_serves_two_outputs() -> None:
    """Where the early layer is the last one."""
    t, model, path = configured("clip", 2, "default")
    g = graph(open_checkpoint(path), vision_outputs=("shallow_attention", "deep_attention"), shallow_layer=2)
    assert [node.op_type for node in onnx.load_from_string(g.to_bytes()).graph.node].count("Softmax") == 2 + 1 + 1
    out = run(path, g, tiny.pixels(t))
    np.testing.assert_array_equal(out["shallow_attention"], out["deep_attention"])
    np.testing.assert_allclose(out["deep_attention"], expected(t, model, tiny.pixels(t))["deep_attention"], atol=1e-6)


def test_nothing_is_computed_that_was_not_asked_for() -> None:
    _, _, path = configured("clip", -2, "default")
    plain = onnx.load_from_string(graph(open_checkpoint(path)).to_bytes()).graph
    asked = onnx.load_from_string(graph(open_checkpoint(path), vision_outputs=["vision_keys"]).to_bytes()).graph
    assert [o.name for o in plain.output] == ["image_features", "cls_attention"]
    assert [o.name for o in asked.output] == ["image_features", "cls_attention", "vision_keys"]
    assert len(asked.node) - len(plain.node) == 2  # the mean over heads, and without the CLS token


def test_a_head_beside_the_projector() -> None:
    """What a second checkpoint adds: a function of what enters the projector."""
    t, model, path = configured("clip", -2, "default")
    head = VisionHead(lambda g, x: g.op.Slice(x, g.ints(0), g.ints(5), g.ints(2)), 5)
    g = graph(open_checkpoint(path), vision_heads={"clip_image_embeds": head})
    out = run(path, g, tiny.pixels(t))
    wanted = expected(t, model, tiny.pixels(t))["vision_features"]
    np.testing.assert_allclose(out["clip_image_embeds"], wanted[..., :5], atol=1e-4)


# -- what a model has not got


class Wanting(pruning.Method):
    name = "wanting"
    summary = "reads what a test says"

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        return np.arange(keep)


def wanting(*needs: str, layer: int | None = None, merges: bool = False) -> Wanting:
    method = Wanting()
    method.needs = frozenset(needs)  # type: ignore[misc]
    method.merges = merges  # type: ignore[misc]
    method.tower_layer = lambda options=None: layer  # type: ignore[method-assign]
    return method


def spec_of(tower: str, layer: Any, strategy: str) -> Any:
    path = configured(tower, layer, strategy)[2]
    return open_model(open_checkpoint(path)).spec


@pytest.mark.parametrize(
    ("tower", "layer", "strategy", "needs", "lack"),
    [
        (
            "siglip",
            -2,
            "full",
            "cls_attention",
            "the attention of a CLS token; the vision tower of this model has none",
        ),
        ("siglip", -2, "full", "cls_feature", "the projected CLS token; the vision tower of this model has none"),
        ("clip", 0, "default", "vision_keys", "this model uses none of the tower's layers"),
        ("clip", 0, "default", "deep_attention", "this model uses none of the tower's layers"),
        ("clip", -2, "full", "grid", "in this model the CLS token is one of them"),
        ("siglip", -2, "default", "grid", "in this model the first patch is dropped"),
        ("clip", -2, "default", "clip_image_embeds", "CLIP's text tower"),
        ("clip", -2, "default", "clip_text_embeds", "CLIP's text tower"),
    ],
)
def test_what_is_refused(tower: str, layer: Any, strategy: str, needs: str, lack: str) -> None:
    spec = spec_of(tower, layer, strategy)
    with pytest.raises(BudgetError) as error:
        check_needs(wanting(needs), spec, {})
    assert error.value.message.startswith("method='wanting' needs ")
    assert lack in error.value.message
    assert error.value.hint is not None
    able = error.value.hint.partition(": ")[2].split(", ")
    assert {"none", "random"} <= set(able)
    for name in pruning.names():
        method = pruning.get(name)
        options = method.complete_options(None, TowerTraits.of(spec))
        if name in able and method.tower_layer() is None:
            check_needs(method, spec, options)
        elif name not in able:
            with pytest.raises(BudgetError, match=f"method={name!r} needs "):
                check_needs(method, spec, options)


@pytest.mark.parametrize(
    ("tower", "layer", "strategy", "needs"),
    [
        ("siglip", -2, "full", ["vision_keys", "vision_features", "deep_attention", "shallow_attention", "grid"]),
        ("clip", -2, "default", [*TOWER, "grid"]),
        ("clip", -2, "full", TOWER),
        ("clip", 0, "default", ["vision_features"]),
    ],
)
def test_what_is_served(tower: str, layer: Any, strategy: str, needs: list[str]) -> None:
    check_needs(wanting(*needs, layer=1 if "shallow_attention" in needs else None), spec_of(tower, layer, strategy), {})


def test_with_clip_nothing_of_it_is_refused() -> None:
    check_needs(wanting(*FROM_CLIP), spec_of("clip", -2, "default"), {}, clip=True)


@pytest.mark.parametrize("options", [{"received": "all"}, {"object_layer": 1}])
def test_whole_maps_are_bounded(options: dict[str, Any]) -> None:
    """The map of 16 heads and 6,144 patches is served, that of a head and Qwen2.5-VL's 65,536 patches not."""
    method = pruning.get("fastervlm" if "received" in options else "hiprune")
    values = method.validate_options(options)
    spec = spec_of("clip", -2, "default")
    assert spec.attention_map == 4 * (spec.visual_tokens + 1) ** 2  # heads, and patches with the CLS token
    check_needs(method, dataclasses.replace(spec, attention_map=16 * 6144**2), values)
    large = dataclasses.replace(spec, attention_map=65536**2, image_size=None, patch_grid=None)
    with pytest.raises(BudgetError, match=r"whole attention map, 17.2 GB of the model's largest image") as error:
        check_needs(method, large, values)
    assert "a smaller max_image_pixels, for at most 2.7 GB" in str(error.value.hint)
    assert str(error.value.hint).startswith("options={'received': 'mean'}") == ("received" in options)
    check_needs(pruning.get("fastervlm"), large, pruning.get("fastervlm").validate_options({"received": "mean"}))


def test_what_does_without_clip_says_so() -> None:
    """For any tower, and where CLIP was not given."""
    cdpruner = pruning.get("cdpruner")
    for tower in ("siglip", "clip"):
        spec = spec_of(tower, -2, "full")
        with pytest.raises(BudgetError, match="method='cdpruner' needs CLIP's text tower") as error:
            check_needs(cdpruner, spec, cdpruner.validate_options())
        assert "options={'relevance': 'prompt'}; or method with" in str(error.value.hint)
        check_needs(cdpruner, spec, cdpruner.validate_options({"relevance": "prompt"}))


def test_a_layer_that_is_not_built() -> None:
    spec = spec_of("clip", -2, "default")
    check_needs(wanting("shallow_attention", layer=3), spec, {"object_layer": 3})
    with pytest.raises(BudgetError, match=r"options={'object_layer': 4}: .* this model uses 3") as error:
        check_needs(wanting("shallow_attention", layer=4), spec, {"object_layer": 4})
    assert error.value.hint == "a layer from 1 to 3"


def test_positions_of_merged_tokens() -> None:
    spec = spec_of("clip", -2, "default")
    half = spec.head_dim // 2
    assert resolve_positions(wanting(merges=True), spec, None, {}) == PositionsInfo("compact", 1, (half,))
    with pytest.raises(BudgetError, match="positions='original': wanting merges tokens"):
        resolve_positions(wanting(merges=True), spec, "original", {})
    # With rows and columns, a merged token is where the one is that it stands for.
    grid = dataclasses.replace(spec, rotary_sections=(half - 4, 2, 2), rotary_interleaved=True)
    for merges in (False, True):
        assert resolve_positions(wanting(merges=merges), grid, None, {}) == PositionsInfo(
            "original", 3, (half - 4, 2, 2), True
        )
        assert resolve_positions(wanting(merges=merges), grid, "compact", {}).rule == "compact"
