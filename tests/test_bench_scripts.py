"""The scripts in benchmarks/: whatever of them runs without a GPU, at sizes that take no time."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from tests.bench import FakeKernels, OrtStep, fake_tensorrt

import _checkpoints  # isort: skip
import _trt  # isort: skip
import bench_cuda_chain  # isort: skip
import bench_plugin_harness  # isort: skip
import bench_rtx_current  # isort: skip
import bench_tensorrt_build  # isort: skip
import bench_topk_gather  # isort: skip
import run_gpu  # isort: skip
from _attention_step import Geometry, errors, examine, expected  # isort: skip
from _kernels import TorchMemory, check_greedy, check_topk, select  # isort: skip

# -- made-up checkpoints


def test_a_checkpoint_is_what_transformers_reads(tmp_path: Path) -> None:
    size = _checkpoints.write_checkpoint(tmp_path, "tiny", seed=3)
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float16, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert 2 * sum(p.numel() for p in model.parameters()) == size == _checkpoints.weight_bytes("tiny")
    head = model.lm_head.weight.detach().float()
    assert abs(float(head.std()) - 2 / math.sqrt(64)) < 0.02
    assert len(torch.unique(head, dim=0)) == len(head)


def test_sizes_of_the_shapes() -> None:
    """7.06 B is what the model card of llava-1.5-7b-hf says; 1,100,048,384 is TinyLlama-1.1B with 32,000 words."""
    assert _checkpoints.weight_bytes("7b") // 2 == 7_063_427_072
    extra_words = 2 * 64 * 2048
    text = _checkpoints.decoder_bytes("1b") // 2 + 32064 * 2048
    assert text - extra_words == 1_100_048_384


def test_a_checkpoint_without_numbers_takes_no_disk(tmp_path: Path) -> None:
    size = _checkpoints.write_checkpoint(tmp_path, "1b")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert size > 2.8e9
    assert sum(file.stat().st_blocks * 512 for file in files) < 1e7
    with safe_open(files[-1], "np") as stream:
        assert not stream.get_slice("language_model.lm_head.weight")[:4].any()


def test_checkpoint_in_writes_once(tmp_path: Path) -> None:
    path = _checkpoints.checkpoint_in(tmp_path, "tiny")
    before = (path / "model-00001-of-00003.safetensors").stat().st_mtime_ns
    assert _checkpoints.checkpoint_in(tmp_path, "tiny") == path
    assert (path / "model-00001-of-00003.safetensors").stat().st_mtime_ns == before


# -- kernels


def test_selection_by_hand() -> None:
    nan, inf = np.nan, np.inf
    scores = np.array([[1, 3, 3, nan, 2], [nan, -inf, nan, 0, -0.0]], np.float32)
    assert select(scores, 2).tolist() == [[1, 2], [3, 4]]
    # NaN is -inf, and index 0 comes before index 1.
    assert select(scores, 3).tolist() == [[1, 2, 4], [0, 3, 4]]


@pytest.mark.parametrize(
    ("fault", "topk", "greedy"),
    [
        ("", False, False), ("ties to the last", True, True), ("NaN first", True, False), ("by score", True, False),
        ("last row missing", True, False), ("picked again", False, True),
    ],
)  # fmt: skip
def test_checks_of_the_kernels(fault: str, topk: bool, greedy: bool) -> None:
    kernels, memory = FakeKernels(fault), TorchMemory("cpu")
    found = list(check_topk(kernels, memory, (2, 33, 7, 9), seed=0)) + list(
        check_topk(kernels, memory, (1, 48, 3, 48), seed=1)
    )
    assert len(found) == 2 * 8 * 9
    assert any(problem for _, problem in found) == topk
    assert any(problem for _, problem in check_greedy(kernels, memory, (2, 20, 6), seed=0)) == greedy


def test_what_is_checked_and_timed() -> None:
    dims = bench_topk_gather.check_dims(quick=False)
    assert {tokens for _, tokens, _, _ in dims} >= {1, 576, 4096, 4097, 32768}
    assert all(1 <= keep <= tokens for _, tokens, _, keep in dims)
    assert any(keep == tokens for _, tokens, _, keep in dims)
    # By hand: 576 float32 scores, 64 rows of 4096 float16 read and written, 64 indices of 8 bytes.
    assert bench_topk_gather.call_bytes(576, 64, 4096, 1) == 2304 + 2 * 64 * 8192 + 512
    assert bench_topk_gather._sets(1_051_392, 576 * 8192, 60 << 20) == 240


# -- attention over a cache


@pytest.mark.parametrize("form", ["op", "op-float32", "primitives", "primitives-float32"])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("float16", 2e-3)])
def test_an_attention_step_in_onnx_runtime(form: str, dtype: str, most: float) -> None:
    geometry = Geometry(64, dtype, heads=8, kv_heads=2, head_dim=16, form=form)
    found = examine(OrtStep(geometry), geometry, prompt=24)
    assert found["prefill"]["relative"] < most
    assert found["decode"]["relative"] < most
    assert found["in_place"]
    assert found["garbage_suffix_same"]
    # A weight of zero times NaN: why caches start zeroed. (An engine may do better.)
    assert not found["nan_suffix_same"]


def test_a_prompt_alone_needs_no_mask() -> None:
    geometry = Geometry(64, "float32", heads=4, kv_heads=2, head_dim=16, form="causal")
    found = examine(OrtStep(geometry), geometry, prompt=24)
    assert list(found) == ["prefill"]
    assert found["prefill"]["relative"] < 1e-6


def test_findings_on_one_line() -> None:
    found = dict.fromkeys(("max", "rmse", "relative"), 0.5)
    row = {"step_us": {"median": 12.34}, "decode": found, "prefill": found, "in_place": True, "nan_suffix_same": False}
    graph = {"answers_same": True, "cache_same": False}
    text = bench_rtx_current.said(row | {"cuda_graph": graph, "prefill_us": {"640": {"median": 99.0}}})
    for words in ("1 tokens 12.3 us", "640 tokens 99.0 us", "in place: yes", "nan suffix same: NO", "graph: OTHER"):
        assert words in text
    assert bench_rtx_current.said({"prefill": found, "not_timed": "why"}).endswith("not timed: why")


def test_an_attention_step_that_is_wrong() -> None:
    geometry = Geometry(32, "float32", heads=2, kv_heads=2, head_dim=8)
    found = examine(OrtStep(geometry, "reads unused slots"), geometry, prompt=8)
    assert not found["garbage_suffix_same"]
    found = examine(OrtStep(geometry, "writes elsewhere"), geometry, prompt=8)
    assert not found["in_place"]


def test_expected_attention_is_torchs() -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 4, 3, 8))
    key, value = (rng.standard_normal((1, 2, 16, 8)) for _ in range(2))
    found = expected(q, key, value, 5)
    mask = torch.arange(16) <= torch.arange(5, 8)[:, None]
    truth = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, key, value)), attn_mask=mask, enable_gqa=True
    )
    assert errors(found, truth.numpy())["max"] < 1e-12
    assert errors(np.full_like(found, np.nan), found) == dict.fromkeys(("max", "rmse", "relative"), math.inf)


def test_an_engine_step_binds_the_cache_in_place() -> None:
    geometry = Geometry(32, "float16", heads=4, kv_heads=2, head_dim=8)
    builder: Any = SimpleNamespace(trt=fake_tensorrt(geometry), log=None, said=["out of memory"])
    step = _trt.EngineStep(builder, b"plan", geometry, device="cpu")
    found = examine(step, geometry, prompt=8)
    assert found["decode"]["relative"] < 2e-3
    assert found["in_place"]
    assert step.layers() == ["fused_attention", "plain"]
    with pytest.raises(RuntimeError, match="out of memory"):
        _trt.EngineStep(builder, b"", geometry, device="cpu")


@pytest.mark.parametrize("geometry", bench_rtx_current.cases("tensorrt-rtx", quick=False), ids=str)
def test_attention_steps_build_for_rtx(geometry: Geometry) -> None:
    """All that the GPU script will try."""
    trt = pytest.importorskip("tensorrt_rtx")
    plan, _ = _trt.Builder(trt, "sm89").build_step(geometry, 512)
    assert plan.nbytes > 100_000


def test_a_refused_build_says_why() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    builder = _trt.Builder(trt, "sm89")
    with pytest.raises(RuntimeError, match="decomposable"):  # there is no fused kernel for float32
        builder.build_step(Geometry(64, "float32", 2, 2, 16), 16)
    with pytest.raises(RuntimeError):
        builder.build(b"nonsense", {})


# -- scripts


def test_chain_beside_transformers(tmp_path: Path) -> None:
    out = tmp_path / "chain.json"
    arguments = ["--shape", "tiny", "--provider", "cpu", "--dtype", "float32", "--rounds", "1", "--steps", "2"]
    bench_cuda_chain.main([*arguments, "--folder", str(tmp_path), "--threads", "1", "--json", str(out)])
    result = json.loads(out.read_text())
    assert [row["keep"] for row in result["logits_against_transformers_float32"]] == [16, 8, 4]
    for row in result["logits_against_transformers_float32"]:
        assert row["relative_error"] < 1e-4
        assert row["same_first_token"]
        assert row["relative_error_of_transformers"] > row["relative_error"]  # it computes in bfloat16
    rows = result["rows"]
    assert list(rows) == ["transformers bfloat16", *(f"trtprune float32 keep {keep}" for keep in (16, 8, 4))]
    # 60 words, 16 visual tokens and 2 of 3 new ones; 2 layers of 2 heads of 16, keys and values, 2 bytes.
    assert rows["transformers bfloat16"]["kv_bytes"] == 78 * 2 * 2 * 2 * 16 * 2
    assert result["placement_of_tiny_shape"]["decoder"]["CPUExecutionProvider"]["TensorScatter"] == 4


def test_chain_with_other_logits_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cuda_chain.Theirs, "logits", lambda self, kept: np.arange(164, dtype=np.float32))
    arguments = ["--shape", "tiny", "--provider", "cpu", "--keep", "4", "--rounds", "1", "--steps", "1"]
    with pytest.raises(SystemExit, match="not those of transformers"):
        bench_cuda_chain.main([*arguments, "--folder", str(tmp_path)])


def test_engine_build_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "build.json"
    bench_tensorrt_build.main(["--shape", "tiny", "--json", str(out)])
    result = json.loads(out.read_text())
    assert set(result["engine_s"]) == set(result["engine_bytes"]) == {"vision", "embed", "pruner", "decoder"}
    assert result["peak_rss_bytes"] > result["peak_anonymous_bytes"] > 50e6
    assert result["peak_over_decoder_weights"] == round(
        result["peak_rss_bytes"] / _checkpoints.decoder_bytes("tiny"), 2
    )
    assert result["total_s"]["median"] < 120


def test_a_failed_build_is_no_result() -> None:
    with pytest.raises(SystemExit, match=r"ended with status 3:\nnot today"):
        bench_tensorrt_build.measure([sys.executable, "-c", "import sys; sys.stderr.write('not today'); sys.exit(3)"])


def test_memory_of_a_process_is_seen() -> None:
    code = "import time; b = bytearray(150_000_000); b[::4096] = b'x' * len(b[::4096]); time.sleep(0.2)"
    row = bench_tensorrt_build.measure([sys.executable, "-c", code])
    assert 150e6 < row["peak_anonymous_bytes"] <= row["peak_rss_bytes"] < 250e6


def program(path: Path, text: str, status: int = 0) -> None:
    path.write_text(f'#!/bin/sh\necho "$LD_LIBRARY_PATH" >&2\n{text}\nexit {status}\n')
    path.chmod(0o755)


def test_plugin_harness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The programs' JSON is taken over; one that fails fails the script and keeps what the other found."""
    with pytest.raises(SystemExit, match="kernel_bench is not in"):
        bench_plugin_harness.main(["--folder", str(tmp_path)])
    program(tmp_path / "kernel_bench", """echo '{"cases": 3, "failed": 0, "times": [{"us": 2.5}]}'""")
    out = tmp_path / "out.json"
    bench_plugin_harness.main(["--folder", str(tmp_path), "--json", str(out)])
    assert "3 cases, 0 failed" in capsys.readouterr().out
    (tmp_path / "libtrtprune_plugins.so").write_bytes(b"")
    (tmp_path / "lean").mkdir()
    program(tmp_path / "plugin_harness", "true", status=1)
    lean = tmp_path / "lean" / "libnvinfer_lean.so.10"
    with pytest.raises(SystemExit, match=f"plugins: {lean.parent}"):
        bench_plugin_harness.main(["--folder", str(tmp_path), "--lean", str(lean), "--json", str(out)])
    result = json.loads(out.read_text())
    assert result["kernels"]["times"] == [{"us": 2.5}]
    assert result["plugins"]["exit_status"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (bench_topk_gather, []), (bench_rtx_current, []), (bench_rtx_current, ["--backend", "tensorrt"]),
        (bench_cuda_chain, ["--shape", "tiny"]),
    ],
    ids=str,
)  # fmt: skip
def test_without_a_gpu_one_line(script: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU and its driver") as caught:
        script.main(arguments)
    assert "\n" not in str(caught.value.code)


# -- all in one command


def part(name: str, code: str, seconds: int = 20, after: str | None = None) -> run_gpu.Part:
    return run_gpu.Part(name, seconds, "", ("-c", code, "{json}"), after)


WRITES = "import sys, json; json.dump({'n': 7}, open(sys.argv[1], 'w')); print('done')"


def test_run_gpu_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        part("crashes", "import os; os.abort()"),
        part("hangs", "import time; print('so far', flush=True); time.sleep(60)", seconds=1),
        part("skipped", WRITES, after="crashes"),
        part("works", WRITES),
        part("follows", "print('second')", after="works"),
        run_gpu.Part("prints", 20, "", ("-c", "print('{\"ok\": true}')", "--json")),
    ]
    monkeypatch.setattr(run_gpu, "PARTS", parts)
    monkeypatch.setattr(run_gpu, "machine", lambda: {"gpus": [{"name": "NVIDIA H200"}], "versions": {}})
    with pytest.raises(SystemExit) as caught:
        run_gpu.main(["--out", str(tmp_path)])
    assert caught.value.code == 1
    result = json.loads((tmp_path / "gpu-nvidia-h200.json").read_text())
    assert {name: row["status"] for name, row in result["parts"].items()} == {
        "crashes": "failed", "hangs": "timeout", "skipped": "skipped", "works": "ok", "follows": "ok", "prints": "ok",
    }  # fmt: skip
    assert result["parts"]["works"]["result"] == {"n": 7}
    assert result["parts"]["prints"]["result"] == {"ok": True}
    assert result["parts"]["hangs"]["last_line"] == "so far"
    assert "=== crashes" in (tmp_path / "gpu-nvidia-h200.log").read_text()
    # A later run adds to the file; what it does not try again stays.
    run_gpu.main(["--out", str(tmp_path), "--only", "follows,prints"])
    assert json.loads((tmp_path / "gpu-nvidia-h200.json").read_text())["parts"]["works"]["result"] == {"n": 7}
    run_gpu.main(["--out", str(tmp_path), "--only", "works", "--budget", "5"])
    assert json.loads((tmp_path / "gpu-nvidia-h200.json").read_text())["parts"]["works"]["status"] == "ok"


def test_run_gpu_lists_and_rehearses(capsys: pytest.CaptureFixture[str]) -> None:
    run_gpu.main(["--list"])
    listed = capsys.readouterr().out
    assert all(p.name in listed for p in run_gpu.PARTS)
    run_gpu.main(["--dry-run"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python ")]
    assert len(lines) == len(run_gpu.PARTS)
    assert not any("{" in line for line in lines)
    with pytest.raises(SystemExit, match="no part is called nonsense"):
        run_gpu.main(["--only", "nonsense"])


@pytest.mark.parametrize("one", run_gpu.PARTS, ids=lambda p: p.name)
def test_parts_are_calls_their_scripts_take(one: run_gpu.Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument is known to the script, and every part it waits for exists and comes before."""
    names = [p.name for p in run_gpu.PARTS]
    assert one.after is None or names.index(one.after) < names.index(one.name)
    script = Path(one.command[0])
    if script.suffix != ".py":
        return
    import argparse

    class Parsed(Exception):
        pass

    def parse(self: argparse.ArgumentParser, *given: Any, **kwargs: Any) -> Any:
        known, unknown = self.parse_known_args(*given, **kwargs)
        assert not unknown
        raise Parsed(known)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(Parsed):
        sys.modules[script.stem].main(one.arguments(Path("x.json"), Path("f"))[1:])


def test_preflight() -> None:
    have = dict.fromkeys(("onnxruntime-gpu", "tensorrt-rtx-cu13", "cuda-bindings", "tensorrt-cu13", "torch"), "1")
    gpus = [{"name": "NVIDIA H200"}]
    assert run_gpu.preflight({"gpus": gpus, "versions": have | {"transformers": "5"}}) == []
    said = run_gpu.preflight({"gpus": gpus, "versions": have | {"onnxruntime": "1"}})
    assert said == [
        "onnxruntime and onnxruntime-gpu are both installed: pip uninstall -y onnxruntime",
        "transformers is not installed, which *chain-* need",
    ]
    assert "no NVIDIA GPU" in run_gpu.preflight({"versions": {}})[0]
