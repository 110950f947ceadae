"""The C++ tests once more with sanitizers, and the whole library by another compiler.

Each build takes minutes, under ``build/``, where the next run finds it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import cpp_build

ROOT = Path(__file__).parents[2]
# Cheaper to compile than -O3, and findings name lines that are still there.
FASTER = "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCMAKE_C_FLAGS_RELEASE=-O1"
SUPPRESSIONS = ROOT / "cpp/tests/sanitizers"
ADDRESS = {
    "TRTPRUNE_CPP_BUILD": "build/cpp-address",
    "TRTPRUNE_CPP_OPTIONS": f"-DTRTPRUNE_SANITIZE=ON {FASTER}",
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1",
    "LSAN_OPTIONS": f"suppressions={SUPPRESSIONS}/leak.supp:print_suppressions=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
THREAD = {
    "TRTPRUNE_CPP_BUILD": "build/cpp-thread",
    "TRTPRUNE_CPP_OPTIONS": f"-DTRTPRUNE_SANITIZE=thread {FASTER}",
    "TSAN_OPTIONS": f"suppressions={SUPPRESSIONS}/thread.supp:history_size=4",
}
ALONE = ("test_c_api.py", "test_package.py", "test_sanitized.py", "test_dependencies.py")
"""Files that load the library into Python, or link it to programs of a build without sanitizers."""
PRELOADED = ("libasan.so", "libubsan.so", "libstdc++.so")
"""What a program must have loaded before a library with sanitizers."""

FAMILIES = {
    "drawn": "test_random_checkpoints and 0",
    "packed": "test_methods_of_packed_towers and (divprune or visionzip or fastv or sparsevlm or int8 or original)",
    "levels": "test_levels_in_segments",
    "spans": "test_pruning_inside_of_marked_images and (auto or rank)",
}
"""Which of the slow comparisons run with sanitizers."""

pytestmark = pytest.mark.slow


def run(environment: dict[str, str], *command: object) -> str:
    words = list(map(str, command))
    everything = {**os.environ, **environment}
    result = subprocess.run(words, cwd=ROOT, env=everything, capture_output=True, text=True, timeout=7200)
    assert result.returncode == 0, (result.stdout + result.stderr)[-8000:]
    return result.stdout


def build(environment: dict[str, str], *targets: str) -> Path:
    """The build folder, with these targets."""
    names = ", ".join(map(repr, targets))
    code = f"from tests.kit import cpp_build\nfor name in ({names},): cpp_build.target(name)"
    run(environment, sys.executable, "-c", code)
    return ROOT / environment["TRTPRUNE_CPP_BUILD"]


def pytest_in(environment: dict[str, str], *arguments: object, marked: str = "not slow") -> None:
    run(environment, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, *arguments)


def test_units() -> None:
    """Addresses, undefined behaviour and leaks in the unit tests."""
    folder = build(ADDRESS, "trtprune_tests")
    library = {"TRTPRUNE_ONNXRUNTIME": str(cpp_build.onnxruntime())}
    run({**ADDRESS, **library}, cpp_build.tool("ctest"), "--test-dir", folder, "--output-on-failure")


def test_drivers() -> None:
    """The same in all comparisons with Python, but those of memory, which the sanitizer itself takes."""
    files = [path for path in sorted(Path(__file__).parent.glob("test_*.py")) if path.name not in ALONE]
    pytest_in(ADDRESS, *files, "-k", "not test_memory")


@pytest.mark.parametrize("chosen", FAMILIES)
def test_families(chosen: str) -> None:
    """The same in whole answers of each family beyond those of the fast run: one checkpoint of all that are drawn, and
    methods in front of the decoder and inside it."""
    pytest_in(ADDRESS, Path(__file__).with_name("test_answers.py"), "-k", FAMILIES[chosen], marked="slow")


def test_engines_of_families() -> None:
    """The same on the stand-in of TensorRT: rows with levels, several spans of an image, and a cut decoder."""
    pytest_in(ADDRESS, Path(__file__).with_name("test_tensorrt.py"), "-k", "packed or spans", marked="slow")


def test_c_interface() -> None:
    """The same in the library that Python has loaded; without leaks, of which most would be the interpreter's."""
    build(ADDRESS, "trtprune")
    files = [subprocess.check_output(["c++", f"-print-file-name={name}"], text=True).strip() for name in PRELOADED]
    options = {"ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0", "LD_PRELOAD": ":".join(files)}
    # The process for templates bounds its memory, of which the sanitizer reserves terabytes.
    options["TRTPRUNE_TEXT_PROCESS"] = "off"
    pytest_in({**ADDRESS, **options}, Path(__file__).with_name("test_c_api.py"))


def test_threads() -> None:
    """Races of the threads at one model, at models of their own, and at handles."""
    pytest_in(THREAD, Path(__file__).with_name("test_threads.py"))


@pytest.mark.parametrize("compiler", ["clang++", "clang++-14"])
def test_another_compiler(compiler: str) -> None:
    """No warning in library, tests, drivers, examples and fuzzers."""
    found = shutil.which(compiler)
    if found is None:
        pytest.skip(f"{compiler} is not installed")
    options = f"-DCMAKE_CXX_COMPILER={found} -DCMAKE_C_COMPILER={found.replace('clang++', 'clang')} {FASTER}"
    environment = {
        "TRTPRUNE_CPP_BUILD": f"build/cpp-{compiler}",
        "TRTPRUNE_CPP_OPTIONS": f"{options} -DTRTPRUNE_BUILD_FUZZERS=ON",
    }
    build(environment, "all")
