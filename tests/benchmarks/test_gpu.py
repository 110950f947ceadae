"""What the scripts in benchmarks/ do on a GPU, on stand-ins: the comparisons are real, the times mean nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.kit.bench import FakeKernels, OrtStep, fake_gpu, fake_tensorrt

import _trt  # isort: skip
import bench_rtx_current  # isort: skip
import bench_topk_gather  # isort: skip
from _attention_step import Geometry, errors, examine, expected  # isort: skip
from _gpu_bench import measure_bandwidth  # isort: skip
from _kernels import FOLDERS, Kernels, LIBRARY, TorchMemory, check_greedy, check_topk, find, select  # isort: skip

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


@pytest.mark.parametrize(("fault", "status"), [("", None), ("by score", 1)])
def test_the_kernels_script_on_a_pretended_gpu(
    fault: str, status: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it but the GPU: times mean nothing, what is written does."""
    monkeypatch.setattr(bench_topk_gather, "Kernels", lambda path: FakeKernels(fault))
    monkeypatch.setattr(bench_topk_gather, "build", lambda: None)
    monkeypatch.setattr(bench_topk_gather, "TOKENS", [5, 33])
    monkeypatch.setattr(bench_topk_gather, "TIMED", [(40, 5, 16, 1), (50, 5, 16, 2)])
    monkeypatch.setattr(bench_topk_gather, "GREEDY", [(12, 4)])
    monkeypatch.setattr(bench_topk_gather, "GREEDY_CHECKED", [(1, 1), (33, 7)])
    monkeypatch.setattr(bench_topk_gather, "measure_bandwidth", lambda: measure_bandwidth(1e-3, repeats=2))
    out = tmp_path / "out.json"
    with fake_gpu(monkeypatch):
        if status is None:
            bench_topk_gather.main(["--json", str(out)])
        else:
            with pytest.raises(SystemExit):
                bench_topk_gather.main(["--json", str(out)])
    result = json.loads(out.read_text())
    assert result["copy_bandwidth_bytes_per_s"] > 1e6
    assert (result["checks"]["failed"] > 0) == bool(fault)
    assert [row["case"] for row in result["rows"]] == [
        "topk_gather 40->5 x 16 float16, batch 1", "topk_gather 50->5 x 16 float16, batch 2", "maxmin_select 12->4",
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["times_faster_than_torch"] > 0
        assert row["ours_us"]["n"] == row["torch_us"]["n"] == 30


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


@pytest.mark.parametrize("form", ["op", "causal"])
def test_one_case_on_a_pretended_gpu(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Geometry(192, "float16", heads=4, kv_heads=2, head_dim=8, form=form)
    monkeypatch.setattr(bench_rtx_current, "library", lambda *_: fake_tensorrt(geometry))

    class Builder:
        def __init__(self, trt: Any) -> None:
            self.trt, self.log, self.said = trt, None, []

        def build_step(self, geometry: Geometry, longest: int) -> tuple[Any, float]:
            return SimpleNamespace(nbytes=10), 1.5

    monkeypatch.setattr(bench_rtx_current, "Builder", Builder)
    with fake_gpu(monkeypatch):
        row = bench_rtx_current.one_case("tensorrt", geometry, quick=True)
    assert (row["builds"], row["engine_bytes"], row["build_s"]) == (True, 10, 1.5)
    assert row["prefill"]["relative"] < 2e-3
    assert row["prefill_us"]["192"]["n"] == 5
    assert ("cuda_graph" in row) == (form == "op")
    if form == "op":
        assert row["cuda_graph"] == {"steps": 8, "answers_same": True, "cache_same": True}
        assert row["in_place"]
        assert "CUDA graph: the same" in bench_rtx_current.said(row)


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


def test_the_librarys_interface() -> None:
    """Refusals need no GPU; skipped where plugins/ was not compiled."""
    path = find(LIBRARY, [*FOLDERS, FOLDERS[0].parent / "tests-plugins"])
    if path is None:
        pytest.skip("plugins/ is not compiled")
    kernels = Kernels(path)
    assert (kernels.workspace(1, 576, 64), kernels.launches(4096), kernels.launches(4097)) == (0, 1, 2)
    with pytest.raises(RuntimeError, match="not launched: invalid argument"):
        kernels.topk_gather(16, "float32", 16, "float32", (1, 8, 1, 9), 16, 16)  # keep beyond tokens
    with pytest.raises(RuntimeError, match="not launched"):
        kernels.maxmin_select(16, 16, (1, 9000, 2), "maxmin", 16, 16)
