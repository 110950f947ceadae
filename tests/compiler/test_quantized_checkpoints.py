"""Quantised checkpoints in builds: answers equal those of transformers with the dequantised weights."""

from __future__ import annotations

import collections
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import safetensors.numpy

import trtprune
from tests.kit import tiled, tiny
from tests.kit.quantized_checkpoints import Recipe, is_layer, quantize
from tests.kit.runtime_kit import Kit, picture, record
from tests.kit.tiny import Tiny
from trtprune.backends.onnxruntime import OrtBackend
from trtprune.compiler import carried
from trtprune.errors import BuildError, CheckpointError

TOKENS = 32
QUESTION = "What is on the table?"
AWQ = Recipe()
RECIPES = {
    "awq": AWQ,
    "gptq": Recipe("gptq", symmetric=True),
    "gptq-asymmetric": Recipe("gptq", group=16),
    "gptq-v2": Recipe("gptq_v2"),
    "gptq-act-order": Recipe("gptq", symmetric=True, act_order=True),
    "gptq-int8": Recipe("gptq", bits=8, symmetric=True),
    "gptq-int8-act-order": Recipe("gptq", bits=8, act_order=True),
    "gptq-rows": Recipe("gptq", group=-1),
    "pack-int4": Recipe("pack", symmetric=True, scale="bfloat16"),
    "pack-int8": Recipe("pack", bits=8, group=-1, scale="float32"),
    "w8a8": Recipe("int", bits=8, group=-1, symmetric=True, scale="bfloat16"),
    "groups-of-8": Recipe("pack", group=8),
    "everything": Recipe(
        "pack",
        group=16,
        more=lambda name: name.endswith("weight") and (".fc" in name or "linear_" in name),
    ),
    "lm_head": Recipe("gptq", more=lambda name: name.endswith("lm_head.weight")),
}
FAST = ("awq", "w8a8", "everything")
CASES = {
    "llava": Tiny(text={"attention_bias": True}),
    "odd": Tiny(seed=1, tower="siglip", decoder="qwen2", hidden=96, vocab=161, text={"intermediate_size": 160}),
    "qwen3": Tiny(seed=2, decoder="qwen3", tied=True),
    **tiled.FAMILIES,
    "qwen2-vl": Tiny("qwen2-vl", seed=5),
    "qwen2.5-vl": Tiny("qwen2.5-vl", seed=6),
    "qwen2.5-vl-new": Tiny("qwen2.5-vl", seed=7, old_names=False, tied=True),
    "qwen3-vl": Tiny("qwen3-vl", seed=8, text={"head_dim": 16}),
}


def quantized_kit(folder: Path, t: Tiny, recipe: Recipe) -> Kit:
    """A kit of the quantised checkpoint, whose transformers' half has the dequantised weights."""
    kit = Kit.make(folder / "plain", t)
    quantize(kit.path, folder / "quantised", recipe, folder / "oracle")
    return replace(kit, path=folder / "quantised", model=tiny.load(folder / "oracle"))


def built(kit: Kit, checkpoint: Path | None = None, **arguments: Any) -> Path:
    path = checkpoint or kit.path
    out = kit.path.parent / "-".join(["out", path.name, *map(str, arguments.values())])
    trtprune.build(path, out, **{"method": "none", **arguments})
    return out


def load(out: Path, **arguments: Any) -> Any:
    return trtprune.load(out, threads=1, provider_options={"activations": "float32"}, **arguments)


def check_answer(kit: Kit, out: Path, seed: int = 3) -> None:
    """32 greedy ids and their logits equal transformers'."""
    vlm = load(out)
    recorder = record(vlm)
    expected, logits = kit.generate(TOKENS, **kit.inputs([picture(seed)], QUESTION))
    result = vlm.generate(picture(seed), QUESTION, max_new_tokens=TOKENS)
    assert result.token_ids == expected
    np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def awq(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return quantized_kit(tmp_path_factory.mktemp("awq"), CASES["llava"], AWQ)


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return quantized_kit(tmp_path_factory.mktemp("ordered"), CASES["llava"], RECIPES["gptq-act-order"])


# -- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES])
def test_equals_transformers_with_the_dequantised_weights(tmp_path: Path, name: str) -> None:
    kit = quantized_kit(tmp_path, CASES["llava"], RECIPES[name])
    check_answer(kit, built(kit))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["awq", "gptq-act-order", "pack-int4", "w8a8"])
@pytest.mark.parametrize("case", [name for name in CASES if name != "llava"])
def test_every_kind_of_family(tmp_path: Path, case: str, recipe: str) -> None:
    kit = quantized_kit(tmp_path, CASES[case], replace(RECIPES[recipe], seed=CASES[case].seed))
    check_answer(kit, built(kit))


def test_qwen_under_its_older_names(tmp_path: Path) -> None:
    """``visual.*`` and ``model.layers.*``, as in the published AWQ checkpoints."""
    kit = quantized_kit(tmp_path, CASES["qwen2.5-vl"], AWQ)
    names = safetensors.numpy.load_file(kit.path / "model.safetensors").keys()
    assert {"model.layers.0.mlp.down_proj.qweight", "visual.blocks.0.attn.qkv.weight", "lm_head.weight"} <= names
    check_answer(kit, built(kit))


@pytest.mark.parametrize(("method", "keep"), [("hawk", 6), ("fastv", 12)])
def test_methods_read_the_dequantised_weights(ordered: Kit, method: str, keep: int) -> None:
    """One goes by the decoder's first layer, one prunes between its segments: as with the weights in float32."""
    found = []
    for checkpoint in (ordered.path, ordered.path.parent / "oracle"):
        vlm = load(built(ordered, checkpoint, method=method))
        result = vlm.generate(picture(4), QUESTION, keep=keep, max_new_tokens=TOKENS)
        found.append((result.token_ids, [np.asarray(kept).tolist() for kept in result.kept_indices]))
    assert found[0] == found[1]


# -- forms ----------------------------------------------------------------------------------------------------------


def kernels(out: Path, folder: Path) -> collections.Counter[str]:
    """Operators of the decoder as ONNX Runtime runs it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(out / "onnx"))
    ort.InferenceSession((out / "onnx/decoder.onnx").read_bytes(), options, **OrtBackend()._configure(options))
    return collections.Counter(
        node.op_type for node in onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node
    )


@pytest.mark.parametrize("name", ["awq", pytest.param("gptq-int8-act-order", marks=pytest.mark.slow)])
def test_onnxruntime_fuses_every_matrix(tmp_path: Path, name: str) -> None:
    """7 matrices in each of 3 layers; lm_head is in floating point.  q, k, v and gate, up share an order or not."""
    kit = quantized_kit(tmp_path, replace(CASES["llava"], tied=True), RECIPES[name])
    found = kernels(built(kit), tmp_path)
    assert found["MatMulNBits"] == 21
    assert found["DequantizeLinear"] == 0


def test_chunks_make_no_difference(ordered: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    out = built(ordered)
    monkeypatch.setattr(carried, "CHUNK", 100)
    again = out.with_name("out-chunks")
    trtprune.build(ordered.path, again, method="none")
    name = "onnx/weights/decoder.stored.safetensors"
    assert (again / name).read_bytes() == (out / name).read_bytes()


def test_config_and_report(awq: Kit, tmp_path: Path) -> None:
    said: list[str] = []
    made = trtprune.build(
        awq.path, tmp_path / "out", method="none", weight_dtype="int8", report=lambda part, text: said.append(text)
    )
    assert "quantised checkpoint: AWQ, 4 bits, groups of 32; 21 matrices" in said
    assert any(text.startswith("quantised 1 to int8; kept 21 in int4 as the checkpoint has them") for text in said)
    assert made.built_with["quantization"] == "AWQ, 4 bits, groups of 32"
    assert made.weight_dtype == "int8"
    weights = {name.split("/")[-1] for name in made.files if name.startswith("onnx/weights/")}
    assert weights == {"decoder.int8.safetensors", "model.safetensors"} or weights == {
        "decoder.int8.safetensors",
        "rest.safetensors",
    }
    with pytest.raises(CheckpointError, match=r"built from a quantised checkpoint \(AWQ, 4 bits"):
        trtprune.build(made.root, tmp_path / "again", method="none")


def test_weight_dtype_leaves_the_checkpoints_integers(awq: Kit) -> None:
    """lm_head becomes int8; all else is as without."""
    out = built(awq, weight_dtype="int8")
    both = [
        safetensors.numpy.load_file(o / "onnx/weights" / f"decoder.{kind}.safetensors")
        for o, kind in ((built(awq), "stored"), (out, "int8"))
    ]
    assert {*both[1]} - {*both[0]} == {"language_model.lm_head.weight", "language_model.lm_head.weight_scale"}
    for name, array in both[0].items():
        np.testing.assert_array_equal(both[1][name], array)


def test_other_compute_forms(awq: Kit) -> None:
    """float16, whose weights are rounded once, and OpenVINO."""
    expected = load(built(awq)).generate(picture(3), QUESTION, max_new_tokens=4).token_ids
    assert load(built(awq, dtype="float16")).generate(picture(3), QUESTION, max_new_tokens=4).token_ids == expected
    vlm = trtprune.load(built(awq, provider="openvino"), threads=1, provider_options={"activations": "float32"})
    assert vlm.generate(picture(3), QUESTION, max_new_tokens=4).token_ids == expected


@pytest.mark.parametrize(
    ("recipe", "kept", "why"),
    [
        (Recipe("gptq", symmetric=True), 21, ""),
        (AWQ, 0, "dequantised 21 to float16: TensorRT has no zero points"),
        pytest.param(Recipe("int", bits=8, group=-1, symmetric=True), 21, "", marks=pytest.mark.slow),
        pytest.param(
            Recipe("gptq", bits=8, symmetric=True),
            0,
            "dequantised 21 to float16: TensorRT has no 8-bit weights in groups",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_tensorrt_rtx(tmp_path: Path, recipe: Recipe, kept: int, why: str) -> None:
    rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    kit = quantized_kit(tmp_path, CASES["llava"], recipe)
    said: list[str] = []
    trtprune.build(
        kit.path,
        tmp_path / "out",
        method="none",
        backend="tensorrt-rtx",
        export_only=True,
        report=lambda part, text: said.append(text),
    )
    network = rtx.Network((tmp_path / "out/onnx/decoder.onnx").read_bytes(), tmp_path / "out/onnx", {"capacity": 64})
    assert network.kinds().count(rtx.trt.LayerType.DEQUANTIZE) == kept
    assert why in said or not why
    assert network.build() > 0


def test_dequantised_in_the_compute_dtype(tmp_path: Path) -> None:
    """Products are exact, and rounded once."""
    kit = Kit.make(tmp_path / "plain", replace(CASES["llava"], layers=1))
    numbers = quantize(kit.path, tmp_path / "quantised", AWQ)
    out = tmp_path / "out"
    trtprune.build(
        tmp_path / "quantised", out, method="none", backend="tensorrt-rtx", dtype="float16", export_only=True
    )
    stored = safetensors.numpy.load_file(out / "onnx/weights/dequantized.safetensors")
    assert {*stored} == {*numbers}
    for name, n in numbers.items():
        assert is_layer(name)
        np.testing.assert_array_equal(stored[name], n.weight(np.float16))


# -- refusals -------------------------------------------------------------------------------------------------------


def test_refused_settings(tmp_path: Path, awq: Kit) -> None:
    with pytest.raises(BuildError, match=r"the checkpoint is quantised \(AWQ"):
        trtprune.build(awq.path, tmp_path / "out", method="none", dtype="bfloat16", provider="cuda")
    kit = quantized_kit(tmp_path, replace(CASES["llava"], layers=1, tied=True), AWQ)
    with pytest.raises(
        BuildError, match="weight_dtype='int8': the checkpoint has every matrix of the decoder quantised"
    ):
        trtprune.build(kit.path, tmp_path / "out", method="none", weight_dtype="int8")
    path = kit.path / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    name = next(name for name in arrays if name.endswith("down_proj.scales"))
    arrays[name][0, 0] = np.inf
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor '.*down_proj\.scales' has NaN or infinite"):
        trtprune.build(kit.path, tmp_path / "out", method="none")
    assert not (tmp_path / "out").exists()


def test_zero_biases_are_left_out(tmp_path: Path) -> None:
    kit = quantized_kit(tmp_path, replace(CASES["llava"], layers=1, text={}), RECIPES["gptq"])
    path = kit.path / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    name = next(name for name in arrays if name.endswith("down_proj.qweight")).replace("qweight", "bias")
    arrays[name] = np.zeros(64, np.float16)
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    check_answer(kit, built(kit))
    arrays[name][3] = 1
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"down_proj\.bias' is not part of this architecture"):
        built(kit, dtype="float16")
