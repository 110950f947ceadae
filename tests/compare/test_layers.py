"""--layerwise names the place where a mistake was planted, and no place where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.kit import compare_kit as kit
from tests.kit import tiny
from trtprune.compare import Comparison, ComponentResult, Running, compare
from trtprune.compare import layerwise as layerwise_module
from trtprune.compare.plot import draw_errors
from trtprune.compare.points import between, find_points, mark, module_label
from trtprune.compare.results import Layers, OutputResult, PointResult
from trtprune.errors import InputError

UNCHECKED = Running(verify="none")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.checkpoint(tmp_path_factory.mktemp("layers") / "source")


@pytest.fixture(scope="module")
def out(source: Path) -> Path:
    return kit.build(source, source.parent / "out", weights="copy")


def graph(out: Path, component: str) -> onnx.GraphProto:
    return onnx.load(out / "onnx" / f"{component}.onnx", load_external_data=False).graph


def look(made: Path, against: str, component: str, checkpoint: Path | None = None) -> ComponentResult:
    found = compare(
        made,
        against,
        components=[component],
        checkpoint=None if checkpoint is None else str(checkpoint),
        layerwise=True,
        running=UNCHECKED,
    )
    (result,) = found.components
    assert result.layers is not None
    return result


def test_points_are_the_modules_in_every_dtype_and_lowering(source: Path, out: Path, tmp_path: Path) -> None:
    plain = dict.fromkeys(("attention", "vision_attention", "norm", "rotary", "cache"), "primitives")
    others = [
        kit.build(source, tmp_path / "half", dtype="float16"),
        kit.build(source, tmp_path / "plain", lowering=plain),
        kit.build(source, tmp_path / "int8", weight_dtype="int8"),
    ]
    for component in ("vision", "embed", "decoder"):
        labels = [(p.label, p.coarse) for p in find_points(graph(out, component))]
        assert labels
        for other in others:
            assert [(p.label, p.coarse) for p in find_points(graph(other, component))] == labels
    decoder = [p.label for p in find_points(graph(out, "decoder"))]
    assert decoder[:3] == ["layers.0.input_layernorm", "layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"]
    assert decoder[-3:] == ["layers.2", "norm", "lm_head"]
    vision = [p.label for p in find_points(graph(out, "vision"))]
    assert {"patch_embedding", "layers.2.mlp.fc2", "linear_1", "projector"} <= set(vision)
    assert "position_embedding" not in vision, "what is added is not the output of a module"


def test_a_tied_output_projection_is_called_what_it_is(tmp_path: Path) -> None:
    out = kit.build(kit.checkpoint(tmp_path / "s", tiny.Tiny(tied=True)), tmp_path / "out")
    assert find_points(graph(out, "decoder"))[-1].label == "lm_head"
    assert find_points(graph(out, "embed"))[-1].label == "embed_tokens"


def test_module_labels() -> None:
    labels = {
        "model.language_model.layers.11.mlp.up_proj": "layers.11.mlp.up_proj",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj": "layers.0.self_attn.q_proj",
        "encoder.layer.3": "layers.3",
        "multi_modal_projector.linear_1": "linear_1",
        "lm_head": "lm_head",
    }
    assert {path: module_label(path) for path in labels} == labels


def test_a_marked_graph_shows_only_what_was_marked(out: Path) -> None:
    model = onnx.load(out / "onnx/decoder.onnx", load_external_data=False)
    shown = mark(model, ["v_layers.0.Add_38", "v_layers.0.Add_38"])
    assert shown == {"v_layers.0.Add_38": "probe/v_layers.0.Add_38"}
    assert [(v.name, v.type.tensor_type.elem_type) for v in model.graph.output] == [("probe/v_layers.0.Add_38", 1)]


def test_graphs_match_around_an_edit(out: Path) -> None:
    mine, theirs = graph(out, "decoder"), graph(out, "decoder")
    places = {node.name: i for i, node in enumerate(theirs.node)}
    at = next(i for name, i in places.items() if name.startswith("layers.1/Sigmoid"))
    theirs.node[at].op_type = "Tanh"
    first, last = 0, len(mine.node) - 1
    pairs = between(mine, theirs, (first, first), (last, last))
    assert all(a == b for a, b in pairs)
    names = [a for a, _ in pairs]
    assert mine.node[at].output[0] not in names
    assert mine.node[at + 1].output[0] in names
    assert mine.node[at - 1].output[0] in names or mine.node[at - 2].output[0] in names


WEIGHTS = {
    "decoder": ("language_model.model.layers.1.mlp.up_proj.weight", "layers.1.mlp.up_proj"),
    "vision": ("vision_tower.encoder.layers.2.self_attn.v_proj.weight", "layers.2.self_attn.v_proj"),
}


@pytest.mark.parametrize("component", WEIGHTS)
def test_a_disturbed_weight_is_found(source: Path, out: Path, component: str) -> None:
    """In both directions of the chain, against transformers and against the undamaged build."""
    tensor, label = WEIGHTS[component]
    bad = kit.copy(out, f"bad-{component}")
    kit.disturb_weight(bad, tensor)
    layer = ".".join(label.split(".")[:2])
    for against, checkpoint in (("transformers", source), (str(out), None)):
        result = look(bad, against, component, checkpoint)
        assert not result.passed
        # Beside another graph, the MatMul whose result the module's bias is then added to.
        assert result.layers.first is not None
        assert result.layers.first.split(" (in ")[-1].rstrip(")") == label
        stream = {p.label: p.passed for p in result.layers.residual}
        order = list(stream)
        assert all(stream[p] for p in order[: order.index(layer)])
        assert not any(stream[p] for p in order[order.index(layer) :])
        inside = {p.label: p.passed for p in result.layers.inside}
        assert next(p for p, passed in inside.items() if not passed) == label


def test_the_projector_too(source: Path, out: Path) -> None:
    bad = kit.copy(out, "bad-projector")
    kit.disturb_weight(bad, "multi_modal_projector.linear_2.weight")
    result = look(bad, "transformers", "vision", source)
    assert result.layers.first == "linear_2"
    assert [p.passed for p in result.layers.residual] == [True, True, True, True, False]


def test_a_wrong_operator_is_found_between_modules(source: Path, out: Path) -> None:
    """The mask goes missing: no weight is wrong, so modules only bracket it; the other graph gives the tensor."""
    bad = kit.copy(out, "bad-mask")
    tensor = kit.edit_graph(bad, "decoder", "Attention", "layers.2", lambda node: node.input.__delitem__(3))
    assert look(bad, "transformers", "decoder", source).layers.first == "layers.2.self_attn.o_proj"
    result = look(bad, str(out), "decoder")
    assert result.layers.first == f"{tensor} (in layers.2.self_attn.o_proj)"
    shown = {p.label: p.passed for p in result.layers.tensors}
    assert list(shown.values()).index(False) == list(shown).index(tensor)


def test_a_pruner_is_looked_into_operator_by_operator(out: Path) -> None:
    bad = kit.copy(out, "bad-pruner")
    path = bad / "onnx/pruner.onnx"
    model = onnx.load(path)
    node = next(n for n in model.graph.node if n.op_type == "Log")
    node.op_type = "Exp"
    path.write_bytes(model.SerializeToString())
    result = look(bad, str(out), "pruner")
    first = result.layers.first
    assert first is not None
    (user,) = [n for n in model.graph.node if node.output[0] in n.input]
    assert first == user.output[0], "the first operator both graphs have that is fed the wrong number"


def test_nothing_is_found_where_nothing_is_wrong(source: Path, out: Path) -> None:
    for against, checkpoint in (("transformers", source), (str(kit.copy(out, "twin")), None)):
        result = look(out, against, "decoder", checkpoint)
        assert result.passed
        assert result.layers.first is None
        assert [p.label for p in result.layers.residual] == ["layers.0", "layers.1", "layers.2", "norm", "lm_head"]
        assert all(p.magnitude > 0.1 for p in result.layers.residual)


def test_memory_is_bounded_by_fetching_in_portions(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of one tensor at a time gives the same numbers."""
    twin = kit.copy(out, "portions")
    whole = look(twin, str(out), "decoder").layers
    monkeypatch.setattr(layerwise_module, "BUDGET_BYTES", 1)
    calls = []
    run_both = layerwise_module.run_both
    monkeypatch.setattr(layerwise_module, "run_both", lambda *a, **k: calls.append(1) or run_both(*a, **k))
    assert look(twin, str(out), "decoder").layers == whole
    assert len(calls) == len(whole.residual) + len(whole.inside) + len(whole.tensors)


def test_an_error_inside_counts_in_proportion_to_its_row() -> None:
    """A number in the thousands may be off by what rounds away in the next layer's norm; a row of ones may not."""
    from polygraphy.comparator import IterationResult, RunResults

    from trtprune.compare.numerics import judge
    from trtprune.compare.tolerance import defaults

    reference = np.ones((1, 2, 4), np.float32)
    reference[0, 0, 0] = 4000  # RMS of that row: 2000
    for place, passes in (((0, 0, 1), True), ((0, 1, 1), False)):
        candidate = reference.copy()
        candidate[place] += 1e-2
        results = RunResults()
        for name, array in (("a", candidate), ("b", reference)):
            results.append((name, [IterationResult({"x": array}, 0.0, name)]))
        (found,) = judge(layerwise_module.by_row_size(results), defaults("float32", 16), ["random"])
        assert found.passed == passes


def picture_of(points: list[PointResult], path: Path) -> np.ndarray:
    output = OutputResult("logits", False, "max", 1e-4, 1e-5, 1.0, 1.0, 1.0, 1.0, 1.0, "prefill")
    layers = Layers(tuple(points), first=next((p.label for p in points if not p.passed), None), stat="max", atol=1e-4)
    component = ComponentResult("decoder", False, (output,), ("prefill",), (1, 1), "a", "b", layers=layers)
    draw_errors(Comparison("out", "b", "random", ("float32", "float32"), (component,)), path)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def red(pixels: np.ndarray) -> int:
    return int(((pixels[..., 0] > 180) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)).sum())


def test_the_picture_marks_what_is_beyond_tolerance(tmp_path: Path) -> None:
    def points(bad: int) -> list[PointResult]:
        return [
            PointResult(f"layers.{i}", i < bad, 1e-2 if i >= bad else 0.0 if i == 0 else 1e-6, 0.1, 1e-2, 1e-3, 1.0)
            for i in range(80)
        ]

    clean, half = picture_of(points(80), tmp_path / "a.png"), picture_of(points(40), tmp_path / "b.png")
    assert red(clean) == 0
    assert red(half) > 300
    lost = [*points(80)[:40], *(PointResult(f"layers.{i}", False, None, None, None, None, None) for i in range(40, 44))]
    assert red(picture_of(lost, tmp_path / "nan.png")) > 50
    with pytest.raises(InputError, match="none of what was compared has layers"):
        picture_of(points(80)[:1], tmp_path / "c.png")
    with pytest.raises(InputError, match="not a kind of picture that can be written"):
        picture_of(points(80), tmp_path / "c.nothing")
