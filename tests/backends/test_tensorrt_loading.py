"""Engines that cannot run here, and why: each is one clear line, before anything is computed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import trtprune
from tests.kit import tiny, trt_kit
from tests.kit.engine_dirs import make as make_engine_dir
from tests.kit.fake_cuda import FakeDriver
from tests.kit.runtime_kit import Kit, picture
from trtprune.backends.tensorrt import backend as backend_module
from trtprune.backends.tensorrt import execution, plugins
from trtprune.backends.tensorrt.cuda import CudaDriver, Device
from trtprune.backends.tensorrt.loading import (
    RESERVE_BYTES,
    Needs,
    check_device,
    check_memory,
    fitting,
)
from trtprune.cli import main
from trtprune.engine_dir import EngineDir, EngineInfo, open_engine_dir
from trtprune.errors import BackendError, EngineDirError, TrtpruneError


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("loading") / "clip", tiny.Tiny(seed=3))


@pytest.fixture(scope="module")
def out(kit: Kit) -> Path:
    return trt_kit.make_dir(kit, "plain", keep=6)


@pytest.fixture(scope="module")
def rtx(kit: Kit) -> Path:
    return trt_kit.make_dir(kit, "plain", backend="tensorrt-rtx", keep=6)


def changed(out: Path, target: Path, **info: Any) -> Path:
    """A copy whose config says other things of the engines."""
    shutil.copytree(out, target, dirs_exist_ok=True)
    data = json.loads((target / "config.json").read_text())
    data["engines"].update(info)
    (target / "config.json").write_text(json.dumps(data))
    return target


def refused(out: Path, driver: FakeDriver | None = None, **settings: Any) -> str:
    with pytest.raises(TrtpruneError) as caught:
        trt_kit.load(out, driver, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- versions, GPUs


def test_another_version(out: Path, rtx: Path, tmp_path: Path) -> None:
    text = refused(changed(out, tmp_path / "a", version="10.14.1.48"))
    assert "built with tensorrt 10.14.1.48; 10.15.1.29 is installed" in text
    assert "tensorrt-cu13==10.14.1.48" in text
    assert "--version-compatible" in text
    text = refused(changed(rtx, tmp_path / "b", version="1.6.0.1"))
    assert "tensorrt-rtx-cu13==1.6.0.1" in text
    assert "--version-compatible" not in text  # TensorRT for RTX has no such thing


def test_version_compatible_engines(out: Path, tmp_path: Path) -> None:
    older = changed(out, tmp_path / "a", version="10.14.1.48", version_compatible=True)
    vlm, fake = trt_kit.load(older)
    assert vlm.generate(picture(1), "Why?", max_new_tokens=2).token_ids
    assert fake.runtimes[0].engine_host_code_allowed
    assert not trt_kit.load(out)[1].runtimes[0].engine_host_code_allowed
    assert "is installed" in refused(changed(out, tmp_path / "b", version="11.4.0.1", version_compatible=True))


@pytest.mark.parametrize(
    ("targets", "compatibility", "capability", "runs"),
    [
        (("sm90",), "none", (9, 0), True),
        (("sm89", "sm120"), "none", (12, 0), True),
        (("sm89", "sm120"), "none", (9, 0), False),
        (("current",), "none", (9, 0), True),
        (("sm80",), "ampere_plus", (9, 0), True),
        (("sm80",), "ampere_plus", (7, 5), False),
        (("sm80",), "same_compute_capability", (8, 6), False),
        (("sm12",), "none", (12, 0), False),
    ],
)
def test_gpus(tmp_path: Path, targets: Any, compatibility: str, capability: Any, runs: bool) -> None:
    made = make_engine_dir(tmp_path)
    info = EngineInfo("10.15", targets, 1, 512, 1, "fused", hardware_compatibility=compatibility)
    made = dataclasses.replace(made, backend="tensorrt")
    if runs:
        check_device(made, info, Device("GPU", capability))
        return
    with pytest.raises(BackendError, match=r"this GPU \(GPU\) is sm") as caught:
        check_device(made, info, Device("GPU", capability))
    assert "--hardware-compatibility-level" in str(caught.value)


def test_a_gpu_the_library_does_not_know(rtx: Path) -> None:
    text = refused(rtx, FakeDriver(capability=(9, 0)))
    assert "is sm90, which tensorrt-rtx does not support (sm86, sm89, sm120)" in text
    assert "--backend tensorrt" in text
    assert "--compute-capability sm86" in refused(rtx, FakeDriver(capability=(8, 6)))


def test_plugins_that_are_not_there(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plugin library's own checks say reaches the user of an engine directory."""
    monkeypatch.setattr(plugins, "find_library", lambda *_: None)
    text = refused(changed(out, tmp_path / "a", plugins={"TopKGather": "1"}))
    assert "the engines need the plugin TopKGather 1" in text


# -- damage


def test_a_truncated_engine(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "cut")
    path = tmp_path / "cut/engines/decoder.engine"
    path.write_bytes(path.read_bytes()[:100])
    assert "digest differs" in refused(tmp_path / "cut")
    # Unchecked, it is TensorRT that refuses; its reason is told.
    text = refused(tmp_path / "cut", verify="none")
    assert "decoder.engine: tensorrt cannot load it: IRuntime::deserializeCudaEngine: Error Code 1" in text
    path.write_bytes(b"")
    assert "decoder.engine: cannot be read" in refused(tmp_path / "cut", verify="none")


def test_a_truncated_rtx_engine(rtx: Path, tmp_path: Path) -> None:
    shutil.copytree(rtx, tmp_path / "cut")
    (tmp_path / "cut/engines/vision.engine").write_bytes(b"nothing")
    text = refused(tmp_path / "cut", verify="none")
    assert "cannot load it: version mismatch, malformed engine" in text


def test_an_engine_in_another_ones_place(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "swap")
    shutil.copy(out / "engines/embed.engine", tmp_path / "swap/engines/pruner.engine")
    with pytest.raises(EngineDirError, match=r"pruner\.engine: the engine's tensors"):
        trt_kit.load(tmp_path / "swap", verify="none")


def test_graphs_without_engines(kit: Kit) -> None:
    out = kit.path.parent / "exported"
    trtprune.build(str(kit.path), out, backend="tensorrt", dtype="float32", keep=6, export_only=True)
    text = refused(out)
    assert "exported for tensorrt, without engines" in text
    assert "--provider cpu" in text
    assert trtprune.load(out, provider="cpu", threads=1).generate(picture(1), "Why?", max_new_tokens=2).token_ids


def test_a_cache_that_is_not_written_in_place(kit: Kit) -> None:
    out = trt_kit.make_dir(kit, "scatter", keep=6, lowering={"cache": "primitives"})
    assert "--lowering cache=primitives" in refused(out)


# -- machines


def test_no_library(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError) as caught:
        trtprune.load(out)
    assert "pip install 'trtprune[tensorrt]'" in str(caught.value)


def test_no_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match="pip install cuda-bindings"):
        CudaDriver()


def test_options(out: Path) -> None:
    for options, text in (
        ({"precision": "bf16"}, "precision: tensorrt engines have no such option (they have: device_id, cuda_graph)"),
        ({"runtime_cache": "x"}, "runtime_cache: tensorrt engines have no such option"),
        ({"cuda_graph": "yes"}, "cuda_graph=yes: unknown (on or off)"),
        ({"device_id": "-1"}, "device_id=-1: must be a number"),
    ):
        assert text in refused(out, provider_options=options)
    assert "threads=2" in refused(out, threads=2)


def test_kernels_of_rtx_are_kept_in_a_file(rtx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read when the first context is made, written when the process ends; what TensorRT refuses is written anew."""
    path = tmp_path / "kernels"
    at_exit: list[Any] = []
    monkeypatch.setattr(execution.atexit, "register", lambda work, *arguments: at_exit.append((work, arguments)))
    for before, reused in ((None, False), (b"kernels", True), (b"of another GPU", False)):
        if before is not None:
            path.write_bytes(before)
        _, fake = trt_kit.load(rtx, provider_options={"runtime_cache": str(path)})
        assert fake.engines[0].contexts[0].config.cache.reused == reused
        work, arguments = at_exit.pop()
        work(*arguments)
        assert not at_exit
        assert path.read_bytes() == b"kernels"
    assert list(tmp_path.iterdir()) == [path]
    assert "--provider-option runtime_cache" in refused(rtx, provider_options={"runtime_cache": str(tmp_path)})


def test_the_same_directory_in_onnxruntime(out: Path) -> None:
    """Only when it is asked for; and then TensorRT is not touched."""
    vlm = trtprune.load(out, provider="cpu", threads=1)
    assert vlm.provider == "cpu"
    ours, _ = trt_kit.load(out)
    assert ours.provider == "tensorrt"
    answers = [v.generate(picture(1), "What is it?", max_new_tokens=9).token_ids for v in (vlm, ours)]
    assert answers[0] == answers[1]
    with pytest.raises(BackendError, match="provider='tpu'"):
        trtprune.load(out, provider="tpu")


def test_the_command_line(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    picture(1).save(path)
    run = ["run", str(out), "--image", str(path), "--prompt", "Why?", "--max-new-tokens", "3", "--json"]
    with trt_kit.machine() as fake:
        done = CliRunner().invoke(main, [*run, "--provider-option", "cuda_graph=off"], catch_exceptions=False)
        assert done.exit_code == 0
        assert len(json.loads(done.stdout)["token_ids"]) == 3
        assert not fake.driver.recordings
    # Engines for one row at a time answer a file of requests one by one; more is for the user to notice.
    line = json.dumps({"image": "a.png", "prompt": "Why?"})
    (tmp_path / "many.jsonl").write_text(f"{line}\n{line}\n")
    many = ["run", str(out), "--requests", str(tmp_path / "many.jsonl"), "--max-new-tokens", "2"]
    with trt_kit.machine():
        done = CliRunner().invoke(main, many, catch_exceptions=False)
        assert (done.exit_code, done.stdout.count("\n")) == (0, 2)
        done = CliRunner().invoke(main, [*many, "--batch-size", "2"])
        assert done.exit_code == 1
        assert "--max-batch-size" in done.stderr
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    done = CliRunner().invoke(main, run)
    assert done.exit_code == 1
    assert "is not installed" in done.stderr


# -- memory


def llava(tmp_path: Path, **changes: Any) -> EngineDir:
    """Of the size of LLaVA-1.5-7B in float16: 13.5 GB of weights, 0.5 MiB of cache a token."""
    made = make_engine_dir(tmp_path)
    kv = dataclasses.replace(made.kv, capacity=4096, bytes_per_token=512 << 10)
    info = EngineInfo("10.15", ("sm90",), 1, 512, 1, "fused")
    return dataclasses.replace(made, backend="tensorrt", dtype="float16", kv=kv, engines=info, **changes)


def needs(config: EngineDir, engines: float = 13.5e9) -> Needs:
    return Needs(int(engines), 100 << 20, config.kv.capacity * config.kv.bytes_per_token)


def test_too_little_memory(tmp_path: Path) -> None:
    config = llava(tmp_path)
    need = needs(config)
    assert need.total == 13_500_000_000 + (100 << 20) + (2 << 30) + RESERVE_BYTES
    check_memory(config, need, need.total)
    with pytest.raises(BackendError) as caught:
        check_memory(config, need, int(15.2e9))
    text = str(caught.value)
    assert "needs 16.02 GB of GPU memory (engines 13.50 GB, KV cache 2.15 GB a row" in text
    assert "15.20 GB are free" in text
    # 13.5 GB of engines leave room for 2,500 tokens.
    assert "--max-seq-len 2432" in text
    with pytest.raises(BackendError) as caught:
        check_memory(config, need, int(8e9))
    assert "build with --weight-dtype int4" in str(caught.value)
    with pytest.raises(BackendError, match="a GPU with more memory"):
        check_memory(config, need, int(2e9))


@given(free=st.integers(0, int(40e9)), engines=st.integers(0, int(30e9)), images=st.integers(1, 4))
def test_what_is_advised_fits(tmp_path_factory: pytest.TempPathFactory, free: int, engines: int, images: int) -> None:
    """A build with the advised capacity fits, and holds the longest prompt it is built for."""
    global LLAVA
    if LLAVA is None:
        LLAVA = llava(tmp_path_factory.mktemp("llava"))
    assert LLAVA.engines is not None
    config = dataclasses.replace(LLAVA, engines=dataclasses.replace(LLAVA.engines, max_images=images))
    need = needs(config, engines)
    for way in fitting(config, need, free):
        words = way.split()
        if "--max-seq-len" in words:
            capacity = int(words[words.index("--max-seq-len") + 1])
            assert dataclasses.replace(need, cache_row=capacity * config.kv.bytes_per_token).total <= free
            keep = config.pruning.keep_range[1]
            if "--keep-range" in words:
                low, keep = (int(part) for part in words[words.index("--keep-range") + 1].split(":"))
                assert low <= keep
            assert capacity >= 512 + images * keep + 1


LLAVA: EngineDir | None = None


def test_memory_is_checked_before_loading_and_with_the_workspace(out: Path) -> None:
    config = open_engine_dir(out)
    engines = sum((out / f"engines/{name}.engine").stat().st_size for name in config.chain)
    enough = FakeDriver(total=RESERVE_BYTES + engines + (1 << 20))
    with trt_kit.machine(driver=enough) as fake:
        trtprune.load(out)
        assert len(fake.engines) == 4
    with trt_kit.machine(driver=FakeDriver(total=RESERVE_BYTES + engines)) as fake:
        with pytest.raises(BackendError, match="of GPU memory"):
            trtprune.load(out)
        assert not fake.engines  # refused before the first was read


def test_streamed_weights_need_not_fit(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = changed(out, tmp_path / "streamed", weight_streaming=True)
    monkeypatch.setattr(backend_module, "_size", lambda config, component: 1 << 40)
    assert "of GPU memory" in refused(out)
    _, fake = trt_kit.load(streamed)
    assert all(engine.weight_streaming_budget_v2 == engine.automatic_budget for engine in fake.engines)


# -- the real libraries, as far as they go here


def test_a_real_engine_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    from trtprune.backends.tensorrt.flavour import get_log
    from trtprune.backends.tensorrt.loading import load_engine

    (tmp_path / "x.engine").write_bytes(b"no engine" * 1000)
    with pytest.raises(BackendError, match=r"x\.engine: tensorrt_rtx cannot load it: malformed engine"):
        load_engine(trt, trt.Runtime(get_log(trt).ilogger), tmp_path / "x.engine")


def test_the_calls_exist_in_the_real_library() -> None:
    """The fake has no method that TensorRT has not, nor one with other arguments."""
    trt = pytest.importorskip("tensorrt_rtx")
    from tests.kit import fake_tensorrt as fake

    pairs = [
        (fake.RtxRuntime, trt.Runtime),
        (fake.Engine, trt.ICudaEngine),
        (fake.Context, trt.IExecutionContext),
        (fake.RuntimeConfig, trt.IRuntimeConfig),
        (fake.RuntimeCache, trt.IRuntimeCache),
    ]
    for ours, theirs in pairs:
        for name in vars(ours):
            if not name.startswith("_") and name not in ("fail", "error", "automatic_budget", "reused", "dtypes"):
                assert hasattr(theirs, name), f"{theirs.__name__}.{name}"
    for name in ("TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy", "CudaGraphStrategy"):
        for member in getattr(fake.FakeTensorrt, name).__members__:
            assert member in getattr(trt, name).__members__, f"{name}.{member}"


def test_cuda_takes_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call passes cuda-bindings' own checks of types; here it can only end in "no driver"."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match=r"no GPU that CUDA can use \(cudaError") as caught:
        CudaDriver()
    assert "--provider cpu" in str(caught.value)
    driver = CudaDriver.__new__(CudaDriver)
    driver._cuda, driver._id = runtime, 0
    array = np.zeros(4, np.float32)
    with pytest.raises(BackendError, match="CUDA, choosing the GPU: cudaErrorInsufficientDriver"):
        driver.enter()
    monkeypatch.setattr(driver, "enter", lambda: None)
    driver._stream = runtime.cudaStream_t(0)
    for call in (
        driver.memory_info,
        lambda: driver.allocate(256),
        lambda: driver.allocate_host(256),
        lambda: driver.to_device(256, array),
        lambda: driver.to_host(array, 256),
        lambda: driver.on_device(256, 512, 16),
        lambda: driver.clear(256, 16),
        driver.synchronize,
        lambda: driver.record(lambda: None),
    ):
        with pytest.raises(BackendError, match="cudaErrorInsufficientDriver"):
            call()
    driver.free(256)
