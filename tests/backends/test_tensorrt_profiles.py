"""What engines must serve, and for which GPUs: pure decisions, against the rules written out again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtprune.backends.tensorrt.gpus import Gpu
from trtprune.backends.tensorrt.profiles import Limits, check_limits, component_profiles, default_capacity
from trtprune.compiler.engine_options import EngineOptions, check_options, parse_pool_limit, resolve_targets
from trtprune.engine_dir import Part, TensorSpec
from trtprune.errors import BackendError, BuildError

CACHE = ("batch", 8, "capacity", 64)
INPUTS = {
    "vision": [TensorSpec("pixel_values", "float16", ("batch", 3, 336, 336))],
    "embed": [TensorSpec("input_ids", "int64", ("batch", "tokens"))],
    "pruner": [
        TensorSpec("image_features", "float16", ("batch", "visual_tokens", 4096)),
        TensorSpec("text_embeds", "float16", ("batch", "text_tokens", 4096)),
        TensorSpec("seed", "int64", (1,)),
        TensorSpec("keep", "int64", (1,)),
    ],
    "decoder": [
        TensorSpec("inputs_embeds", "float16", ("batch", "sequence", 4096)),
        TensorSpec("write_index", "int64", ("batch",)),
        TensorSpec("logits_index", "int64", ("batch", "logits_rows")),
        TensorSpec("past_key_values.0.key", "float16", CACHE),
    ],
}


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    tokens = draw(st.integers(1, 3000))
    low = draw(st.integers(1, tokens))
    high = draw(st.integers(low, tokens))
    return Limits(
        visual_tokens=tokens,
        keep=draw(st.integers(low, high)),
        keep_range=(low, high),
        capacity=draw(st.integers(high + 1, 100_000)),
        max_batch_size=draw(st.integers(1, 64)),
        max_input_len=draw(st.integers(1, 4096)),
        max_images=draw(st.integers(1, 9)),
    )


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("component", INPUTS)
@given(case=limits())
def test_every_profile_is_in_order(backend: str, component: str, case: Limits) -> None:
    profiles = component_profiles(Part(component), INPUTS[component], case, backend)
    assert len(profiles) == (2 if (component, backend) == ("decoder", "tensorrt") else 1)
    for profile in profiles:
        assert set(profile) == {spec.name for spec in INPUTS[component]} - {"seed"}  # whose shape is fixed
        for name, (low, typical, high) in profile.items():
            assert len(low) == len(typical) == len(high)
            assert all(1 <= a <= b <= c for a, b, c in zip(low, typical, high, strict=True)), name


@given(case=limits(), images=st.integers(1, 9), budget=st.integers(1, 3000), text=st.integers(1, 4096))
def test_every_prompt_within_the_limits_fits(case: Limits, images: int, budget: int, text: int) -> None:
    images, text = min(images, case.max_images), min(text, case.max_input_len)
    budget = max(case.keep_range[0], min(budget, case.keep_range[1]))
    length = text + images * budget
    decoder = component_profiles(Part("decoder"), INPUTS["decoder"], case, "tensorrt")[0]
    longest = decoder["inputs_embeds"][2][1]
    assert longest == min(case.capacity, case.max_input_len + case.max_images * case.keep_range[1])
    assert length <= longest or length > case.capacity
    ids = component_profiles(Part("embed"), INPUTS["embed"], case, "tensorrt")[0]["input_ids"][2][1]
    assert text + images <= ids or text + images > case.capacity
    pruner = component_profiles(Part("pruner"), INPUTS["pruner"], case, "tensorrt")[0]
    assert pruner["keep"] == ((case.keep_range[0],), (case.keep,), (case.keep_range[1],))
    assert [shape[1] for shape in pruner["image_features"]] == [case.visual_tokens] * 3


def test_llava_by_hand() -> None:
    capacity = default_capacity(4096, 512, 1, 576)
    assert capacity == 1408  # 512 + 576 + 256 = 1344, in steps of 128
    case = Limits(576, 64, (1, 576), capacity, max_batch_size=4)
    prompt, step = component_profiles(Part("decoder"), INPUTS["decoder"], case, "tensorrt")
    assert prompt["inputs_embeds"] == ((1, 1, 4096), (4, 128, 4096), (4, 1088, 4096))
    assert step["inputs_embeds"] == ((1, 1, 4096), (4, 1, 4096), (4, 1, 4096))
    for profile in (prompt, step):
        assert profile["past_key_values.0.key"] == ((1, 8, 1408, 64), (4, 8, 1408, 64), (4, 8, 1408, 64))
        assert profile["logits_index"] == ((1, 1), (4, 1), (4, 1))
    vision = component_profiles(Part("vision"), INPUTS["vision"], case, "tensorrt")[0]
    assert vision["pixel_values"][2] == (4, 3, 336, 336)
    assert default_capacity(1000, 512, 1, 576) == 1000
    assert default_capacity(4096, 512, 4, 64) == 1024


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"max_batch_size": 0}, BuildError, "--max-batch-size 0"),
        ({"max_input_len": -1}, BuildError, "--max-input-len -1"),
        ({"max_images": 0}, BuildError, "--max-images 0"),
        ({"max_input_len": 1409}, BuildError, "--max-input-len 1409"),
    ],
)
def test_limits_no_engine_serves(changes: dict, error: type[Exception], named: str) -> None:
    case = {"visual_tokens": 576, "keep": 64, "keep_range": (1, 576), "capacity": 1408} | changes
    with pytest.raises(error, match=named):
        check_limits(Limits(**case))


def test_any_budget_is_served() -> None:
    """Beyond what TensorRT's TopK returns, too: graphs put longer lists in order in pieces."""
    check_limits(Limits(5000, 64, (1, 5000), 8192))


def test_an_unknown_dimension_is_named() -> None:
    inputs = [TensorSpec("x", "float16", ("frames", 3))]
    with pytest.raises(BuildError, match="input x: no range is known for its dimension 'frames'"):
        component_profiles(Part("vision"), inputs, Limits(4, 2, (1, 4), 64), "tensorrt")


SERVED = (75, 80, 86, 89, 120, 121)
HOPPER, ADA = Gpu("NVIDIA H200", 90, 1 << 37, "580"), Gpu("NVIDIA L4", 89, 1 << 34, "580")


@pytest.mark.parametrize(
    ("wanted", "gpus", "expected"),
    [
        (("sm89,sm120",), [], ("sm89", "sm120")),
        (("120", "8.9", "SM_75"), [], ("sm75", "sm89", "sm120")),
        (("sm89", "sm89"), [HOPPER], ("sm89",)),
        ((), [ADA], ("current",)),
        (("current",), [HOPPER], ("current",)),  # asked for by name: let the library say what it makes of it
    ],
)
def test_targets_of_rtx(wanted: tuple[str, ...], gpus: list[Gpu], expected: tuple[str, ...]) -> None:
    assert resolve_targets(wanted, "tensorrt-rtx", SERVED, gpus, "TensorRT-RTX 1.7") == expected


@pytest.mark.parametrize(
    ("wanted", "gpus", "named"),
    [
        (("sm90",), [], "--compute-capability sm90: TensorRT-RTX 1.7 does not serve it"),
        ((), [HOPPER], r"NVIDIA H200 \(sm90\): TensorRT-RTX 1.7 does not serve it"),
        ((), [], "--compute-capability is needed"),
        (("current",), [], "--compute-capability current: no NVIDIA GPU found"),
        (("current,sm89",), [ADA], "current stands alone"),
        (("ada",), [], "--compute-capability ada: not a compute capability"),
    ],
)
def test_targets_rtx_refuses(wanted: tuple[str, ...], gpus: list[Gpu], named: str) -> None:
    with pytest.raises((BuildError, BackendError), match=named) as caught:
        resolve_targets(wanted, "tensorrt-rtx", SERVED, gpus, "TensorRT-RTX 1.7")
    if "sm90" in named:
        assert "--backend tensorrt " in str(caught.value.hint)
        assert "--provider cuda" in str(caught.value.hint)


def test_targets_of_full_tensorrt() -> None:
    for wanted in ((), ("current",)):
        assert resolve_targets(wanted, "tensorrt", (), [HOPPER], "TensorRT 11") == ("current",)
    with pytest.raises(BuildError, match="--compute-capability sm89: TensorRT 11 builds for the GPU that is here only"):
        resolve_targets(("sm89",), "tensorrt", (), [HOPPER], "TensorRT 11")
    with pytest.raises(BackendError, match="--backend tensorrt: no NVIDIA GPU found"):
        resolve_targets((), "tensorrt", (), [], "TensorRT 11")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workspace:4G", ("workspace", 4 << 30)),
        ("WORKSPACE:250m", ("workspace", 250 << 20)),
        ("tactic_dram:1.5K", ("tactic_dram", 1536)),
        ("workspace:1e9", ("workspace", 10**9)),
        ("workspace:7", ("workspace", 7)),
    ],
)
def test_pool_limits(text: str, expected: tuple[str, int]) -> None:
    assert parse_pool_limit(text) == expected


@pytest.mark.parametrize("text", ["workspace", "4G", "workspace:", "workspace:-1", "workspace:4T", "workspace:4GB"])
def test_no_pool_limits(text: str) -> None:
    with pytest.raises(ValueError, match="POOL:BYTES"):
        parse_pool_limit(text)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("option", "full_only"),
    [
        ({"max_batch_size": 2}, False),
        ({"attention": "decomposed"}, False),
        ({"pool_limit": {"workspace": 1}}, False),
        ({"weight_streaming": True}, False),
        ({"save_timing_cache": Path("x")}, True),
        ({"version_compatible": True}, True),
        ({"hardware_compatibility_level": "ampere_plus"}, True),
    ],
)
def test_an_option_the_backend_lacks_is_named(option: dict, full_only: bool, backend: str) -> None:
    options, flag = EngineOptions(**option), "--" + next(iter(option)).replace("_", "-")
    check_options(EngineOptions(), backend, False)
    if backend == "tensorrt" or (backend == "tensorrt-rtx" and not full_only):
        check_options(options, backend, False)
    else:
        with pytest.raises(BuildError, match=f"{flag}: the {backend} backend has no such option"):
            check_options(options, backend, False)
    if backend == "tensorrt":
        if flag == "--attention":
            check_options(options, backend, True)
        else:
            with pytest.raises(BuildError, match=f"{flag}: export writes graphs only"):
                check_options(options, backend, True)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"attention": "flash"}, "--attention flash: unknown"),
        ({"builder_optimization_level": 6}, "--builder-optimization-level 6"),
        ({"hardware_compatibility_level": "all"}, "--hardware-compatibility-level all: unknown"),
        ({"profiling_verbosity": "much"}, "--profiling-verbosity much: unknown"),
        ({"load_timing_cache": Path("/nowhere/cache")}, "--load-timing-cache /nowhere/cache: no such file"),
    ],
)
def test_values_that_are_none(option: dict, named: str) -> None:
    with pytest.raises(BuildError, match=named):
        check_options(EngineOptions(**option), "tensorrt", False)
