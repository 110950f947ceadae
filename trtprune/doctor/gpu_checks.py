"""``doctor``'s lines about GPUs, TensorRT and related parts: installed, abilities on this machine, missing.

Pure: from facts and results of probes to lines.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trtprune.backends.tensorrt.gpus import Gpu
from trtprune.doctor.report import INFO, MISSING, OK, PROBLEM, Check
from trtprune.reports.installer import to_install

__all__ = ["CUDA_PACKAGES", "FULL", "RTX", "engine_checks", "gpu_checks", "older"]

RTX = ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx")
FULL = ("tensorrt-cu13", "tensorrt-cu12", "tensorrt")
# All of these are for CUDA 13, which needs at least this driver (CUDA's release notes).
CUDA_PACKAGES = ("onnxruntime-gpu", "tensorrt-cu13", "tensorrt-rtx-cu13")
CUDA13_DRIVER = 580
# The first version with masked attention and the in-place cache update (TensorRT's release notes).
LEAST_TENSORRT = "10.15"
BINDINGS = "cuda-bindings>=13.0"
SOURCES = Path(__file__).parents[2] / "plugins"
"""The plugins' sources, in a clone."""
Version = Callable[[str], "str | None"]
Answers = Mapping[str, Mapping[str, Any]]


def _instead() -> str:
    return f"{to_install(extra='tensorrt')} and --backend tensorrt, or --provider cuda"


def older(found: str, least: str) -> bool:
    """Whether version ``found`` is below ``least``, by their numbers."""

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".") if part.isdigit()]

    return numbers(found) < numbers(least)


def _sm(gpu: Gpu) -> str:
    return f"SM{gpu.sm}" if gpu.sm else "compute capability unknown"


def gpu_checks(gpus: Sequence[Gpu], version: Version) -> Iterable[Check]:
    """One line per GPU, with whether its driver serves the installed packages."""
    for gpu in gpus:
        yield Check("gpu", OK, f"{gpu.name}, {_sm(gpu)}, {gpu.memory_bytes / 1e9:.0f} GB, driver {gpu.driver}")
    if not gpus:
        text = "no NVIDIA GPU or driver found; CPU providers, and building for RTX GPUs, need none"
        yield Check("gpu", MISSING, text)
        return
    driver = gpus[0].driver
    major = driver.partition(".")[0]
    if major.isdigit() and int(major) < CUDA13_DRIVER:
        needed = [package for package in CUDA_PACKAGES if version(package)]
        for_what = f", which {needed[0]} here is built on" if needed else ""
        text = f"{driver} is too old for CUDA 13{for_what}"
        yield Check("driver", PROBLEM if needed else MISSING, text, f"install driver {CUDA13_DRIVER} or later")


def engine_checks(tried: Answers, gpus: Sequence[Gpu], version: Version) -> Iterable[Check]:
    """TensorRT-RTX, TensorRT, the parts that run their engines, the plugin library, and Polygraphy.

    Args:
        tried: Answers of :mod:`trtprune.doctor.probe` by name.
        gpus: GPUs of this machine.
        version: The installed version of a package, or None.
    """
    yield from _rtx(tried, gpus)
    yield from _full(tried, gpus, version)
    yield from _bindings(tried, gpus, version)
    yield from _plugins(tried, gpus)
    found = version("polygraphy")
    if found:
        yield Check("polygraphy", OK, f"{found}, for trtprune compare")
    else:
        yield Check("polygraphy", MISSING, "not installed", to_install(extra="compare"), "trtprune compare")


def _rtx(tried: Answers, gpus: Sequence[Gpu]) -> Iterable[Check]:
    name = "tensorrt-rtx"
    answer = tried.get("tensorrt_rtx")
    if answer is None:
        enables = "--backend tensorrt-rtx: engines for RTX GPUs, built also where there is none"
        yield Check(name, MISSING, "not installed", to_install(extra=name), enables)
        return
    if not answer.get("ok"):
        yield Check(name, PROBLEM, f"does not work: {answer.get('text')}", to_install(extra=name))
        return
    targets = [str(target) for target in answer.get("targets") or []]
    yield Check(name, OK, f"{answer.get('text')}, builds for {', '.join(targets)}; that needs no GPU")
    if not gpus:
        yield Check(name, INFO, "runs no engine here: that needs a GPU among those, and its driver")
    here = tried.get("tensorrt_rtx-here", {})
    for gpu in gpus:
        if not gpu.sm:
            continue
        listed = f"SM{gpu.sm}" in targets
        family = " (Hopper)" if gpu.sm == 90 else ""
        if listed and here.get("ok"):
            yield Check(name, OK, f"builds for and loads on {gpu.name} ({_sm(gpu)})")
        elif listed:
            text = f"an engine does not load on {gpu.name}: {here.get('text', 'not tried')}"
            yield Check(name, PROBLEM, text, "check the driver (nvidia-smi)")
        elif here.get("ok"):
            text = f"{gpu.name}: SM{gpu.sm}{family} is not among its targets, yet an engine made here for here loads"
            yield Check(name, INFO, text, _instead())
        else:
            text = f"does not serve {gpu.name}: SM{gpu.sm}{family} is not among its targets"
            yield Check(name, INFO, text, _instead())


def _full(tried: Answers, gpus: Sequence[Gpu], version: Version) -> Iterable[Check]:
    name = "tensorrt"
    answer = tried.get(name)
    found = next((v for package in FULL if (v := version(package))), None)
    if answer is None:
        where = "" if gpus else ", on a machine that has one"
        enables = f"--backend tensorrt: engines for the GPU they are built on, Hopper too{where}"
        yield Check(name, MISSING, "not installed", to_install(extra=name), enables)
    elif not answer.get("ok"):
        yield Check(name, PROBLEM if gpus else MISSING, f"does not work: {answer.get('text')}", to_install(extra=name))
    elif older(found or str(answer.get("text")), LEAST_TENSORRT):
        text = f"{answer.get('text')}, at least {LEAST_TENSORRT} is needed"
        yield Check(name, PROBLEM, text, to_install(extra=name, upgrade=True))
    elif not gpus:
        yield Check(name, INFO, f"{answer.get('text')}, can do nothing here: building and running both need a GPU")
    else:
        here, gpu = tried.get("tensorrt-here", {}), gpus[0]
        if here.get("ok"):
            yield Check(name, OK, f"{answer.get('text')}, builds for and runs on {gpu.name} ({_sm(gpu)})")
        else:
            text = f"{answer.get('text')}, builds nothing on {gpu.name}: {here.get('text', 'not tried')}"
            yield Check(name, PROBLEM, text, "check the driver (nvidia-smi)")


def _bindings(tried: Answers, gpus: Sequence[Gpu], version: Version) -> Iterable[Check]:
    name = "cuda-bindings"
    wanted = "tensorrt" in tried or "tensorrt_rtx" in tried
    enables = "trtprune run on TensorRT engines"
    found = version(name)
    if found is None:
        # Missing parts are a problem only on a machine that could run engines.
        yield Check(name, PROBLEM if gpus and wanted else MISSING, "not installed", to_install(BINDINGS), enables)
        return
    answer = tried.get("cuda_bindings", {})
    if answer.get("ok"):
        yield Check(name, OK, f"{found}, {answer.get('text')}")
    elif gpus:
        yield Check(name, PROBLEM, f"{found}, does not work: {answer.get('text', 'not tried')}", to_install(BINDINGS))
    else:
        yield Check(name, INFO, f"{found}, runs engines where there is a GPU and its driver")


def _plugins(tried: Answers, gpus: Sequence[Gpu]) -> Iterable[Check]:
    name, answer = "plugins", tried.get("plugins", {})
    if not answer.get("ok"):
        yield Check(name, PROBLEM, str(answer.get("text", "not tried")), answer.get("hint"))
        return
    if "path" not in answer:
        enables = f"{answer['text']} as one kernel each, in engines of full TensorRT"
        text = "no plug-in library found; none is needed, graphs carry definitions in plain operators"
        made = f"cmake -S {shlex.quote(str(SOURCES))} -B build/plugins && cmake --build build/plugins"
        how = f"{made}, then set TRTPRUNE_PLUGIN_LIBRARY" if SOURCES.is_dir() else None
        where = "" if how else "; built from the folder plugins/ of trtprune's sources"
        yield Check(name, MISSING, text, how, enables + where)
        return
    made_for, path = str(answer["tensorrt"]), answer["path"]
    what = f"{answer['text']} for TensorRT {made_for.partition('.')[0]} ({path})"
    full = tried.get("tensorrt", {})
    have = str(full.get("text", ""))
    if not full.get("ok"):
        yield Check(name, INFO, f"{what}; for full TensorRT, which is not here")
    elif have.partition(".")[0] != made_for.partition(".")[0]:
        major = have.partition(".")[0]
        text = f"{path}: compiled for TensorRT {made_for}, installed is {have}"
        yield Check(name, PROBLEM, text, f"build it again with -DTENSORRT_ROOT=… of TensorRT {major}")
    else:
        yield Check(name, OK, what if gpus else f"{what}; its kernels need a GPU")
