"""The plugin library without a GPU: through the registry of a TensorRT runtime, and through trtprune's own loader.

``plugins/tests/plugin_test.cpp`` prints what it sees; what it should see stands here.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

import trtprune
from tests.kit.plugin_build import library
from trtprune.backends.tensorrt import plugins
from trtprune.errors import BackendError

FLOATS = ("float32", "float16", "bfloat16")
GPU = Path("/dev/nvidiactl").exists()


@pytest.fixture(scope="module")
def built() -> Path:
    return library()


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)


def observe(built: Path, way: str) -> dict[str, list[str]]:
    result = run(built / "plugin_test", built / "libtrtprune_plugins.so", way)
    assert result.returncode == 0, result.stdout[-500:] + result.stderr[-500:]
    seen = defaultdict(list)
    for line in result.stdout.splitlines():
        name, _, value = line.partition("=")
        seen[name].append(value)
    return seen


@pytest.fixture(scope="module")
def seen(built: Path) -> dict[str, list[str]]:
    return observe(built, "dlopen")


# -- registration -------------------------------------------------------------------------------------------------


def test_opening_the_library_registers_it(seen: dict[str, list[str]]) -> None:
    assert seen["TensorRT"][0] == "101601"
    assert seen["known before"] == ["0"]
    assert seen["known after dlopen"] == ["1"]
    assert seen["known by another name"] == ["0"]  # the namespace is part of the name


def test_loadlibrary_registers_it(built: Path) -> None:
    """TensorRT's own way (``trtexec --dynamicPlugins``), which undoes it as well."""
    seen = observe(built, "loadLibrary")
    assert (seen["loadLibrary"], seen["known after loadLibrary"]) == (["ok"], ["1"])
    assert seen["known after deregisterLibrary"] == ["0"]


def test_loadlibrary_after_opening(built: Path) -> None:
    """TensorRT refuses plugins that are registered already, so the library must hand them over."""
    seen = observe(built, "both")
    assert seen["known after dlopen"] == ["1"]
    assert (seen["loadLibrary"], seen["known after loadLibrary"]) == (["ok"], ["1"])


def test_links_against_no_tensorrt(built: Path) -> None:
    """One file serves libnvinfer, the lean and the dispatch runtime, and opens where none of them is."""
    text = run("readelf", "-d", built / "libtrtprune_plugins.so").stdout
    assert "NODELETE" in text
    assert not [line for line in text.splitlines() if "NEEDED" in line and ("nvinfer" in line or "cuda" in line)]


def test_exports_no_more_than_its_interface(built: Path) -> None:
    symbols = run("nm", "-D", "--defined-only", built / "libtrtprune_plugins.so").stdout.split()[2::3]
    own = {"trtprunePluginVersion", "trtprunePluginTensorRTVersion", "trtpruneRegisterPlugins"}
    assert {"getCreators", "setLoggerFinder"} | own <= set(symbols)
    assert all(s in {"getCreators", "setLoggerFinder"} or s.startswith("trtprune") for s in symbols)


# -- the plugins --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plugin", "outputs", "attributes", "serialized"),
    [
        ("TopKGather", "TopKGather", "2", "", ""),
        ("MaxMinSelect", "MaxMinSelect", "1", "mode:6", "mode:6:maxmin"),
        ("MaxMinSelect meansim", "MaxMinSelect", "1", "mode:6", "mode:6:meansim"),
    ],
)
def test_life_cycle(seen: dict[str, list[str]], name, plugin, outputs, attributes, serialized) -> None:
    """Created, cloned, attached, serialised and made again from its fields, with the attributes it had (6 = kCHAR)."""
    assert seen[f"{name}.created"] == ["1"]
    assert seen[f"{name}.identity"] == [f"trtprune::{plugin} 1"]
    assert seen[f"{name}.interfaces"] == ["PLUGIN_V3ONE_CORE PLUGIN_V3ONE_BUILD PLUGIN_V3ONE_RUNTIME"]
    assert seen[f"{name}.outputs"] == [outputs]
    assert seen[f"{name}.attributes"] == [attributes]
    assert seen[f"{name}.serialized"] == [serialized]
    assert seen[f"{name}.copies"] == ["1"]
    assert seen[f"{name}.recreated"] == ["1"]


def test_topk_gather_takes_all_float_types_and_no_other(seen: dict[str, list[str]]) -> None:
    expected = {f"{s} {f} {f} int64" for s, f in itertools.product(FLOATS, FLOATS)}
    assert sorted(seen["TopKGather.types"]) == sorted(expected)  # linear formats only, no doubles
    assert sorted(seen["TopKGather.dtypes"]) == sorted(expected)


def test_topk_gather_shapes_come_from_the_value_of_keep(seen: dict[str, list[str]]) -> None:
    assert seen["TopKGather.shapes"] == ["B keep D, B keep"]
    for wrong in ("without keep", "of keep as tensor", "of wrong rank"):
        assert seen[f"TopKGather.shapes {wrong}"] == ["refused"]
    assert "builder" not in seen  # the dimensions are passed on, not computed


@pytest.mark.parametrize("phase", ["configure", "shape change"])
def test_topk_gather_sizes(seen: dict[str, list[str]], phase: str) -> None:
    expected = {
        "576 to 192": "ok",
        "32768 to 32768": "ok",
        "32769 to 64": "refused",
        "64 to 65": "refused",
        "of wrong rank": "refused",
    }
    assert {size: seen[f"TopKGather.{phase} {size}"][0] for size in expected} == expected
    assert seen["TopKGather.workspace 32768 to 32768"] == ["0"]


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_enqueue_without_a_gpu_is_an_error(seen: dict[str, list[str]]) -> None:
    assert seen["TopKGather.enqueue without a GPU"] == ["refused"]


def test_maxmin_select(seen: dict[str, list[str]]) -> None:
    assert seen["MaxMinSelect.types"] == ["float32 float32 int64 float32"]
    assert seen["MaxMinSelect.shapes"] == ["B N"]
    assert seen["MaxMinSelect.shapes of two inputs"] == ["refused"]
    assert (seen["MaxMinSelect.unknown mode"], seen["MaxMinSelect.mode of wrong type"]) == (["refused"], ["refused"])
    assert [seen[f"MaxMinSelect.configure {n}"] for n in (8765, 16384, 16385)] == [["ok"], ["ok"], ["refused"]]


# -- machine code -------------------------------------------------------------------------------------------------


def architectures(path: Path) -> set[str]:
    """What is in the CUDA fat binaries of a file: ``sm_80`` is machine code, ``ptx_90`` is PTX."""
    data, found, at = path.read_bytes(), set(), 0
    while (at := data.find(struct.pack("<I", 0xBA55ED50), at)) >= 0:
        _, version, header, size = struct.unpack_from("<IHHQ", data, at)
        if version != 1 or at + header + size > len(data):
            at += 4
            continue
        entry, at = at + header, at + header + size
        while entry < at:
            kind, _, header, size = struct.unpack_from("<HHIQ", data, entry)
            found.add(f"{ {1: 'ptx', 2: 'sm'}[kind] }_{struct.unpack_from('<I', data, entry + 28)[0]}")
            entry += header + size
    return found


@pytest.mark.parametrize("name", ["libtrtprune_plugins.so", "libtrtprune_kernels.so"])
def test_compiled_for_ampere_to_blackwell(built: Path, name: str) -> None:
    assert architectures(built / name) == {"sm_80", "sm_86", "sm_89", "sm_90", "sm_120", "ptx_90", "ptx_120"}


# -- the C interface and the harness ------------------------------------------------------------------------------


def test_c_interface(built: Path) -> None:
    """Bad sizes are refused before any launch; the version is the package's."""
    kernels = ctypes.CDLL(str(built / "libtrtprune_kernels.so"))
    kernels.trtprune_kernels_version.restype = ctypes.c_char_p
    kernels.trtprune_topk_gather_workspace.restype = ctypes.c_size_t
    assert kernels.trtprune_kernels_version().decode() == trtprune.__version__
    size, null = ctypes.c_int64, ctypes.c_void_p(None)

    def topk(tokens: int, keep: int, scores: int = 0, features: int = 0, width: int = 8, batch: int = 1) -> int:
        sizes = (size(batch), size(tokens), size(width), size(keep))
        return kernels.trtprune_topk_gather(null, scores, null, features, *sizes, null, null, null, size(0), null)

    invalid = 1  # cudaErrorInvalidValue
    assert topk(0, 0) == topk(32769, 5) == topk(8, 9) == topk(8, -1) == invalid
    assert topk(8, 4, scores=3) == topk(8, 4, features=-1) == topk(8, 4, width=-1) == topk(8, 4, width=2**60) == invalid
    assert topk(8, 0) == topk(8, 4, batch=0) == 0  # nothing to do
    assert [kernels.trtprune_topk_gather_launches(size(n)) for n in (1, 4096, 4097)] == [1, 1, 2]
    assert kernels.trtprune_topk_gather_workspace(size(8), size(32768), size(3840)) == 0

    def maxmin(tokens: int, steps: int, mode: int = 0) -> int:
        return kernels.trtprune_maxmin_select(null, null, size(1), size(tokens), size(steps), mode, null, null, null)

    assert maxmin(0, 1) == maxmin(16385, 1) == maxmin(8, -1) == maxmin(8, 1, 2) == invalid
    if not GPU:
        assert kernels.trtprune_device_count() == 0
        assert topk(8, 4) not in (0, invalid)


@pytest.mark.skipif(GPU, reason="there is a GPU")
@pytest.mark.parametrize("program", ["kernel_bench", "plugin_harness"])
def test_harness_says_that_there_is_no_gpu(built: Path, program: str) -> None:
    arguments = [built / "libtrtprune_plugins.so"] if program == "plugin_harness" else []
    result = run(built / program, *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("error: this needs a GPU: ")
    assert "no GPU" in json.loads(result.stdout)["error"]


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("program", ["kernel_bench", "plugin_harness"])
def test_on_the_gpu(built: Path, program: str) -> None:
    arguments = [built / "libtrtprune_plugins.so"] if program == "plugin_harness" else []
    result = run(built / program, *arguments, "--no-time")
    assert json.loads(result.stdout)["failures"] == []
    assert result.returncode == 0


@pytest.mark.parametrize("mistake", ["none", "index", "features", "margin", "tie", "close", "error"])
def test_harness_finds_mistakes(built: Path, mistake: str) -> None:
    """The harness on host memory, the kernels emulated."""
    result = run(built / "harness_test", mistake, "--cases", 8, "--max-tokens", 60, "--no-time")
    report = json.loads(result.stdout)
    assert result.returncode == (0 if mistake == "none" else 1)
    assert report["cases"] == 9
    assert (report["failed"] == 0) == (mistake == "none")


@pytest.mark.slow
def test_harness_at_the_sizes_of_images(built: Path) -> None:
    result = run(built / "harness_test", "none", "--cases", 8, "--max-tokens", 8765, "--no-time")
    assert json.loads(result.stdout)["failures"] == []


# -- trtprune's loader --------------------------------------------------------------------------------------------


def fake_tensorrt(version: str, known: set[tuple[str, str, str]], name: str = "tensorrt") -> SimpleNamespace:
    """A module whose registry knows what it is told."""
    registry = SimpleNamespace(get_creator=lambda *key: key if key in known else None)
    return SimpleNamespace(__name__=name, __version__=version, get_plugin_registry=lambda: registry)


ALL = {(name, version, "trtprune") for name, version in plugins.PLUGINS.items()}


def test_find(tmp_path: Path, built: Path) -> None:
    path = built / "libtrtprune_plugins.so"
    assert plugins.find_library({plugins.LIBRARY_VARIABLE: str(path)}) == path.resolve()
    assert plugins.find_library({}) is None  # none is installed with the package here
    with pytest.raises(BackendError, match=r"^TRTPRUNE_PLUGIN_LIBRARY: no file .*/nothing.so") as e:
        plugins.find_library({plugins.LIBRARY_VARIABLE: str(tmp_path / "nothing.so")})
    assert "cmake -S plugins" in (e.value.hint or "")


def test_open(built: Path) -> None:
    found = plugins.open_library(built / "libtrtprune_plugins.so")
    assert found.version == trtprune.__version__
    assert found.tensorrt == (10, 14, 1)


def test_loaded_tensorrt_is_found(built: Path) -> None:
    """As in Python, where the package ``tensorrt`` loads its library by path and for itself."""
    lean = next((built.parent / "dependencies").rglob("libnvinfer_lean.so.10"))
    code = f"""
import ctypes, pathlib
from trtprune.backends.tensorrt import plugins
library = plugins.open_library(pathlib.Path({str(built / "libtrtprune_plugins.so")!r}))
before = library.register()
ctypes.CDLL({str(lean)!r})
print(before, library.register(), library.register())
"""
    result = run(sys.executable, "-c", code)
    assert result.stdout.split() == ["0", "1", "1"], result.stderr


def test_wrong_files(tmp_path: Path, built: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("not a library")
    with pytest.raises(BackendError, match=r"plugin library .*text.so does not load: not a shared library"):
        plugins.open_library(text)
    whole = (built / "libtrtprune_plugins.so").read_bytes()
    for size in (0, 63, 5000, len(whole) // 2, len(whole) - 1):  # dlopen of some of these kills the process
        cut = tmp_path / f"cut{size}.so"
        cut.write_bytes(whole[:size])
        with pytest.raises(BackendError, match=r"does not load: (not a shared library|the file is cut off)"):
            plugins.open_library(cut)
    with pytest.raises(BackendError, match=r"libtrtprune_kernels.so is not trtprune's plugin library"):
        plugins.open_library(built / "libtrtprune_kernels.so")


def test_library_of_another_release(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "__version__", "9.9")
    with pytest.raises(BackendError, match=rf"belongs to trtprune {trtprune.__version__}, this is 9.9"):
        plugins.open_library(built / "libtrtprune_plugins.so")


def test_register(built: Path) -> None:
    environment = {plugins.LIBRARY_VARIABLE: str(built / "libtrtprune_plugins.so")}
    assert plugins.register_plugins(fake_tensorrt("10.16.1.11", ALL), environment) == plugins.PLUGINS
    assert plugins.register_plugins(fake_tensorrt("10.16.1.11", ALL), {}) == {}
    assert plugins.register_plugins(fake_tensorrt("1.7.1.116", ALL, "tensorrt_rtx"), environment) == {}
    with pytest.raises(BackendError, match=r"was compiled for TensorRT 10, installed is 11.2.0") as e:
        plugins.register_plugins(fake_tensorrt("11.2.0", ALL), environment)
    assert "TensorRT 11" in (e.value.hint or "")
    with pytest.raises(BackendError, match=r"TensorRT 10.16.1.11 does not take TopKGather, MaxMinSelect"):
        plugins.register_plugins(fake_tensorrt("10.16.1.11", set()), environment)


def test_load_what_an_engine_needs(built: Path) -> None:
    needed, path = {"TopKGather": "1"}, str(built / "libtrtprune_plugins.so")
    environment = {plugins.LIBRARY_VARIABLE: path}
    plugins.load_plugins(fake_tensorrt("10.16", set()), {}, {})  # needs none
    plugins.load_plugins(fake_tensorrt("10.16", ALL), needed, {})  # known without a library of ours
    plugins.load_plugins(fake_tensorrt("10.16", ALL), needed, environment)
    with pytest.raises(BackendError, match=r"need the plugin TopKGather 1, and no plugin library was found") as e:
        plugins.load_plugins(fake_tensorrt("10.16", set()), needed, {})
    assert plugins.LIBRARY_VARIABLE in (e.value.hint or "")
    with pytest.raises(BackendError, match=r"TensorRT for RTX has no plugins"):
        plugins.load_plugins(fake_tensorrt("1.7.1", ALL, "tensorrt_rtx"), needed, environment)
    with pytest.raises(BackendError, match=r"need the plugin TopKGather 2, which the plugin library of this release"):
        plugins.load_plugins(fake_tensorrt("10.16", ALL), {"TopKGather": "2"}, environment)


def test_environment_is_the_default(monkeypatch: pytest.MonkeyPatch, built: Path) -> None:
    monkeypatch.setitem(os.environ, plugins.LIBRARY_VARIABLE, str(built / "libtrtprune_plugins.so"))
    assert plugins.find_library() is not None
