"""``doctor`` on this machine, and on machines made up: it must say the right thing and never fall over."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trtprune.backends.tensorrt import gpus as gpus_module
from trtprune.backends.tensorrt.gpus import Gpu, find_gpus
from trtprune.doctor import Check, Report, examine
from trtprune.doctor import examining as doctor
from trtprune.doctor.probe import probe

H200 = Gpu("NVIDIA H200", 90, 150_000_000_000, "580.1")
RTX = Gpu("NVIDIA GeForce RTX 4090", 89, 24_000_000_000, "580.1")
FINE = {"ok": True, "text": "loads and runs"}
NO_PLUGINS = {"plugins": {"ok": True, "text": "TopKGather and MaxMinSelect"}}
TARGETS = {"ok": True, "text": "1.7.1", "targets": ["SM80", "SM89", "SM120"]}


def machine(
    monkeypatch: pytest.MonkeyPatch, packages: dict[str, Any], gpus: list[Gpu], probes: dict[str, dict[str, Any]]
) -> Report:
    """The report of a machine with these packages (and all required ones), GPUs and outcomes of trials."""
    have = dict.fromkeys(doctor.REQUIRED, "99.0") | packages
    monkeypatch.setattr(doctor, "_version", have.get)
    monkeypatch.setattr(doctor, "find_gpus", lambda: gpus)
    monkeypatch.setattr(doctor, "_probe", lambda name: (NO_PLUGINS | probes).get(name, FINE))
    return examine()


def the(report: Report, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def test_this_machine() -> None:
    report = examine()
    assert report.ok, report.render()
    assert the(report, "provider cpu").status == "ok"
    assert json.loads(json.dumps(report.to_json()))["ok"] is True
    text = report.render()
    assert "no problems" in text
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_both_wheels_of_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    for gpus, extra in (([], "cpu"), ([H200], "cuda")):
        report = machine(monkeypatch, both, gpus, {})
        check = the(report, "onnxruntime")
        assert (report.ok, check.status) == (False, "problem")
        fix = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'trtprune[{extra}]'"
        assert check.fix == fix
        assert fix in report.render()


def test_no_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine(monkeypatch, {}, [], {})
    assert the(report, "onnxruntime").fix == "pip install 'trtprune[cpu]'"
    assert not report.ok


def test_a_gpu_whose_provider_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"cuda": {"ok": False, "text": "the CUDA provider did not load"}}
    report = machine(monkeypatch, {"onnxruntime-gpu": "1.31.1"}, [H200], broken)
    assert the(report, "provider cuda").status == "problem"
    assert "did not load" in the(report, "provider cuda").text
    # The same wheel on a machine with no GPU is no problem: the CPU provider works.
    report = machine(monkeypatch, {"onnxruntime-gpu": "1.31.1"}, [], broken)
    assert the(report, "provider cuda").status == "missing"
    assert report.ok


def lines(report: Report, name: str) -> list[tuple[str, str]]:
    return [(check.status, check.text) for check in report.checks if check.name == name]


BUILDS = ("ok", "1.7.1, builds for SM80, SM89, SM120; that needs no GPU")
RTX_ONLY = {"onnxruntime": "1.31.1", "tensorrt-rtx-cu13": "1.7.1"}
NOT_HERE = {"ok": False, "text": "it builds no engine for this GPU"}


def test_tensorrt_rtx_does_not_serve_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine(monkeypatch, RTX_ONLY, [H200], {"tensorrt_rtx": TARGETS, "tensorrt_rtx-here": NOT_HERE})
    found = [check for check in report.checks if check.name == "tensorrt-rtx"]
    assert [(check.status, check.text) for check in found] == [
        BUILDS,
        ("info", "does not serve NVIDIA H200: SM90 (Hopper) is not among its targets"),
    ]
    assert found[1].fix == "pip install 'trtprune[tensorrt]' and --backend tensorrt, or --provider cuda"
    # Should an engine made there for "the current GPU" load all the same, doctor says so.
    report = machine(monkeypatch, RTX_ONLY, [H200], {"tensorrt_rtx": TARGETS, "tensorrt_rtx-here": FINE})
    assert lines(report, "tensorrt-rtx")[1] == (
        "info",
        "NVIDIA H200: SM90 (Hopper) is not among its targets, yet an engine made here for here loads",
    )


def test_tensorrt_rtx_on_a_gpu_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine(monkeypatch, RTX_ONLY | {"cuda-bindings": "13.4.4"}, [RTX], {"tensorrt_rtx": TARGETS})
    assert report.ok, report.render()
    assert lines(report, "tensorrt-rtx") == [BUILDS, ("ok", "builds for and loads on NVIDIA GeForce RTX 4090 (SM89)")]
    assert lines(report, "cuda-bindings")[0][0] == "ok"
    report = machine(monkeypatch, RTX_ONLY, [RTX], {"tensorrt_rtx": TARGETS, "tensorrt_rtx-here": NOT_HERE})
    assert lines(report, "tensorrt-rtx")[1] == (
        "problem",
        "an engine does not load on NVIDIA GeForce RTX 4090: it builds no engine for this GPU",
    )


def test_tensorrt_rtx_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine(monkeypatch, RTX_ONLY, [], {"tensorrt_rtx": TARGETS})
    assert report.ok
    assert lines(report, "tensorrt-rtx") == [
        BUILDS,
        ("info", "runs no engine here: that needs a GPU among those, and its driver"),
    ]
    report = machine(monkeypatch, {"onnxruntime": "1.31.1"}, [], {})
    assert the(report, "tensorrt-rtx").fix == "pip install 'trtprune[tensorrt-rtx]'"
    broken = {"ok": False, "text": "libtensorrt_rtx.so.1: cannot open shared object file"}
    report = machine(monkeypatch, RTX_ONLY, [], {"tensorrt_rtx": broken})
    assert lines(report, "tensorrt-rtx")[0][0] == "problem"
    assert "cannot open shared object file" in report.render()


def test_full_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"onnxruntime": "1.31.1", "tensorrt-cu13": "11.4.0.106", "cuda-bindings": "13.4.4"}
    found = {"tensorrt": {"ok": True, "text": "11.4.0.106"}}
    report = machine(monkeypatch, packages, [H200], found)
    assert lines(report, "tensorrt") == [("ok", "11.4.0.106, builds for and runs on NVIDIA H200 (SM90)")]
    report = machine(monkeypatch, packages, [H200], found | {"tensorrt-here": NOT_HERE})
    assert lines(report, "tensorrt") == [
        ("problem", "11.4.0.106, builds nothing on NVIDIA H200: it builds no engine for this GPU")
    ]
    report = machine(monkeypatch, packages, [], found)
    assert report.ok
    assert lines(report, "tensorrt")[0][1].endswith("can do nothing here: building and running both need a GPU")
    old = packages | {"tensorrt-cu13": "10.9.0"}
    report = machine(monkeypatch, old, [H200], {"tensorrt": {"ok": True, "text": "10.9.0"}})
    assert lines(report, "tensorrt") == [("problem", "10.9.0, at least 10.15 is needed")]
    report = machine(monkeypatch, {"onnxruntime": "1.31.1"}, [H200], {})
    assert the(report, "tensorrt").fix == "pip install 'trtprune[tensorrt]'"
    # No machine is told to wait for a release that is there.
    assert "later release" not in report.render()


def test_what_runs_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine(monkeypatch, RTX_ONLY, [RTX], {"tensorrt_rtx": TARGETS})
    assert (the(report, "cuda-bindings").status, report.ok) == ("problem", False)
    assert the(report, "cuda-bindings").fix == "pip install 'cuda-bindings>=13.0'"
    # Nothing to run, or nothing to run it on: no fault.
    for packages, gpus in (({"onnxruntime": "1.31.1"}, [RTX]), (RTX_ONLY, [])):
        report = machine(monkeypatch, packages, gpus, {"tensorrt_rtx": TARGETS})
        assert (the(report, "cuda-bindings").status, report.ok) == ("missing", True)
    broken = {"tensorrt_rtx": TARGETS, "cuda_bindings": {"ok": False, "text": "cudaErrorInsufficientDriver"}}
    report = machine(monkeypatch, RTX_ONLY | {"cuda-bindings": "13.4.4"}, [RTX], broken)
    assert lines(report, "cuda-bindings") == [("problem", "13.4.4, does not work: cudaErrorInsufficientDriver")]


@pytest.mark.parametrize(("packages", "status"), [({}, "missing"), ({"onnxruntime-gpu": "1.31.1"}, "problem")])
def test_an_old_driver(monkeypatch: pytest.MonkeyPatch, packages: dict[str, str], status: str) -> None:
    """CUDA 13 asks for driver 580 (release notes of CUDA 13.0)."""
    old = Gpu("NVIDIA A100", 80, 40_000_000_000, "570.124.06")
    report = machine(monkeypatch, packages or {"onnxruntime": "1.31.1"}, [old], {})
    assert the(report, "driver").status == status
    assert "570.124.06 is too old for CUDA 13" in the(report, "driver").text
    report = machine(monkeypatch, packages or {"onnxruntime": "1.31.1"}, [H200], {})
    assert not [check for check in report.checks if check.name == "driver"]


def test_polygraphy(monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine(monkeypatch, {"onnxruntime": "1.31.1"}, [], {})
    assert the(report, "polygraphy").fix == "pip install 'trtprune[compare]'"
    report = machine(monkeypatch, {"onnxruntime": "1.31.1", "polygraphy": "0.53.6"}, [], {})
    assert (the(report, "polygraphy").status, the(report, "polygraphy").fix) == ("ok", None)


def test_plugin_library(monkeypatch: pytest.MonkeyPatch) -> None:
    full = {"onnxruntime": "1.31.1", "tensorrt-cu13": "10.16.1.11", "cuda-bindings": "13"}
    at = "TopKGather and MaxMinSelect 0.1.0"
    library = {"ok": True, "text": at, "path": "/opt/libtrtprune_plugins.so", "tensorrt": "10.14.1"}
    ten = {"plugins": library, "tensorrt": {"ok": True, "text": "10.16.1.11"}}
    assert the(machine(monkeypatch, {"onnxruntime": "1.31.1"}, [], {}), "plugins").status == "missing"
    report = machine(monkeypatch, full, [H200], ten)
    assert lines(report, "plugins") == [("ok", f"{at} for TensorRT 10 (/opt/libtrtprune_plugins.so)")]
    report = machine(monkeypatch, full, [H200], ten | {"tensorrt": {"ok": True, "text": "11.4.0.106"}})
    assert lines(report, "plugins") == [
        ("problem", "/opt/libtrtprune_plugins.so: compiled for TensorRT 10.14.1, installed is 11.4.0.106")
    ]
    report = machine(monkeypatch, {"onnxruntime": "1.31.1"}, [H200], {"plugins": library})
    assert lines(report, "plugins")[0][0] == "info"
    foreign = {"ok": False, "text": "/tmp/x.so is not trtprune's plugin library", "hint": "build it"}
    report = machine(monkeypatch, {"onnxruntime": "1.31.1"}, [], {"plugins": foreign})
    assert (the(report, "plugins").status, the(report, "plugins").fix) == ("problem", "build it")


def test_a_plugin_library_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRTPRUNE_PLUGIN_LIBRARY", raising=False)
    assert probe("plugins")["ok"]
    for path, words in ((tmp_path / "absent.so", "no file"), (Path(__file__), "does not load")):
        monkeypatch.setenv("TRTPRUNE_PLUGIN_LIBRARY", str(path))
        check = the(examine(), "plugins")
        assert check.status == "problem"
        assert words in check.text
        assert "cmake" in (check.fix or "")


def test_only_a_machine_with_a_gpu_tries_to_build_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(doctor, "_version", (RTX_ONLY | {"cuda-bindings": "13", "tensorrt": "11"}).get)
    monkeypatch.setattr(doctor, "_probe", lambda name: asked.append(name) or FINE)
    for gpus in ([], [RTX]):
        monkeypatch.setattr(doctor, "find_gpus", lambda gpus=gpus: gpus)
        examine()
    assert sorted(asked[:4]) == ["cpu", "plugins", "tensorrt", "tensorrt_rtx"]
    assert sorted(asked[4:]) == [
        "cpu", "cuda_bindings", "plugins", "tensorrt", "tensorrt-here", "tensorrt_rtx", "tensorrt_rtx-here",
    ]  # fmt: skip


def test_the_engine_doctor_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here for SM89 instead of the GPU at hand, with a runtime that takes anything: the network itself builds."""
    trt = pytest.importorskip("tensorrt_rtx")
    taken = []

    class Runtime:
        def __init__(self, _: Any) -> None: ...

        def deserialize_cuda_engine(self, plan: Any) -> Any:
            taken.append(plan.nbytes)
            return type("Engine", (), {"create_execution_context": lambda _: object()})()

    monkeypatch.setattr(trt, "Runtime", Runtime)
    monkeypatch.setattr(trt, "ComputeCapability", type("C", (), {"CURRENT": trt.ComputeCapability.SM89}))
    assert probe("tensorrt_rtx-here") == {"ok": True, "text": "an engine builds and loads"}
    assert taken[0] > 1000
    monkeypatch.setattr(Runtime, "deserialize_cuda_engine", lambda self, plan: None)
    assert probe("tensorrt_rtx-here") == {"ok": False, "text": "the engine it built does not load"}


def test_probing_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    error = runtime.cudaError_t
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (error.cudaSuccess, 2))
    assert probe("cuda_bindings") == {"ok": True, "text": "CUDA answers, 2 devices"}
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (error.cudaErrorInsufficientDriver, None))
    assert probe("cuda_bindings") == {"ok": False, "text": "cudaErrorInsufficientDriver"}


def test_a_missing_or_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine(monkeypatch, {"onnxruntime": "1.31.1", "numpy": "1.20.0"}, [], {})
    assert the(report, "numpy").status == "problem"
    assert "at least" in the(report, "numpy").text
    monkeypatch.setattr(doctor, "REQUIRED", (*doctor.REQUIRED, "absent"))
    report = machine(monkeypatch, {"onnxruntime": "1.31.1", "absent": ""}, [], {})
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "absent" else "99")
    assert the(examine(), "absent").fix == "pip install absent"


def test_an_image_that_only_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What builds graphs may be left out of it: no fault, but said."""
    have: dict[str, Any] = {"onnxruntime": "1.31.1", "onnx-ir": None, "onnxscript": None, "huggingface-hub": None}
    report = machine(monkeypatch, have, [], {})
    assert report.ok, report.render()
    assert (the(report, "onnxscript").status, the(report, "onnxscript").fix) == ("missing", "pip install onnxscript")
    assert the(report, "onnx-ir").enables == "trtprune build, export, compare"
    assert the(report, "packages").text == "onnx 99.0, numpy 99.0"
    assert not machine(monkeypatch, {**have, "numpy": None}, [], {}).ok


def test_a_part_that_fails_leaves_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("no /proc here")

    monkeypatch.setattr(doctor, "_machine", broken)
    report = machine(monkeypatch, {"onnxruntime": "1.31.1"}, [], {})
    assert the(report, "doctor").text == "could not look further here: RuntimeError: no /proc here"


def test_a_probe_that_crashes_or_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dying = tmp_path / "python"
    for script, words in (("kill -SEGV $$", "crash"), ("echo nonsense", "crash"), ("sleep 30", "no answer")):
        dying.write_text(f"#!/bin/sh\n{script}\n")
        dying.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(dying))
        monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.5)
        answer = doctor._probe("cpu")
        assert not answer["ok"]
        assert words in answer["text"]


def test_probes_answer_in_json() -> None:
    assert probe("cpu") == FINE
    done = subprocess.run(
        [sys.executable, "-m", "trtprune.doctor.probe", "tensorrt_absent"], capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert "tensorrt_absent" in answer["text"]


def test_probing_leaves_nothing_behind(tmp_path: Path) -> None:
    """ONNX Runtime 1.31 writes telemetry files below HOME when it is imported, unless it is told not to."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    done = subprocess.run([sys.executable, "-m", "trtprune.doctor.probe", "cpu"], capture_output=True, env=environment)
    assert json.loads(done.stdout) == FINE
    assert not list(tmp_path.rglob("*onnxruntime*"))


def smi(folder: Path, output: str, code: int = 0) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\ncat <<'E'\n{output}\nE\nexit {code}\n")
    path.chmod(0o755)


def test_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    smi(tmp_path, "9.0, 143771, 580.65, NVIDIA H200\n8.9, 24564, 580.65, NVIDIA RTX 4090, special")
    assert find_gpus() == [
        Gpu("NVIDIA H200", 90, 143771 << 20, "580.65"),
        Gpu("NVIDIA RTX 4090, special", 89, 24564 << 20, "580.65"),
    ]
    smi(tmp_path, "[N/A], [N/A], 470, Old\nnonsense")
    assert find_gpus() == [Gpu("Old", 0, 0, "470")]
    monkeypatch.setattr(gpus_module, "_by_nvml", lambda: [])
    smi(tmp_path, "NVIDIA-SMI has failed", code=9)
    assert find_gpus() == []


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> Any:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(gpus_module.shutil, "which", lambda _: None)
    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert find_gpus() == []
