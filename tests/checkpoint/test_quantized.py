"""Quantised checkpoints: the numbers in each layout, and files that contradict themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.quantized_checkpoints import Arrays, Recipe, config, rounded, tensors
from trtprune.checkpoint import open_checkpoint
from trtprune.checkpoint.checkpoint import Checkpoint
from trtprune.checkpoint.quantized import Collected, collect, read_scheme, stored
from trtprune.checkpoint.safetensors import TensorInfo
from trtprune.cli import main
from trtprune.errors import CheckpointError

DTYPES = {np.int8: "I8", np.int32: "I32", np.int64: "I64", np.float16: "F16", np.float32: "F32", np.float64: "F64"}
RECIPES = {
    "awq": Recipe(),
    "gptq": Recipe("gptq", act_order=True),
    "pack": Recipe("pack"),
    "int": Recipe("int", bits=8),
}


def dtype_of(array: np.ndarray) -> str:
    return "BF16" if array.dtype == ml_dtypes.bfloat16 else DTYPES[array.dtype.type]


def collected(arrays: Arrays, settings_: dict[str, Any] | None) -> tuple[Collected, Callable[[TensorInfo], np.ndarray]]:
    """A module ``m`` as if it came from a file."""
    infos = {name: TensorInfo(name, "f.safetensors", dtype_of(a), a.shape, 0, a.nbytes) for name, a in arrays.items()}
    scheme = read_scheme({} if settings_ is None else {"quantization_config": settings_})
    read = lambda info: np.ascontiguousarray(arrays[info.name])  # noqa: E731
    return collect(scheme, infos, read), read


def of(recipe: Recipe, rows: int = 16, width: int = 64) -> Arrays:
    """The tensors of one random module ``m``."""
    rng = np.random.default_rng(recipe.seed)
    numbers = rounded(rng.normal(size=(rows, width)).astype(np.float32), recipe, rng)
    return {f"m.{end}": np.ascontiguousarray(a) for end, a in tensors(numbers, recipe).items()}


@st.composite
def cases(draw: st.DrawFn) -> tuple[Recipe, int, int]:
    method = draw(st.sampled_from(["awq", "gptq", "gptq_v2", "pack", "int"]))
    bits = 4 if method == "awq" else draw(st.sampled_from([4, 8]))
    group = draw(st.sampled_from([8, 16, 24, 32, 128, -1]))
    width = draw(st.sampled_from([32, 96, 160])) if group == -1 else group * draw(st.integers(1, 4))
    width = width if method == "int" else -(-width // 8) * 8
    rows = 8 * draw(st.integers(1, 5)) if method in ("awq", "gptq", "gptq_v2") else draw(st.integers(2, 37))
    recipe = Recipe(
        method,
        bits,
        group,
        symmetric=draw(st.booleans()),
        act_order=method != "awq" and draw(st.booleans()),
        scale=draw(st.sampled_from(["float16", "bfloat16", "float32"])),
        seed=draw(st.integers(0, 1000)),
    )
    return recipe, rows, width


@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_numbers(case: tuple[Recipe, int, int]) -> None:
    """Integers of any slice, zero points, scales, groups, and the weights of the formula, exactly."""
    recipe, rows, width = case
    rng = np.random.default_rng(recipe.seed)
    numbers = rounded(rng.normal(size=(rows, width)).astype(np.float32), recipe, rng)
    arrays = {f"m.{end}": np.ascontiguousarray(a) for end, a in tensors(numbers, recipe).items()}
    result, read = collected(arrays, config(recipe))
    matrix = result.matrices["m.weight"]
    assert matrix.shape == result.tensors["m.weight"].shape == (rows, width)
    assert [*result.tensors] == ["m.weight"]
    for start in range(0, width, 32):
        some = slice(start, min(start + 32, width))
        found = matrix.integers(read, some, slice(0, rows))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, numbers.integers[some])
    zeros = matrix.zeros(read)
    middle = np.full_like(numbers.zeros, 1 << (recipe.bits - 1))
    np.testing.assert_array_equal(middle if zeros is None else zeros, numbers.zeros)
    np.testing.assert_array_equal(matrix.scales(read), numbers.scales)
    index = matrix.group_index(read)
    np.testing.assert_array_equal(np.arange(width) // matrix.group if index is None else index, numbers.index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "PIECE", 32 * width)
        np.testing.assert_array_equal(np.concatenate([*matrix.dequantized(read)]), numbers.weight())


def test_first_format_of_gptq_borrows() -> None:
    """Zero points of 0 are subtracted with a borrow from the next place: 0x50 - 0x11 is 0x3f."""
    recipe = Recipe("gptq", group=-1)
    arrays = of(recipe, rows=8, width=16)
    arrays["m.qzeros"] = np.array([[0x50 - 0x11111111]], np.int64).astype(np.uint32).view(np.int32)
    result, read = collected(arrays, config(recipe))
    assert result.matrices["m.weight"].zeros(read).tolist() == [[0, 5, 0, 0, 0, 0, 0, 0]]


def test_one_scale_for_all() -> None:
    recipe = replace(RECIPES["int"], group=-1, symmetric=True)
    arrays = {**of(recipe), "m.weight_scale": np.array([0.5], np.float32)}
    values = config(recipe)
    values["config_groups"]["group_0"]["weights"] |= {"strategy": "tensor"}
    result, read = collected(arrays, values)
    found = np.concatenate([*result.matrices["m.weight"].dequantized(read)])
    np.testing.assert_array_equal(found, arrays["m.weight"] * np.float32(0.5))
    assert "whole matrices" in result.scheme.label


def test_what_stays() -> None:
    """Weights in floating point beside quantised ones, and zero biases that a model may lack."""
    more = {
        "norm.weight": np.ones(3, np.float32),
        "m.bias": np.zeros(16, np.float16),
        "n.bias": np.zeros(2, np.float16),
    }
    result, _ = collected({**of(RECIPES["gptq"]), **more}, config(RECIPES["gptq"]))
    assert {*result.tensors} == {*more, "m.weight"}
    assert result.zero_biases == {"m.bias"}
    more["m.bias"][3] = 1
    assert collected({**of(RECIPES["gptq"]), **more}, config(RECIPES["gptq"]))[0].zero_biases == frozenset()
    left = {"m.input_scale": np.ones(1, np.float32)}
    assert {*collected({**of(RECIPES["int"]), **left}, config(RECIPES["int"]))[0].tensors} == {"m.weight"}


Change = Callable[[Arrays], Any]


def drop(name: str) -> Change:
    return lambda arrays: arrays.pop(f"m.{name}")


def cut(name: str) -> Change:
    return lambda arrays: arrays.update({f"m.{name}": arrays[f"m.{name}"][:-1]})


def add(name: str, array: np.ndarray) -> Change:
    return lambda arrays: arrays.update({name: array})


def cast(name: str, dtype: Any) -> Change:
    return lambda arrays: arrays.update({f"m.{name}": arrays[f"m.{name}"].astype(dtype)})


BAD_TENSORS: list[tuple[str, Change, str]] = [
    ("awq", drop("scales"), r"'m\.scales' is missing, 'm\.qweight' is there"),
    ("awq", drop("qzeros"), r"'m\.qzeros' is missing"),
    ("awq", drop("qweight"), r"'m\.qweight' is missing"),
    ("awq", cut("scales"), r"'m\.scales' has shape \[1, 16\], expected \[2, 16\]"),
    ("awq", cut("qzeros"), r"'m\.qzeros' has shape"),
    ("awq", cut("qweight"), r"'m\.qweight' has 63 inputs, and groups of 32 do not divide them"),
    ("awq", cast("qweight", np.int64), r"'m\.qweight' is I64"),
    ("awq", cast("scales", np.float64), r"'m\.scales' has dtype F64, expected F16 or BF16 or F32"),
    ("awq", add("m.weight", np.ones((16, 64), np.float32)), r"'m' has 'm\.weight' beside quantised weights"),
    ("awq", add("n.weight_packed", np.ones((16, 8), np.int32)), r"'n\.weight_packed' is part of .* says AWQ, 4 bits"),
    ("awq", add("n.weight_scale_inv", np.ones((1, 1), np.float32)), r"'n\.weight_scale_inv' is part of a quantised"),
    ("gptq", drop("qzeros"), r"'m\.qzeros' is missing"),
    ("gptq", cut("g_idx"), r"'m\.g_idx' has shape \[63\], expected \[64\]"),
    ("gptq", cut("qweight"), r"'m\.qweight' has 56 inputs, and groups of 32 do not divide them"),
    ("pack", drop("weight_scale"), r"'m\.weight_scale' is missing"),
    ("pack", drop("weight_shape"), r"'m\.weight_shape' is missing"),
    ("pack", drop("weight_zero_point"), r"'m\.weight_zero_point' is missing"),
    ("pack", add("m.weight_shape", np.array([16, 99])), r"'m\.weight_shape' says 16 × 99, and 'm\.weight_packed' has"),
    ("pack", add("m.weight_shape", np.array([-1, 1 << 60])), r"'m\.weight_shape' says"),
    ("pack", cut("weight_zero_point"), r"'m\.weight_zero_point' has shape \[1, 2\], expected \[2, 2\]"),
    ("int", drop("weight"), r"'m\.weight' is missing"),
    ("int", drop("weight_scale"), r"'m\.weight_scale' is missing"),
    ("int", cast("weight", np.float16), r"'m\.weight' has dtype F16, expected I8"),
    ("int", cast("weight_zero_point", np.int32), r"'m\.weight_zero_point' has dtype I32"),
]


@pytest.mark.parametrize(("kind", "change", "message"), BAD_TENSORS)
def test_bad_tensors(kind: str, change: Change, message: str) -> None:
    arrays = of(RECIPES[kind])
    change(arrays)
    with pytest.raises(CheckpointError, match=message) as caught:
        collected(arrays, config(RECIPES[kind]))
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_bad_numbers() -> None:
    arrays = of(RECIPES["gptq"])
    for value in (2, -1):
        arrays["m.g_idx"][7] = value
        result, read = collected(arrays, config(RECIPES["gptq"]))
        with pytest.raises(CheckpointError, match=r"'m\.g_idx' has a group of .*, there are groups 0 to 1"):
            result.matrices["m.weight"].group_index(read)
    recipe = replace(RECIPES["pack"], act_order=True)
    arrays = of(recipe)
    arrays["m.weight_g_idx"][:] = 0
    result, read = collected(arrays, config(recipe))
    with pytest.raises(CheckpointError, match=r"'m\.weight_g_idx' has groups of other sizes than 32"):
        result.matrices["m.weight"].group_index(read)
    recipe = Recipe("int", bits=4)
    for name in ("weight", "weight_zero_point"):
        arrays = of(recipe)
        arrays[f"m.{name}"][1, 0] = 8
        result, read = collected(arrays, config(recipe))
        with pytest.raises(CheckpointError, match=rf"'m\.{name}' has numbers outside of -8 to 7, those of 4 bits"):
            [*result.matrices["m.weight"].dequantized(read)]


def changed(name: str, **changes: Any) -> dict[str, Any]:
    return {**config(RECIPES[name]), **changes}


def weights(name: str, **changes: Any) -> dict[str, Any]:
    values = config(RECIPES[name])
    values["config_groups"]["group_0"]["weights"] |= changes
    return values


def two_groups() -> dict[str, Any]:
    values = config(RECIPES["pack"])
    other = json.loads(json.dumps(values["config_groups"]["group_0"]))
    other["weights"]["num_bits"] = 8
    values["config_groups"]["group_1"] = other
    return values


BAD_CONFIGS: list[tuple[Any, str]] = [
    ([1], "of this kind are not supported"),
    ({"bits": 4}, "of an unnamed kind"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes int8"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes NF4"),
    ({"quant_method": "hqq"}, "HQQ"),
    ({"quant_method": "torchao"}, "torchao"),
    ({"quant_method": "fp8"}, "FP8"),
    ({"quant_method": "auto-round", "bits": 4}, "AutoRound"),
    ({"quant_method": "x" * 100_000}, r"not supported \(x{40}\)"),
    (changed("awq", version="gemv"), r"version is 'gemv', which trtprune does not read \(AWQ\)"),
    (changed("awq", bits=8), "bits is 8, which trtprune does not read"),
    (changed("awq", bits=True), "bits is True, expected a number of bits"),
    (changed("awq", group_size=0), "group_size is 0, expected -1 or a number from 1"),
    (changed("awq", group_size=10**30), "group_size is 10+, expected"),
    (changed("awq", group_size=1.5), "group_size is 1.5, expected"),
    (changed("gptq", checkpoint_format="marlin"), "checkpoint_format is 'marlin', which trtprune does not read"),
    (changed("gptq", is_marlin_format=True), "is_marlin_format is True"),
    (changed("gptq", bits=3), "bits is 3, which trtprune does not read"),
    (changed("gptq", dynamic={"+:.*down.*": {"bits": 8}}), "down.*bits is 8, which trtprune does not read"),
    (changed("gptq", dynamic=[1]), r"dynamic is \[1\], expected an object"),
    (changed("gptq", desc_act="yes"), "desc_act is 'yes', expected true or false"),
    (changed("pack", format="float-quantized"), r"float-quantized.*compressed-tensors, FP8 weights"),
    (changed("pack", format="nvfp4-pack-quantized"), r"nvfp4-pack-quantized.*NVFP4 weights"),
    (changed("pack", format="marlin-24"), r"marlin-24.*Marlin 2:4 weights"),
    (changed("pack", format=None), "format is None, which trtprune does not read"),
    (changed("pack", quantization_status="frozen"), "quantization_status is 'frozen'"),
    (changed("pack", transform_config={"config_groups": {"R1": {}}}), "transform_config is .*R1"),
    (changed("pack", sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config.format is 'sparse-24-bitmask'"),
    (changed("pack", config_groups={}), "config_groups has no weights"),
    (changed("pack", config_groups={"W4A16": ["Linear"]}), r"config_groups.W4A16 is \['Linear'\], expected an object"),
    (weights("pack", type="float"), r"weights.type is 'float', which trtprune does not read"),
    (weights("pack", num_bits=6), "num_bits is 6"),
    (weights("pack", strategy="block"), "strategy is 'block'"),
    (weights("pack", group_size=None), "group_size is None"),
    (two_groups(), r"config_groups is \['group_0', 'group_1'\].*one scheme|config_groups is \['group_0', 'group_1'\]"),
]


@pytest.mark.parametrize(("values", "message"), BAD_CONFIGS)
def test_bad_configs(values: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_scheme({"quantization_config": values})
    assert "quantization_config" in str(caught.value)
    assert "--weight-dtype int4" in str(caught.value) or "expected" in str(caught.value) or caught.value.hint


def test_places_of_the_config() -> None:
    """At the top, in the language model's section, or under compressed-tensors' older name."""
    values = config(RECIPES["awq"])
    label = "AWQ, 4 bits, groups of 32"
    assert read_scheme({"text_config": {"quantization_config": values}}).label == label
    assert read_scheme({"quantization_config": values, "text_config": {"quantization_config": values}}).label == label
    assert read_scheme({"compression_config": config(RECIPES["pack"])}).label.startswith("compressed-tensors pack")
    assert read_scheme({"quantization_config": None}) is None
    other = {"quantization_config": values, "text_config": {"quantization_config": changed("awq", group_size=64)}}
    with pytest.raises(CheckpointError, match=r"quantization_config and text_config\.quantization_config differ"):
        read_scheme(other)
    awq = {"bits": None, "w_bit": 4, "q_group_size": 64, "quant_method": "awq", "version": "GEMM"}
    assert (
        read_scheme({"quantization_config": {k: v for k, v in awq.items() if v}}).label == "AWQ, 4 bits, groups of 64"
    )


def test_config_and_tensors_disagree() -> None:
    plain = {"m.weight": np.ones((16, 64), np.float32)}
    with pytest.raises(CheckpointError, match=r"config\.json says AWQ.*, and no tensor is stored so"):
        collected(plain, config(RECIPES["awq"]))
    with pytest.raises(
        CheckpointError, match=r"'m\.qweight' is part of a quantised weight, and config.json has no quant"
    ):
        collected(of(RECIPES["awq"]), None)


def written(folder: Path, arrays: Arrays, recipe: Recipe) -> Checkpoint:
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config(recipe)}))
    return open_checkpoint(folder)


def test_a_checkpoint_reads_the_weights(tmp_path: Path) -> None:
    """For everything that looks at a tensor; the digest is that of the files."""
    recipe = RECIPES["gptq"]
    rng = np.random.default_rng(0)
    numbers = rounded(rng.normal(size=(16, 64)).astype(np.float32), recipe, rng)
    arrays = {f"m.{end}": np.ascontiguousarray(a) for end, a in tensors(numbers, recipe).items()}
    checkpoint = written(tmp_path, arrays, recipe)
    np.testing.assert_array_equal(checkpoint.read("m.weight"), numbers.weight())
    before = checkpoint.digest()
    arrays["m.scales"] = 2 * arrays["m.scales"]
    again = written(tmp_path, arrays, recipe)
    assert again.digest() != before
    np.testing.assert_array_equal(again.read("m.weight"), 2 * numbers.weight())


def test_command_says_one_line(tmp_path: Path) -> None:
    values = {"architectures": ["LlavaForConditionalGeneration"], "quantization_config": {"quant_method": "hqq"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    done = CliRunner().invoke(main, ["build", "-m", str(tmp_path), "-o", str(tmp_path / "out")])
    assert done.exit_code == 1
    error, hint = done.stderr.strip().splitlines()[-2:]
    assert "quantised checkpoints of this kind are not supported (HQQ)" in error
    assert "AWQ, GPTQ, compressed-tensors" in hint
