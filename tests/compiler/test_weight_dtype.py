"""``--weight-dtype``: the quantiser, the file it writes, and engines that compute with what was written."""

from __future__ import annotations

import collections
import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import safetensors.numpy
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import trtprune
from tests.kit import tiny
from tests.kit.first_layer import first_layer
from tests.kit.runtime_kit import Kit, picture, record
from tests.kit.tiny import Tiny
from trtprune import pruning
from trtprune.backends.onnxruntime import OrtBackend
from trtprune.checkpoint.safetensors import read_header
from trtprune.checkpoint.safetensors_writer import SafetensorsWriter, plan_layout
from trtprune.cli import main
from trtprune.compiler import quantized
from trtprune.compiler.rounding import dequantize, int4_block, pack_int4, quantize, unpack_int4
from trtprune.engine_dir import open_engine_dir
from trtprune.errors import BackendError, BuildError, CheckpointError

TOKENS = 16
CASES = {
    "llama": Tiny(text={"attention_bias": True, "mlp_bias": True}),
    # 96 = 3 · 32, and 97 is odd: blocks of 32, half a byte at the end of a row, int8 where no block fits.
    "qwen2-odd": Tiny(
        seed=1, tower="siglip", decoder="qwen2", hidden=96, vocab=161, text={"intermediate_size": 97}, dtype="bfloat16"
    ),
    "qwen3": Tiny(seed=3, decoder="qwen3", text={"attention_bias": True}),
    "qwen2-tied": Tiny(seed=2, decoder="qwen2", tied=True, shards=True, dtype="float16"),
}
KINDS = ("int8", "int4")


@pytest.fixture(scope="module", params=CASES)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("weights") / request.param, CASES[request.param])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("llama") / "llama", CASES["llama"])


def built(kit: Kit, kind: str | None, **arguments: Any) -> Path:
    """The directory of a build of ``kit``; found again by later tests that ask for the same."""
    out = kit.path.parent / "-".join([kit.path.name, str(kind), *map(str, arguments.values())])
    trtprune.build(kit.path, out, method="none", weight_dtype=kind, **arguments)
    return out


def form(name: str, shape: tuple[int, ...], kind: str) -> tuple[int, int]:
    """Largest integer and block size that a matrix of the decoder should be stored with."""
    block = next((b for b in (64, 32) if shape[1] % b == 0), None)
    if kind == "int8" or block is None or name.startswith("lm_head"):
        return 127, shape[1]
    return 7, block


def is_linear(name: str) -> bool:
    return (name.endswith("_proj.weight") and "language_model" in name) or name == "lm_head.weight"


def rounded(weight: np.ndarray, limit: int, block: int) -> np.ndarray:
    """The oracle: nearest multiples of largest / limit, by blocks of each row."""
    groups = weight.reshape(len(weight), -1, block)
    step = np.abs(groups).max(axis=2, keepdims=True) / np.float32(limit)
    return (np.rint(groups / step) * step).reshape(weight.shape)


def quantised_model(kit: Kit, kind: str) -> Any:
    """The checkpoint in transformers with the oracle's weights."""
    model = tiny.load(kit.path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_linear(name):
                value = rounded(parameter.numpy(), *form(name, tuple(parameter.shape), kind))
                parameter.copy_(torch.from_numpy(value))
    return model


def load(out: Path, activations: str = "float32", **arguments: Any) -> Any:
    return trtprune.load(out, threads=1, provider_options={"activations": activations}, **arguments)


# -- engines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers_with_the_same_weights(kit: Kit, kind: str) -> None:
    vlm = load(built(kit, kind))
    recorder = record(vlm)
    inputs = kit.inputs([picture(3)], "What is on the table?")
    quantised = replace(kit, model=quantised_model(kit, kind))
    expected, logits = quantised.generate(TOKENS, **inputs)
    result = vlm.generate(picture(3), "What is on the table?", max_new_tokens=TOKENS)
    assert result.token_ids == expected
    np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=1e-4)
    _, unquantised = kit.generate(1, **inputs)
    assert np.abs(unquantised[0] - logits[0]).max() > 1e-3  # the weights are not simply the checkpoint's


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bit_activations_stay_close(kit: Kit, kind: str) -> None:
    """The default on a CPU: the n-bit kernels round activations too."""
    logits = {}
    for activations in ("float32", "int8"):
        vlm = load(built(kit, kind), activations)
        recorder = record(vlm)
        vlm.generate(picture(3), "What is on the table?", max_new_tokens=1)
        logits[activations] = recorder.logits[0]
    error = logits["int8"] - logits["float32"]
    assert 0 < np.sqrt((error**2).mean()) < 0.05 * logits["float32"].std()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruner_reads_the_stored_weights(kit: Kit, kind: str) -> None:
    """hawk goes by queries and keys of the decoder's first layer; the oracle's weights give the same choice."""
    out = kit.path.parent / f"{kit.path.name}-{kind}-hawk"
    trtprune.build(kit.path, out, method="hawk", weight_dtype=kind)
    vlm = load(out)
    view = vlm.look(picture(3), "What is on the table?")
    image = np.array(view.features.image)
    text = np.array(view.text_embeds)[view.prompt.span("question")]
    hawk = pruning.get("hawk")
    kept = hawk.reference(image, keep=7, **first_layer(quantised_model(kit, kind), image, text)).tolist()
    assert vlm.select(view, keep=7).tolist() == kept


@pytest.mark.parametrize(("kind", "bits"), [("int8", {8: 22}), ("int4", {4: 21, 8: 1})])
def test_onnxruntime_fuses_every_matrix(llama: Kit, tmp_path: Path, kind: str, bits: dict[int, int]) -> None:
    """Else quantisation would save disk and nothing more: 7 matrices in each of 3 layers, and lm_head."""
    out = built(llama, kind)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it warns that the file is for this machine only
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(out / "onnx"))
    ort.InferenceSession((out / "onnx/decoder.onnx").read_bytes(), options, **OrtBackend()._configure(options))
    nodes = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node
    assert not [node.name for node in nodes if node.op_type == "DequantizeLinear"]
    fused = [node for node in nodes if node.op_type == "MatMulNBits"]
    found = [next(a.i for a in node.attribute if a.name == "bits") for node in fused]
    assert collections.Counter(found) == bits


@pytest.mark.parametrize("kind", KINDS)
def test_other_compute_forms(llama: Kit, kind: str) -> None:
    """float16, and the opset-20 spelling for OpenVINO, whose decoder then needs opset 21."""
    expected = load(built(llama, kind)).generate(picture(3), "Why?", max_new_tokens=2).token_ids
    for arguments in ({"dtype": "float16"}, {"provider": "openvino"}):
        vlm = load(built(llama, kind, **arguments), provider="cpu")
        assert vlm.generate(picture(3), "Why?", max_new_tokens=2).token_ids == expected
    opsets = {
        name: onnx.load(built(llama, kind, provider="openvino") / f"onnx/{name}.onnx", load_external_data=False)
        for name in ("vision", "decoder")
    }
    assert {name: model.opset_import[0].version for name, model in opsets.items()} == {"vision": 20, "decoder": 21}


@pytest.mark.parametrize(("kind", "dtype"), [("int8", "float16"), ("int4", "float16"), ("int4", "bfloat16")])
def test_tensorrt_rtx_builds_it(llama: Kit, kind: str, dtype: str) -> None:
    rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    out = built(llama, kind, backend="tensorrt-rtx", dtype=dtype, export_only=True)
    network = rtx.Network((out / "onnx/decoder.onnx").read_bytes(), out / "onnx", {"capacity": 64})
    network.check(attention=3, cache_updates=6)
    assert network.kinds().count(rtx.trt.LayerType.DEQUANTIZE) == 22
    assert network.build() > 0


def test_tensorrt_rtx_builds_odd_widths(tmp_path: Path) -> None:
    """Blocks of 32, and matrices whose packed rows end in the middle of a byte."""
    rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    kit = Kit.make(tmp_path / "odd", replace(CASES["qwen2-odd"], layers=1, tied=True))
    out = built(kit, "int4", backend="tensorrt-rtx", export_only=True)
    network = rtx.Network((out / "onnx/decoder.onnx").read_bytes(), out / "onnx", {"capacity": 64})
    assert network.kinds().count(rtx.trt.LayerType.DEQUANTIZE) == 7
    assert network.build() > 0


# -- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_safetensors(kit: Kit, kind: str) -> None:
    """Read by the reference package, unpacked by ml_dtypes' int4, it holds the oracle's weights."""
    path = built(kit, kind) / f"onnx/weights/decoder.{kind}.safetensors"
    stored = safetensors.numpy.load_file(path)
    header = read_header(path)
    assert set(header.tensors) == set(stored)
    assert min(info.offset for info in header.tensors.values()) % 8 == 0
    kinds = {"F32": 4, "I8": 1, "U8": 1}
    assert all(info.offset % kinds[info.dtype] == 0 for info in header.tensors.values())
    originals = {name: p.detach().numpy() for name, p in tiny.load(kit.path).named_parameters() if is_linear(name)}
    proto = onnx.load(built(kit, kind) / "onnx/decoder.onnx", load_external_data=False)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    assert len(stored) == 2 * len(originals)
    for name, original in originals.items():
        own = next(key for key in stored if key.endswith(name.removeprefix("model.language_model.")))
        limit, block = form(name, original.shape, kind)
        assert shapes[own] == original.shape[::-1]
        if limit == 7:
            assert stored[own].dtype == np.uint8
            tensor = onnx.TensorProto(dims=shapes[own], data_type=onnx.TensorProto.INT4, raw_data=stored[own].tobytes())
            integers = onnx.numpy_helper.to_array(tensor).astype(np.int8)
        else:
            integers = stored[own]
        scales = stored[own + "_scale"].reshape(-1, original.shape[0])
        np.testing.assert_allclose(dequantize(integers.T, scales.T), rounded(original, limit, block), rtol=1e-6)


def test_files_shrink(kit: Kit) -> None:
    checkpoint = sum(path.stat().st_size for path in kit.path.glob("*.safetensors"))
    sizes = {}
    for kind in KINDS:
        made = open_engine_dir(built(kit, kind), verify="full")
        weights = [made.path(name) for name in made.files if name.startswith("onnx/weights/")]
        assert sorted(weights) == sorted((made.root / "onnx/weights").iterdir())
        assert sum(path.stat().st_size for path in weights) < checkpoint
        sizes[kind] = made.path(f"onnx/weights/decoder.{kind}.safetensors").stat().st_size
        used = set()
        for component in made.components:
            model = onnx.load(made.path(component.onnx), load_external_data=False)
            used |= {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
        assert used == {f"weights/{path.name}" for path in weights}
    assert sizes["int4"] < sizes["int8"]


def test_rest_is_taken_whole_where_most_of_a_file_is_used(tmp_path: Path) -> None:
    """Shards of the vision tower stay as they are; a shard of matrices goes, its norms are copied, bit for bit."""
    kit = Kit.make(tmp_path / "shards", CASES["qwen2-tied"])
    weights = built(kit, "int8") / "onnx/weights"
    linked = [p.name for p in weights.iterdir() if p.name.startswith("model-")]
    assert linked
    assert len(linked) < len(list(kit.path.glob("model-*.safetensors")))
    assert all((weights / name).read_bytes() == (kit.path / name).read_bytes() for name in linked)
    copied = safetensors.numpy.load_file(weights / "rest.safetensors")
    assert copied
    originals: dict[str, np.ndarray] = {}
    for path in kit.path.glob("model-*.safetensors"):
        originals |= safetensors.numpy.load_file(path)
    for name, value in copied.items():
        np.testing.assert_array_equal(value, originals[name])


def test_chunks_make_no_difference(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    out = built(kit, "int4")
    monkeypatch.setattr(quantized, "CHUNK", 250)
    again = out.with_name(out.name + "-chunks")
    trtprune.build(kit.path, again, method="none", weight_dtype="int4")
    for name in ("decoder.int4.safetensors", "rest.safetensors"):
        assert (again / "onnx/weights" / name).read_bytes() == (out / "onnx/weights" / name).read_bytes()


def test_config(llama: Kit) -> None:
    """Recorded, part of the digest; a config.json from before the field existed is read as unquantised."""
    made = {kind: open_engine_dir(built(llama, kind)) for kind in (None, *KINDS)}
    assert [m.weight_dtype for m in made.values()] == [None, "int8", "int4"]
    assert len({m.build_digest for m in made.values()}) == 3
    with pytest.raises(BuildError, match="int8 weights"):
        trtprune.build(llama.path, made["int8"].root, method="none")
    path = made[None].root / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("weight_dtype") is None
    path.write_text(json.dumps(config))
    assert open_engine_dir(path.parent) == made[None]


def test_writer_checks_lengths(tmp_path: Path) -> None:
    layout = plan_layout("x.safetensors", {"a": ("I8", (3,)), "b": ("F32", (2,)), "c": ("F16", (1, 3))}, {"k": "v"})
    assert [name for name, _ in sorted(layout.tensors.items(), key=lambda item: item[1].offset)] == ["b", "c", "a"]
    with SafetensorsWriter(tmp_path, layout) as writer:
        writer.append("a", np.array([1, 2], np.int8))
        writer.append("c", np.array([1, 2, 3], np.float16))
        writer.append("b", np.array([0.5, -1], np.float32))
        writer.append("a", np.array([3], np.int8))
        with pytest.raises(ValueError, match="'a'"):
            writer.append("a", np.array([4], np.int8))
    assert layout.nbytes == (tmp_path / "x.safetensors").stat().st_size
    assert {k: v.tolist() for k, v in safetensors.numpy.load_file(tmp_path / "x.safetensors").items()} == {
        "a": [1, 2, 3],
        "b": [0.5, -1],
        "c": [[1, 2, 3]],
    }
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(ValueError, match="'b': 0 of 8"), SafetensorsWriter(tmp_path, layout):
        pass
    with pytest.raises(ValueError, match="Q3"):
        plan_layout("x.safetensors", {"a": ("Q3", (1,))})


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number(tmp_path: Path, value: float) -> None:
    kit = Kit.make(tmp_path / "bad", replace(CASES["llama"], layers=1))
    weights = safetensors.numpy.load_file(kit.path / "model.safetensors")
    name = next(name for name in weights if name.endswith("o_proj.weight"))
    weights[name][7, 3] = value
    safetensors.numpy.save_file(weights, kit.path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor '.*o_proj\.weight' has NaN"):
        trtprune.build(kit.path, tmp_path / "out", method="none", weight_dtype="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_full_disk_leaves_nothing(llama: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def append(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SafetensorsWriter, "append", append)
    with pytest.raises(BuildError, match="disk is full"):
        trtprune.build(llama.path, tmp_path / "out", method="none", weight_dtype="int8")
    assert list(tmp_path.iterdir()) == []


def test_refused_settings(llama: Kit, tmp_path: Path) -> None:
    def refused(message: str, path: Path = llama.path, **arguments: Any) -> None:
        with pytest.raises(BuildError, match=message):
            trtprune.build(path, tmp_path / "out", method="none", **arguments)

    refused("weight_dtype='int3': unknown", weight_dtype="int3")
    refused("float32 and float16 only", weight_dtype="int8", dtype="bfloat16", provider="cuda")
    kit = Kit.make(tmp_path / "odd", Tiny(hidden=72, layers=1, text={"intermediate_size": 97}))
    refused("no width .* multiple of 32", kit.path, weight_dtype="int4")
    (kit.path / "model.safetensors").rename(kit.path / "decoder.int8.safetensors")
    names = read_header(kit.path / "decoder.int8.safetensors").tensors
    index = {"weight_map": dict.fromkeys(names, "decoder.int8.safetensors")}
    (kit.path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("decoder.int8.safetensors: the build writes a file of this name", kit.path, weight_dtype="int8")
    assert not (tmp_path / "out").exists()
    with pytest.raises(BackendError, match="'activations': 'int4'"):
        OrtBackend(options={"activations": "int4"})


def test_command(llama: Kit, tmp_path: Path) -> None:
    arguments = ["build", "-m", str(llama.path), "-o", str(tmp_path / "out"), "--method", "none", "--weight-dtype"]
    done = CliRunner().invoke(main, [*arguments, "int4", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["weight_dtype"] == "int4"
    assert "quantised 1 to int8 and 21 to int4" in done.stderr
    assert CliRunner().invoke(main, [*arguments, "int2"]).exit_code == 2


# -- the quantiser ------------------------------------------------------------------------------------------------

FORMS = [(8, None), (4, 64), (4, 32)]
SCALES = [np.float32, np.float16, ml_dtypes.bfloat16]


@settings(max_examples=60, deadline=None)
@given(
    weight=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.sampled_from([64, 128])),
        elements=st.one_of(
            st.just(0.0),
            st.floats(-1e5, 1e5, width=32),
            st.floats(-1, 1, width=32),
            st.floats(-(2.0**-100), 2.0**-100, width=32),
        ),
    ),
    form=st.sampled_from(FORMS),
    scale=st.sampled_from(SCALES),
)
def test_error_is_half_a_step(weight: np.ndarray, form: tuple[int, int | None], scale: Any) -> None:
    bits, block = form
    integers, scales = quantize(weight, bits=bits, block=block, scale_dtype=np.dtype(scale))
    assert integers.dtype == np.int8
    assert np.abs(integers).max() <= {8: 127, 4: 7}[bits]
    assert scales.dtype == scale
    assert scales.shape == (len(weight), weight.shape[1] // (block or weight.shape[1]))
    steps = np.repeat(scales.astype(np.float64), block or weight.shape[1], axis=1)
    assert (steps > 0).all()
    error = np.abs(integers * steps - weight)
    assert (error <= steps * (0.5 + 1e-4)).all()
    assert not integers[weight == 0].any()
    reach = np.abs(weight).reshape(*scales.shape, -1).max(axis=2)
    step = scales.astype(np.float64)
    # No wider than need be: a scale is within its own rounding of largest / limit.
    assert ((step <= reach / {8: 127, 4: 7}[bits] * (1 + 2.0**-7) + 2.0**-24) | (reach == 0)).all()
    back = dequantize(integers, scales)
    np.testing.assert_allclose(back, integers * steps, rtol=1e-6)


@pytest.mark.parametrize(("bits", "block"), FORMS)
def test_extremes(bits: int, block: int | None) -> None:
    largest = np.finfo(np.float32).max
    weight = np.zeros((3, 64), np.float32)
    weight[1, :2] = largest, -largest
    weight[2, 5] = np.finfo(np.float32).smallest_subnormal
    integers, scales = quantize(weight, bits=bits, block=block, scale_dtype=np.dtype(np.float32))
    assert not integers[0].any()
    assert (scales[0] == 1).all()
    assert integers[1, :2].tolist() == [127, -127] if bits == 8 else [7, -7]
    assert np.isfinite(scales).all()
    np.testing.assert_array_equal(dequantize(integers, scales)[2], weight[2])
    with pytest.raises(ValueError, match="too large for float16"):
        quantize(weight, bits=bits, block=block, scale_dtype=np.dtype(np.float16))
    for bad in (np.nan, np.inf, -np.inf):
        weight[0, 9] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            quantize(weight, bits=bits, block=block, scale_dtype=np.dtype(np.float32))
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(np.full((1, 64), 1e300), bits=bits, block=block, scale_dtype=np.dtype(np.float32))


@given(hnp.arrays(np.int8, st.integers(1, 20).map(lambda n: 2 * n), elements=st.integers(-8, 7)))
@settings(max_examples=50, deadline=None)
def test_packing_is_onnx_s(integers: np.ndarray) -> None:
    packed = pack_int4(integers)
    tensor = onnx.numpy_helper.from_array(integers.astype(ml_dtypes.int4))
    assert packed.tobytes() == tensor.raw_data
    np.testing.assert_array_equal(unpack_int4(packed), integers)
    assert packed[0] & 0x0F == integers[0] & 0x0F  # the first in the low half


def test_blocks() -> None:
    assert [int4_block(n) for n in (4096, 576, 96, 97, 48, 32)] == [64, 64, 32, None, None, 32]
