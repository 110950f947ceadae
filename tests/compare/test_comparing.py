"""compare: a build that is right passes against transformers and other builds; what is wrong is told apart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.kit import compare_kit as kit
from tests.kit import tiny
from trtprune.compare import Draw, Question, Running, Tolerance, compare
from trtprune.compare.draw import random_feeds, teach_caches
from trtprune.compare.inputs import load_feeds
from trtprune.compare.numerics import judge, selection_as_mask
from trtprune.compare.tolerance import defaults
from trtprune.engine_dir import open_engine_dir
from trtprune.errors import BackendError, BudgetError, EngineDirError, InputError

FAMILIES = {
    "clip-llama": tiny.Tiny(),
    "siglip-mistral-window": tiny.Tiny(
        seed=3, tower="siglip", decoder="mistral", dtype="bfloat16", text={"sliding_window": 11}
    ),
    "dinov2-qwen2-tied": tiny.Tiny(seed=4, tower="dinov2", decoder="qwen2", tied=True, strategy="full"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.checkpoint(tmp_path_factory.mktemp("compare") / "source")


@pytest.fixture(scope="module")
def out(source: Path) -> Path:
    return kit.build(source, source.parent / "out")


@pytest.fixture(scope="module")
def half(source: Path) -> Path:
    return kit.build(source, source.parent / "half", dtype="float16")


def decoder_feeds(out: Path, **draw: int) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    made = open_engine_dir(out)
    return random_feeds(made, made.component("decoder"), Draw(**draw), ["float32"])


def session(out: Path, component: str) -> ort.InferenceSession:
    """ONNX Runtime without any of trtprune."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(out / "onnx"))
    return ort.InferenceSession((out / f"onnx/{component}.onnx").read_bytes(), options, ["CPUExecutionProvider"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_build_passes_against_transformers(name: str, tmp_path: Path) -> None:
    t = FAMILIES[name]
    source = kit.checkpoint(tmp_path / "source", t)
    out = kit.build(source, tmp_path / "out", method="adafv", keep=5)
    found = compare(out, checkpoint=str(source), draw=Draw(iterations=2, batch_size=2, text_tokens=9))
    assert found.against == "transformers"
    assert found.passed
    assert [c.name for c in found.components] == ["vision", "embed", "pruner", "decoder"]
    decoder = found.components[3]
    assert decoder.iterations == ("prefill 0", "decode 1 0", "decode 2 0", "prefill 1", "decode 1 1", "decode 2 1")
    assert {o.name for o in decoder.outputs} >= {"logits", "present.0.key", "present.2.value"}
    # Numbers that were compared, and not a comparison that could not fail: rounding differs, and is small.
    assert 0 < decoder.outputs[0].max_abs < 1e-4


def test_precisions_and_lowerings_of_one_model(source: Path, out: Path, half: Path, tmp_path: Path) -> None:
    plain = kit.build(source, tmp_path / "plain", lowering={"attention": "primitives", "norm": "primitives"})
    same = compare(plain, str(out))
    assert same.passed
    assert same.dtypes == ("float32", "float32")
    assert all(o.stat == "elemwise" for c in same.components for o in c.outputs if o.name != "kept_indices")
    across = compare(half, str(out))
    assert across.passed
    assert across.dtypes == ("float16", "float32")
    assert across.components[3].outputs[0].stat == "mean"
    # With float32's tolerance half precision fails: the default is not what makes it pass in silence.
    strict = compare(
        half, str(out), components=["decoder"], tolerance=Tolerance.parse(["1e-4"], ["1e-5"], ["elemwise"])
    )
    assert not strict.passed


def test_a_decoder_in_segments(source: Path, tmp_path: Path) -> None:
    """Each segment beside the same layers of transformers; the prune point, which has no counterpart, says so."""
    out = kit.build(source, tmp_path / "fastv", method="fastv", keep=12)
    found = compare(out, checkpoint=str(source), draw=Draw(batch_size=2), layerwise=True)
    assert found.passed
    assert found.notes == ("pruner.0 is not compared: transformers:source has no pruner.0",)
    first, last = found.components[2:]
    assert [o.name for o in first.outputs[:2]] == ["last_hidden_state", "rater_attention"]
    assert [o.name for o in last.outputs] == ["logits", "present.2.key", "present.2.value"]
    assert [[p.label for p in c.layers.residual] for c in (first, last)] == [
        ["layers.0", "layers.1"],
        ["layers.2", "norm", "lm_head"],
    ]
    half = kit.build(source, tmp_path / "half", method="fastv", keep=12, dtype="float16")
    across = compare(half, str(out))
    assert across.passed
    assert [c.name for c in across.components] == ["vision", "embed", "decoder.0", "pruner.0", "decoder.1"]


def test_both_sides_are_fed_what_the_narrower_can_hold(out: Path) -> None:
    made = open_engine_dir(out)
    for dtypes, kind in ((["float16", "float32"], np.float16), (["bfloat16", "float32"], np.float32)):
        (feed,), _ = random_feeds(made, made.component("vision"), Draw(), dtypes)
        pixels = feed["pixel_values"]
        assert pixels.dtype == kind
        if kind is np.float32:
            assert (pixels.view(np.uint32) & 0xFFFF == 0).all(), "bfloat16 is float32's upper half"


def test_random_inputs_repeat_and_fit_the_graph(out: Path) -> None:
    feeds, names = decoder_feeds(out, seed=7, iterations=2, decode_steps=1)
    again, _ = decoder_feeds(out, seed=8, iterations=1, decode_steps=1)
    assert names == ["prefill 0", "decode 1 0", "prefill 1", "decode 1 1"]
    for name, array in feeds[2].items():  # iteration 1 with seed 7 is iteration 0 with seed 8
        assert (array == again[0][name]).all()
    prefill, step = feeds[0], feeds[1]
    assert prefill["inputs_embeds"].shape == (1, 24, 64)
    assert not any(prefill[name].any() for name in prefill if name.startswith("past"))
    assert prefill["logits_index"].tolist() == [[23]]
    assert step["write_index"].tolist() == [24]
    assert step["position_ids"].tolist() == [[[24]]]
    table = load_file(out / "onnx/weights/model.safetensors")["language_model.model.embed_tokens.weight"]
    assert all((row == table).all(1).any() for row in prefill["inputs_embeds"][0]), "rows of the model's own table"


def test_a_decoders_caches_are_what_the_reference_wrote(out: Path) -> None:
    """Prompt, token and token as one sequence, in ONNX Runtime alone."""
    from trtprune.compare._require import polygraphy
    from trtprune.compare.sides import GraphSide

    polygraphy()
    side = GraphSide(open_engine_dir(out))
    feeds, _ = decoder_feeds(out, iterations=2)
    teach_caches(side.runner(side.made.component("decoder")), feeds, ["float32"])
    decoder = session(out, "decoder")
    for start in (0, 3):
        sequence = feeds[start : start + 3]
        assert not sequence[0]["past_key_values.1.value"].any()
        whole = {
            **sequence[0],
            "inputs_embeds": np.concatenate([feed["inputs_embeds"] for feed in sequence], 1),
            "position_ids": np.arange(26)[None, None],
        }
        expected = dict(zip([o.name for o in decoder.get_outputs()], decoder.run(None, whole), strict=True))
        for steps, feed in enumerate(sequence[1:]):
            past = feed["past_key_values.1.value"]
            np.testing.assert_allclose(
                past[:, :, : 24 + steps], expected["present.1.value"][:, :, : 24 + steps], atol=1e-5
            )
            assert not past[:, :, 24 + steps :].any()


def test_a_real_question_is_recorded_and_compared(source: Path, out: Path, half: Path, tmp_path: Path) -> None:
    from tests.kit.runtime_kit import picture

    picture().save(tmp_path / "cat.png")
    question = Question((str(tmp_path / "cat.png"),), "What is it?")
    found = compare(
        half, str(out), question=question, draw=Draw(keep=4, decode_steps=1), save_inputs=tmp_path / "in.json"
    )
    assert found.passed
    assert found.inputs == "a question"
    assert found.components[3].iterations == ("prefill", "decode 1")
    prompt, step = load_feeds(tmp_path / "in.decoder.json")
    (pruner,) = load_feeds(tmp_path / "in.pruner.json")
    assert pruner["keep"].tolist() == [4]
    length = prompt["inputs_embeds"].shape[1]
    assert step["write_index"].tolist() == [length]
    assert not prompt["past_key_values.1.key"].any()
    assert step["past_key_values.1.key"][:, :, :length].all()


def test_saved_inputs_give_the_same_numbers_again(out: Path, half: Path, tmp_path: Path) -> None:
    """JSON there and back, and the outputs are those of ONNX Runtime called without any of this."""
    from polygraphy.comparator import RunResults

    paths = {"save_inputs": tmp_path / "in.json", "save_outputs": tmp_path / "out.json"}
    first = compare(half, str(out), components=["vision"], **paths)
    second = compare(half, str(out), load_inputs=tmp_path / "in.json")
    assert [c.name for c in second.components] == ["vision"]
    strip = [dataclasses.replace(o, iteration="") for o in first.components[0].outputs]
    assert strip == [dataclasses.replace(o, iteration="") for o in second.components[0].outputs]
    (feed,) = load_feeds(tmp_path / "in.json")
    assert feed["pixel_values"].dtype == np.float16
    expected = session(out, "vision").run(
        ["image_features"], {"pixel_values": feed["pixel_values"].astype(np.float32)}
    )[0]
    results = RunResults.load(str(tmp_path / "out.json"))
    assert list(results.keys()) == ["onnxruntime:half", "onnxruntime:out"]
    reference = results["onnxruntime:out"][0]["image_features"]
    np.testing.assert_allclose(reference, expected, rtol=0, atol=1e-6)
    error = np.abs(results["onnxruntime:half"][0]["image_features"].astype(np.float32) - reference)
    assert first.components[0].outputs[0].max_abs == pytest.approx(error.max())
    assert first.components[0].outputs[0].mean_abs == pytest.approx(error.mean(), rel=1e-5)


def run_results(*sides: list[dict[str, np.ndarray]]):
    from polygraphy.comparator import IterationResult, RunResults

    results = RunResults()
    for name, rows in zip("ab", sides, strict=True):
        results.append((name, [IterationResult(row, 0.0, name) for row in rows]))
    return results


def test_a_selection_is_compared_as_a_set() -> None:
    """One other token near the front moves every index behind it, and is one difference."""
    features = np.arange(6, dtype=np.float32)[:, None] * np.ones(3, np.float32)

    def pruned(*kept: int) -> dict[str, np.ndarray]:
        return {"kept_indices": np.array([kept]), "pruned_features": features[list(kept)][None]}

    results = selection_as_mask(run_results([pruned(0, 2, 4)], [pruned(1, 2, 4)]), 6)
    mask, rows = judge(results, defaults("float32", 6), ["random"])
    assert not mask.passed
    assert mask.mean_abs == pytest.approx(2 / 6)
    assert rows.passed, "what both kept is the same"
    loose = Tolerance.parse(["kept_indices:0.5"], [], ["kept_indices:mean"]).over(defaults("float32", 6))
    assert judge(results, loose, ["random"])[0].passed


@pytest.mark.parametrize(
    ("stat", "passes"), [("elemwise", False), ("max", False), ("mean", True), ("median", True), ("quantile", True)]
)
def test_statistics_are_polygraphys(stat: str, passes: bool) -> None:
    exact = np.ones(1000, np.float32)
    outlier = exact.copy()
    outlier[3] = 2
    tolerance = Tolerance.parse(["1e-2"], ["1e-2"], [stat], ["0.99"])
    (found,) = judge(run_results([{"y": outlier}], [{"y": exact}]), tolerance, ["random"])
    assert found.passed == passes
    assert (found.max_abs, found.mean_abs) == (1, pytest.approx(1e-3))


def test_nan_never_passes() -> None:
    bad = np.array([1, np.nan], np.float32)
    for stat in ("elemwise", "max", "mean", "median"):
        tolerance = Tolerance.parse(["1e9"], ["1e9"], [stat])
        (found,) = judge(run_results([{"y": bad}], [{"y": bad}]), tolerance, ["random"])
        assert not found.passed
        assert found.error is None
        assert found.note == "NaN or infinity"


def test_default_tolerances_are_the_documented_ones() -> None:
    single, half = defaults("float32", 576), defaults("bfloat16", 576)
    assert single.of("logits") == ("elemwise", 1e-4, 1e-5)
    assert half.of("logits") == ("mean", 1e-2, 1e-2)
    assert single.of("cls_attention") == ("elemwise", 1e-4 / 576, 1e-4)
    assert half.of("kept_indices") == single.of("kept_indices") == ("max", 0, 0)
    mine = Tolerance.parse(["1e-3", "logits:1e-2"]).over(single)
    assert [mine.of(n)[1] for n in ("logits", "cls_attention", "kept_indices")] == [1e-2, 1e-3, 0]
    assert mine.of("logits")[0] == "elemwise", "what was not said stays"


@given(st.sampled_from(["", "logits", "layers.3.mlp.fc1"]), st.floats(0, 1e6))
def test_tolerances_are_read_as_written(name: str, value: float) -> None:
    text = f"{name}:{value!r}" if name else repr(value)
    assert Tolerance.parse([text]).atol == {name: value}


@pytest.mark.parametrize("text", ["", "x", "logits:", "logits:x", "-1", "nan", "inf"])
def test_a_bad_tolerance_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--atol"):
        Tolerance.parse([text])


def test_what_cannot_be_compared_is_refused(source: Path, out: Path, half: Path, tmp_path: Path) -> None:
    wide = kit.build(kit.checkpoint(tmp_path / "w", tiny.Tiny(hidden=96, seed=5)), tmp_path / "wide")
    tuned = kit.build(kit.checkpoint(tmp_path / "t", tiny.Tiny(seed=6)), tmp_path / "tuned")
    other = kit.build(source, tmp_path / "other", method="random")
    with pytest.raises(EngineDirError, match=r"another model .*: hidden size 96, not 64"):
        compare(out, str(wide))
    with pytest.raises(EngineDirError, match="built from another checkpoint"):
        compare(out, str(tuned))
    assert not compare(out, str(tuned), components=["embed"], allow_other_weights=True).passed
    with pytest.raises(InputError, match="digests differ"):
        compare(out, "transformers", checkpoint=str(tmp_path / "t"))
    with pytest.raises(InputError, match="'source' it was built from is not found"):
        compare(out, "transformers")
    with pytest.raises(InputError, match=r"--component tail: .* none of that name"):
        compare(out, str(half), components=["tail"])
    with pytest.raises(InputError, match="--component pruner: it is adafv here and random in"):
        compare(out, str(other), components=["pruner"])
    left_out = compare(out, str(other))
    assert [c.name for c in left_out.components] == ["vision", "embed", "decoder"]
    assert "pruner is not compared" in left_out.notes[0]
    with pytest.raises(InputError, match="no such directory"):
        compare(out, str(tmp_path / "nowhere"))
    with pytest.raises(EngineDirError, match="has no engines"):
        compare(out, "onnxruntime")
    with pytest.raises(BudgetError, match="keep=99"):
        compare(out, str(half), draw=Draw(keep=99))
    with pytest.raises(InputError, match=r"--text-tokens 600 .* does not fit the cache of 512"):
        compare(out, str(half), components=["decoder"], draw=Draw(text_tokens=600))
    with pytest.raises(InputError, match="--atol logit: nothing that is compared"):
        compare(out, str(half), tolerance=Tolerance.parse(["logit:1"]))
    with pytest.raises(InputError, match=r"--save-inputs .* no directory"):
        compare(out, str(half), components=["embed"], save_inputs=tmp_path / "no" / "in.json")


def test_inputs_that_do_not_fit_are_refused(out: Path, half: Path, tmp_path: Path) -> None:
    """Polygraphy would take an input of another name by its position."""
    from polygraphy.json import save_json

    path = tmp_path / "in.json"

    def refused(feeds: object, match: str, **chosen: list[str]) -> None:
        save_json(feeds, str(path))
        with pytest.raises(InputError, match=match):
            compare(out, str(half), load_inputs=path, **chosen)

    pixels = np.zeros((1, 3, 56, 56), np.float32)
    refused([{"pixels": pixels}], "pixel_values is missing", components=["vision"])
    refused([{"pixels": pixels}], "no component takes pixels")
    refused([{"pixel_values": pixels[:, :, :8]}], r"shape \[1, 3, 8, 56\]")
    refused([{"input_ids": np.zeros((1, 4), np.float32)}], "input_ids is float32, the graph takes int64")
    refused([], "is empty")
    refused([3], "holds no inputs")
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        compare(out, str(half), load_inputs=path)
    with pytest.raises(InputError, match="no such file"):
        compare(out, str(half), load_inputs=tmp_path / "none.json")


def test_without_polygraphy_or_torch(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "polygraphy", None)
        with pytest.raises(BackendError, match="needs Polygraphy") as caught:
            compare(out, "transformers")
        assert caught.value.hint == "pip install 'trtprune[compare]'"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        with pytest.raises(BackendError, match="--against transformers") as caught:
            compare(out, "transformers", checkpoint=str(out.parent / "source"))
        assert caught.value.hint == "pip install 'trtprune[torch]'"


def test_an_old_polygraphy_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import polygraphy

    monkeypatch.setattr(polygraphy, "__version__", "0.49.26")
    with pytest.raises(BackendError, match=r"needs Polygraphy 0\.53; 0\.49\.26 is installed"):
        compare(out, "transformers")


def test_nan_is_validated_and_reported(source: Path, out: Path, tmp_path: Path) -> None:
    bad = tmp_path / "nan"
    kit.build(source, bad, weights="copy")
    kit.disturb_weight(bad, "language_model.model.layers.1.mlp.up_proj.weight", np.nan)
    options = {"components": ["decoder"], "running": Running(verify="none"), "layerwise": True}
    found = compare(bad, str(out), validate=True, tolerance=Tolerance.parse(["1e9"], ["1e9"], ["mean"]), **options)
    assert not found.passed
    (decoder,) = found.components
    assert "onnxruntime:nan: logits" in decoder.invalid
    assert not [name for name in decoder.invalid if name.startswith("onnxruntime:out")]
    assert decoder.layers is not None
    assert decoder.layers.first == "layers.1.mlp.up_proj"
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["passed"] is False


def test_a_graph_that_fails_at_run_time_is_one_line(out: Path) -> None:
    """ONNX Runtime raises classes of its own."""
    feeds, _ = decoder_feeds(out)
    from trtprune.compare.numerics import run_both
    from trtprune.compare.sides import GraphSide

    side = GraphSide(open_engine_dir(out))
    component = side.made.component("decoder")
    feeds[0]["write_index"] = np.array([10**6])  # far behind the cache
    with pytest.raises(BackendError, match="onnxruntime:out against"):
        run_both(side.runner(component), side.runner(component), feeds[:1])
