"""TensorRT engines in C++: answers as in Python, on a stand-in of TensorRT and CUDA that both run on the host."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trtprune
from tests.kit import cpp_build, tiny, trt_kit
from tests.kit.cpp_answers import Images, compare
from tests.kit.runtime_kit import Kit, picture
from trtprune.engine_dir import digest_file, open_engine_dir

TOKENS = 16
SIZES = [(90, 70), (56, 56), (31, 200)]
CASES = {
    "clip-llama": tiny.Tiny(seed=91),
    "dinov2-qwen2": tiny.Tiny(seed=92, tower="dinov2", decoder="qwen2", kv_heads=1, tied=True),
}
LONG = "Describe what is on the table, left of the lamp, and say which of the two is nearer to the window."


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder = tmp_path_factory.mktemp("images")
    return Images(folder, {str(i): picture(i, size) for i, size in enumerate(SIZES)})


@pytest.fixture(scope="module", params=CASES)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("trt") / request.param, CASES[request.param])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory of engines."""
    kit = Kit.make(tmp_path_factory.mktemp("trt") / "one", tiny.Tiny(seed=93))
    return trt_kit.make_dir(kit, "one", method="divprune", keep=6)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], dict[str, int]]:
    """The stand-in in place of both libraries; the function reads what it counted."""
    standin = str(cpp_build.target("trtprune_standin").with_name("libtrtprune_standin.so"))
    monkeypatch.setenv("TRTPRUNE_TENSORRT", standin)
    monkeypatch.setenv("TRTPRUNE_CUDART", standin)
    path = tmp_path / "report.json"
    monkeypatch.setenv("STANDIN_REPORT", str(path))
    return lambda: json.loads(path.read_text())


def question(*names: str, prompt: str = "What is on the table?", **options: Any) -> dict[str, Any]:
    return {"kind": "generate", "images": names, "prompt": prompt, "options": {"max_new_tokens": TOKENS, **options}}


def calls() -> list[dict[str, Any]]:
    rows = [
        {"images": ["0"], "prompt": "Which?"},
        {"images": ["1", "2"], "prompt": LONG, "max_new_tokens": 5},
        {"images": ["2"], "prompt": "And this?", "seed": 5, "keep": 2},
    ]
    turns = [
        {"prompt": prompt, "options": {"max_new_tokens": 9}, "repick": False} for prompt in ("What?", "And?", LONG)
    ]
    return [
        question("0"),
        question("0", "1", keep=3),
        question("2", temperature=1.2, seed=7, keep_ratio=0.4),
        {"kind": "batch", "requests": rows, "options": {"max_new_tokens": TOKENS, "temperature": 0.8, "seed": 3}},
        {"kind": "chat", "images": ["0"], "turns": turns},
        question("1"),
    ]


@pytest.mark.parametrize("method", ["divprune", "none", "visionzip"])
def test_one_decoder(kit: Kit, images: Images, report: Callable[[], dict[str, int]], method: str) -> None:
    """Ids, kept indices and reasons; one recording for each cache, and nothing left on the device."""
    keep = {} if method == "none" else {"keep": 6}
    out = trt_kit.make_dir(kit, method, method=method, max_batch_size=3, max_images=2, **keep)
    vlm, _ = trt_kit.load(out)
    asked = calls() if keep else [call for call in calls() if "keep" not in json.dumps(call)]
    compare(cpp_build.driver("vlm"), vlm, asked, images, threads=0)
    counts = report()
    assert counts["recordings"] >= 1
    assert counts["launches"] > TOKENS
    assert (counts["blocks"], counts["pinned"]) == (0, 0)


INSIDE: dict[str, dict[str, Any]] = {
    "sparsevlm": {"keep": 30, "options": {"schedule": "auto"}},
    "fastv": {"keep": 30},
}


@pytest.mark.parametrize("method", INSIDE)
def test_a_decoder_in_segments(
    images: Images, report: Callable[[], dict[str, int]], tmp_path: Path, method: str
) -> None:
    kit = Kit.make(tmp_path / "model", tiny.Tiny(seed=94, layers=6, image_size=112))
    out = trt_kit.make_dir(kit, method, method=method, max_batch_size=3, max_images=2, **INSIDE[method])
    vlm, _ = trt_kit.load(out)
    compare(cpp_build.driver("vlm"), vlm, [question("0"), question("0", "1"), question("2", seed=3)], images, threads=0)
    assert report()["blocks"] == 0


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("qwen2.5-vl", "divprune"),
        ("qwen3-vl", "divprune"),
        pytest.param("qwen2.5-vl", "fastv", marks=pytest.mark.slow),
        pytest.param("qwen3-vl", "fastv", marks=pytest.mark.slow),
    ],
)
def test_packed_tower(
    images: Images, report: Callable[[], dict[str, int]], tmp_path: Path, family: str, method: str
) -> None:
    """The index arrays of an image of any size, and an image beyond what the engines were built for; rows that carry
    levels, in the recorded decode step, too."""
    kit = Kit.make(tmp_path / "model", tiny.Tiny(family=family, seed=95, layers=4))
    bounds = {"max_image_pixels": 28 * 28 * 60, "max_input_len": 200, "max_images": 2}
    out = trt_kit.make_dir(kit, method, method=method, keep=60 if method == "fastv" else 3, **bounds)
    vlm, _ = trt_kit.load(out)
    asked = [question("0"), question("0", "1"), question("2", keep_ratio=0.5, temperature=0.9, seed=3)]
    compare(cpp_build.driver("vlm"), vlm, asked, images, threads=0)
    assert report()["blocks"] == 0


@pytest.mark.parametrize("method", ["divprune", pytest.param("sparsevlm", marks=pytest.mark.slow)])
def test_several_spans(images: Images, report: Callable[[], dict[str, int]], tmp_path: Path, method: str) -> None:
    """Visual tokens of an image on both sides of its own text: pieces are taken and joined on the device."""
    t = tiny.Tiny(family="smolvlm", tower="smolvlm", feature_layer=4, max_positions=2048, seed=96, layers=5)
    kit = Kit.make(tmp_path / "model", t)
    out = trt_kit.make_dir(kit, method, method=method, keep=12, max_input_len=900, max_batch_size=2, max_images=2)
    vlm, _ = trt_kit.load(out)
    rows = [{"images": ["2"], "prompt": "Which?"}, {"images": ["1", "0"], "prompt": LONG, "keep": 15}]
    asked = [
        question("0", keep=9),
        question("0", "1", prompt=LONG),
        {"kind": "batch", "requests": rows, "options": {"max_new_tokens": TOKENS}},
    ]
    first, *_ = compare(cpp_build.driver("vlm"), vlm, asked, images, threads=0)
    assert first["token_ids"], first
    assert report()["blocks"] == 0


def test_without_a_graph(one: Path, images: Images, report: Callable[[], dict[str, int]]) -> None:
    vlm, _ = trt_kit.load(one)
    options = {"cuda_graph": "off"}
    compare(cpp_build.driver("vlm"), vlm, [question("0")], images, threads=0, provider_options=options)
    assert report()["recordings"] == 0


def test_the_same_directory_in_onnxruntime(one: Path, images: Images) -> None:
    """The graphs that the engines were made of."""
    vlm = trtprune.load(one, provider="cpu")
    compare(cpp_build.driver("vlm"), vlm, [question("0"), question("1", keep=2)], images, provider="cpu")


def refusal(out: Path, **load: Any) -> str:
    (answer,) = cpp_build.driver("vlm")([{"directory": str(out), "load": {"threads": 0, **load}, "calls": []}])
    assert answer["code"] == 4, answer
    return f"{answer['error']} ({answer['hint']})".replace(str(out), "OUT")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        (
            "STANDIN_VERSION",
            "10.16.1.11",
            "OUT: the engines were built with tensorrt 10.15.1.29; 10.16.1.11 is installed",
        ),
        ("STANDIN_VERSION", "11.4.0.106", "is TensorRT 11.4.0.106; this program was compiled for TensorRT 10"),
        ("STANDIN_CAPABILITY", "8.9", "OUT: the engines are for sm90; this GPU (Stand-in) is sm89"),
        ("STANDIN_MEMORY", "1000000", "OUT: needs 0.27 GB of GPU memory"),
        (
            "STANDIN_DEVICES",
            "0",
            "there is no GPU that CUDA can use (cudaErrorNoDevice: no CUDA-capable device is detected)",
        ),
        ("STANDIN_CUDA", "11080", "is CUDA 11.8, which is too old"),
        ("TRTPRUNE_TENSORRT", "/nowhere.so", "TensorRT does not load"),
        ("TRTPRUNE_CUDART", "/nowhere.so", "the CUDA runtime does not load"),
    ],
)
def test_machines_that_cannot_run_it(
    one: Path, report: object, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert words in refusal(one)


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ({"threads": 2}, "threads=2: OUT holds tensorrt engines, which run on the GPU"),
        (
            {"provider_options": {"activations": "int8"}},
            "--provider-option activations: tensorrt engines have no such option",
        ),
        ({"provider_options": {"cuda_graph": "yes"}}, "--provider-option cuda_graph=yes: unknown"),
        ({"provider_options": {"device_id": "7"}}, "--provider-option device_id=7: there are 1 GPUs (0 to 0)"),
        ({"provider_options": {"device_id": "-1"}}, "--provider-option device_id=-1: must be a number"),
    ],
)
def test_settings_that_are_none(one: Path, report: object, load: dict[str, Any], words: str) -> None:
    assert words in refusal(one, **load)


def test_a_step_that_cannot_be_recorded(
    one: Path, images: Images, report: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_NO_GRAPHS", "1")
    call = {**question("0"), "images": images.files(["0"])}
    ((answer,),) = cpp_build.driver("vlm")([{"directory": str(one), "load": {"threads": 0}, "calls": [call]}])
    assert "the decode step cannot be recorded as a CUDA graph" in answer["error"]
    assert answer["hint"] == "--provider-option cuda_graph=off"


def test_a_damaged_engine(one: Path, report: object, tmp_path: Path) -> None:
    made = open_engine_dir(one)
    name = made.components[0].engine
    assert name is not None
    path, config = one / name, one / "config.json"
    content, text = path.read_bytes(), config.read_text()
    try:
        path.write_bytes(content[: len(content) // 2])
        config.write_text(dataclasses.replace(made, files={**made.files, name: digest_file(path)}).to_json())
        assert "tensorrt cannot load it: IRuntime::deserializeCudaEngine" in refusal(one)
    finally:
        path.write_bytes(content)
        config.write_text(text)


def test_the_real_library_without_a_gpu(one: Path, report: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's lean runtime loads and tells its version; engines of another version are refused before it is used."""
    dependencies = cpp_build.ROOT / "build" / "dependencies"
    command = [sys.executable, str(cpp_build.ROOT / "plugins" / "fetch_dependencies.py"), str(dependencies)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    library = dict(line.split("=", 1) for line in printed.splitlines())["TRTPRUNE_TENSORRT_LIBRARY"]
    monkeypatch.setenv("TRTPRUNE_TENSORRT", library)
    assert "the engines were built with tensorrt 10.15.1.29; 10.16.1.11 is installed" in refusal(one)
