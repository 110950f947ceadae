"""``doctor``: installed parts, which of them work, and the command that installs the rest.

No access to the network.  Anything that could end the process is tried in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trtprune._version import __version__
from trtprune.backends.tensorrt.gpus import Gpu, find_gpus
from trtprune.doctor.gpu_checks import FULL, RTX, engine_checks, gpu_checks, older
from trtprune.doctor.report import INFO, MISSING, OK, PROBLEM, Check, Report
from trtprune.files.cache import cache_root
from trtprune.reports.installer import installed_by, to_install, to_uninstall

__all__ = ["Check", "Report", "examine"]

REQUIRED = (
    "numpy", "onnx", "onnx-ir", "onnxscript", "ml-dtypes", "tokenizers", "jinja2", "Pillow", "huggingface-hub",
    "click", "rich", "gguf",
)  # fmt: skip
# Not needed to run an engine directory, and missing in a runtime-only container image.
BUILD_ONLY = {
    "onnx-ir": "trtprune build, export, compare",
    "onnxscript": "trtprune build, export, compare",
    "huggingface-hub": "trtprune build, export, compare",
    "gguf": "trtprune build --model demo",
}
# Package → its extra, and its purpose.
OPTIONAL = {
    "matplotlib": ("plot", "--plot of eval, bench, compare and frontier"),
    "torch": ("torch", "--against transformers of compare and bench"),
    "transformers": ("torch", "--against transformers of compare and bench"),
}
# All of these install the package `onnxruntime`; the files of the last one win.
WHEELS = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn",
    "onnxruntime-training", "onnxruntime-rocm", "onnxruntime-migraphx",
)  # fmt: skip
PROBE_SECONDS = 90


def examine() -> Report:
    """The report about this machine.  Takes a few seconds, never raises, does not use the network."""
    gpus = find_gpus()
    # Each probe is a process that mostly waits for the disk, so all start at once.
    with ThreadPoolExecutor(8) as pool:
        probes = {name: pool.submit(_probe, name) for name in _to_probe(gpus)}
        tried = {name: probe.result() for name, probe in probes.items()}
    parts: list[Callable[[], Iterable[Check]]] = [
        _machine,
        _packages,
        lambda: _onnxruntime(tried, gpus),
        lambda: gpu_checks(gpus, _version),
        lambda: engine_checks(tried, gpus, _version),
        _optional,
        _cache,
    ]
    checks: list[Check] = []
    for part in parts:
        try:
            checks.extend(part())
        except Exception as error:
            # A report with a gap helps the user more than a traceback.
            checks.append(Check("doctor", INFO, f"could not look further here: {type(error).__name__}: {error}"))
    return Report(tuple(checks))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _wheels() -> dict[str, str]:
    return {package: found for package in WHEELS if (found := _version(package))}


def _to_probe(gpus: list[Gpu]) -> list[str]:
    wheels = _wheels()
    names = []
    if len(wheels) == 1:
        names.append("cpu")
        if "onnxruntime-gpu" in wheels:
            names.append("cuda")
        if _version("openvino"):
            names.append("openvino")
    for library, packages in (("tensorrt_rtx", RTX), ("tensorrt", FULL)):
        if any(map(_version, packages)):
            names.append(library)
            if gpus:
                names.append(f"{library}-here")
    if gpus and _version("cuda-bindings"):
        names.append("cuda_bindings")
    return [*names, "plugins"]


def _probe(name: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "trtprune.doctor.probe", name],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            check=False,
        )
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        return answer if isinstance(answer, dict) else {}
    except subprocess.TimeoutExpired:
        return {"ok": False, "text": f"no answer within {PROBE_SECONDS} s"}
    except (OSError, ValueError, IndexError):
        return {"ok": False, "text": "its libraries crash when they are loaded"}


def _machine() -> Iterable[Check]:
    yield Check("trtprune", OK, f"{__version__}, installed by {installed_by()} in {Path(__file__).parents[1]}")
    old = sys.version_info < (3, 11)
    yield Check("python", PROBLEM if old else OK, f"{platform.python_version()} ({sys.executable})")
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield Check("system", OK if platform.system() == "Linux" else INFO, f"{system}, {' '.join(platform.libc_ver())}")
    from trtprune.backends.onnxruntime import available_threads

    model, flags = _cpu_info()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
    features = " ".join(flag for flag in wanted if flag in flags) or "no vector features reported"
    yield Check("cpu", INFO, f"{model}, {available_threads()} threads for us; {features}")
    total, free = _memory()
    yield Check("memory", INFO, f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB" if total else "unknown")


def _cpu_info() -> tuple[str, set[str]]:
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    except OSError:
        pass
    return model, flags


def _memory() -> tuple[int, int]:
    """Total and available bytes, at most the container's limit."""
    found = {"MemTotal": 0, "MemAvailable": 0}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(":")
            if key in found:
                found[key] = int(value.split()[0]) * 1024
    except (OSError, ValueError):
        pass
    total, free = found["MemTotal"], found["MemAvailable"]
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        total, free = min(total, limit), min(free, max(0, limit - used))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        pass
    return total, free


def _packages() -> Iterable[Check]:
    wanted = _minimums()
    for package in REQUIRED:
        found = _version(package)
        if found is None and package in BUILD_ONLY:
            yield Check(package, MISSING, "not installed", to_install(package), BUILD_ONLY[package])
        elif found is None:
            yield Check(package, PROBLEM, "not installed", to_install(package), "every command")
        elif (least := wanted.get(package.lower())) and older(found, least):
            yield Check(package, PROBLEM, f"{found}, at least {least} is needed", to_install(package, upgrade=True))
    versions = {package: _version(package) for package in ("onnx", "onnx-ir", "onnxscript", "numpy")}
    yield Check("packages", INFO, ", ".join(f"{package} {found}" for package, found in versions.items() if found))


def _minimums() -> dict[str, str]:
    """Package → lowest version in this package's metadata."""
    found = {}
    try:
        for line in importlib.metadata.requires("trtprune") or []:
            requirement = line.partition(";")[0]
            if ">=" in requirement:
                name, _, least = requirement.partition(">=")
                found[name.strip().lower()] = least.strip()
    except importlib.metadata.PackageNotFoundError:
        pass
    return found


def _onnxruntime(tried: dict[str, dict[str, Any]], gpus: list[Gpu]) -> Iterable[Check]:
    extra = "cuda" if gpus else "cpu"
    wheels = _wheels()
    if not wheels:
        yield Check("onnxruntime", PROBLEM, "not installed", to_install(extra=extra), "trtprune run and show")
        return
    if len(wheels) > 1:
        yield Check(
            "onnxruntime",
            PROBLEM,
            f"{' and '.join(wheels)} are installed together and overwrite each other's files",
            f"{to_uninstall(*wheels)} && {to_install(extra=extra)}",
        )
        return
    package, version = next(iter(wheels.items()))
    least = _minimums().get("onnxruntime")
    if least and older(version, least):
        yield Check(package, PROBLEM, f"{version}, at least {least} is needed", to_install(package, upgrade=True))
    else:
        yield Check(package, OK, version)
    swap = f"{to_uninstall('onnxruntime')} && {to_install(extra='cuda')}"
    yield _tried("provider cpu", tried["cpu"], to_install(extra=extra, again=True), broken=PROBLEM)
    if "cuda" in tried:
        # With a GPU in the machine it should work; without one this is not a problem.
        state = PROBLEM if gpus else MISSING
        text = None if gpus else "installed, but there is no NVIDIA GPU or driver"
        yield _tried("provider cuda", tried["cuda"], "check the driver, CUDA 13 and cuDNN 9", broken=state, text=text)
    else:
        what = "--provider cuda" if gpus else "--provider cuda, on a machine with an NVIDIA GPU"
        yield Check("provider cuda", MISSING, "this wheel has none", swap, what)
    if "openvino" in tried:
        yield _tried("provider openvino", tried["openvino"], to_install(extra="openvino", upgrade=True), broken=PROBLEM)
    elif package == "onnxruntime":
        fast = {"amx_bf16", "avx512_bf16"} & _cpu_info()[1]
        enables = "--provider openvino" + (", faster in bfloat16, which this CPU has instructions for" if fast else "")
        yield Check("provider openvino", MISSING, "not installed", to_install(extra="openvino"), enables)


def _tried(name: str, answer: dict[str, Any], fix: str, *, broken: str, text: str | None = None) -> Check:
    if answer.get("ok"):
        return Check(name, OK, str(answer.get("text")))
    return Check(name, broken, text or f"does not work: {answer.get('text')}", fix)


def _optional() -> Iterable[Check]:
    for package, (extra, enables) in OPTIONAL.items():
        found = _version(package)
        if found:
            yield Check(package, OK, found)
        else:
            yield Check(package, MISSING, "not installed", to_install(extra=extra), enables)


def _cache() -> Iterable[Check]:
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    home = home.expanduser()
    offline = ", HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "on") else ""
    yield Check("model cache", INFO, f"{home}, {_free(home)}{offline}")
    root = cache_root()
    named = "as TRTPRUNE_CACHE says" if os.environ.get("TRTPRUNE_CACHE") else "TRTPRUNE_CACHE names another"
    yield Check("demo cache", INFO, f"{root}, {_free(root)}; {named}")


def _free(folder: Path) -> str:
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    return f"{shutil.disk_usage(existing).free / 1e9:.0f} GB free"
