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

from trtprune import _gpu, doctor
from trtprune._gpu import Gpu, find_gpus
from trtprune._probe import probe
from trtprune.doctor import Check, Report, examine

H200 = Gpu("NVIDIA H200", 90, 150_000_000_000, "580.1")
RTX = Gpu("NVIDIA GeForce RTX 4090", 89, 24_000_000_000, "580.1")
FINE = {"ok": True, "text": "loads and runs"}
TARGETS = {"ok": True, "text": "1.7.1", "targets": ["SM80", "SM89", "SM120"]}


def machine(
    monkeypatch: pytest.MonkeyPatch, packages: dict[str, str], gpus: list[Gpu], probes: dict[str, dict[str, Any]]
) -> Report:
    """The report of a machine with these packages (and all required ones), GPUs and outcomes of trials."""
    have = dict.fromkeys(doctor.REQUIRED, "99.0") | packages
    monkeypatch.setattr(doctor, "_version", have.get)
    monkeypatch.setattr(doctor, "find_gpus", lambda: gpus)
    monkeypatch.setattr(doctor, "_probe", lambda name: probes.get(name, FINE))
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


def test_tensorrt_rtx_does_not_serve_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"onnxruntime": "1.31.1", "tensorrt-rtx-cu13": "1.7.1"}
    report = machine(monkeypatch, packages, [H200], {"tensorrt_rtx": TARGETS})
    lines = [check.text for check in report.checks if check.name == "tensorrt-rtx"]
    assert lines == [
        "1.7.1, builds for SM80, SM89, SM120",
        "does not serve NVIDIA H200: SM90 (Hopper) is not among its targets",
    ]
    report = machine(monkeypatch, packages, [RTX], {"tensorrt_rtx": TARGETS})
    assert len([check for check in report.checks if check.name == "tensorrt-rtx"]) == 1
    assert "SM89" in the(report, "gpu").text


def test_a_missing_or_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine(monkeypatch, {"onnxruntime": "1", "numpy": "1.20.0"}, [], {})
    assert the(report, "numpy").status == "problem"
    assert "at least" in the(report, "numpy").text
    monkeypatch.setattr(doctor, "REQUIRED", (*doctor.REQUIRED, "absent"))
    report = machine(monkeypatch, {"onnxruntime": "1", "absent": ""}, [], {})
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "absent" else "99")
    assert the(examine(), "absent").fix == "pip install 'absent'"


def test_a_part_that_fails_leaves_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("no /proc here")

    monkeypatch.setattr(doctor, "_machine", broken)
    report = machine(monkeypatch, {"onnxruntime": "1"}, [], {})
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
        [sys.executable, "-m", "trtprune._probe", "tensorrt_absent"], capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert "tensorrt_absent" in answer["text"]


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
    monkeypatch.setattr(_gpu, "_by_nvml", lambda: [])
    smi(tmp_path, "NVIDIA-SMI has failed", code=9)
    assert find_gpus() == []


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> Any:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(_gpu.shutil, "which", lambda _: None)
    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert find_gpus() == []
