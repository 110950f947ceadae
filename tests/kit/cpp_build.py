"""Builds ``cpp/`` for the tests, under ``build/`` of the checkout, where the next run finds it.

``TRTPRUNE_CPP_BUILD`` names another build folder: one with sanitizers, or of another compiler; ``TRTPRUNE_CPP_OPTIONS``
are the options of CMake that make it so.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / os.environ.get("TRTPRUNE_CPP_BUILD", "build/cpp")

Driver = Callable[..., list[Any]]


@functools.cache
def target(name: str) -> Path:
    """A program of the C++ build, made now if it is not up to date.

    Only what it needs is compiled.
    """
    with lock(BUILD):
        cmake = tool("cmake")
        if not (BUILD / "build.ninja").is_file():
            ninja = tool("ninja")
            launcher = shutil.which("ccache")
            cache = [f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"] if launcher else []
            python = f"-DPython3_EXECUTABLE={sys.executable}"
            more = shlex.split(os.environ.get("TRTPRUNE_CPP_OPTIONS", ""))
            options = ["-DTRTPRUNE_FETCH=ON", "-DTRTPRUNE_TENSORRT=ON", python, *cache, *more]
            source = str(ROOT / "cpp")
            run(cmake, "-S", source, "-B", str(BUILD), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *options)
        run(cmake, "--build", str(BUILD), "--target", name)
    return BUILD / name


def driver(name: str, *, timeout: float = 300) -> Driver:
    """``cpp/tests/drivers/NAME.cpp`` as a function: JSON values in, one JSON value for each of them out.

    Args:
        name: the file's name without its ending.
        timeout: seconds that one call may take.
    """
    program = target(name)

    def call(requests: Iterable[Any], *arguments: object) -> list[Any]:
        requests = list(requests)
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        command = [str(program), *map(str, arguments)]
        result = subprocess.run(command, input=lines.encode(), capture_output=True, env=environment(), timeout=timeout)
        answers = result.stdout.decode("utf-8").split("\n")[:-1]
        if result.returncode != 0 or len(answers) != len(requests):
            errors = result.stderr.decode("utf-8", "replace")[-4000:]
            counts = f"{len(answers)} answers to {len(requests)} requests"
            pytest.fail(f"{name} exited with {result.returncode}, {counts}:\n{errors}", pytrace=False)
        return [json.loads(answer) for answer in answers]

    return call


def environment() -> dict[str, str]:
    """The environment of C++ programs: they load the ONNX Runtime library that Python uses."""
    return {**os.environ, "TRTPRUNE_ONNXRUNTIME": str(onnxruntime())}


@functools.cache
def onnxruntime() -> Path:
    """The shared library inside of the installed ``onnxruntime`` package."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None, "onnxruntime is not installed"
    assert spec.origin is not None
    (library,) = (Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*.*")
    return library


def fetched() -> list[str]:
    """Prefixes of libraries that were downloaded because this machine lacks them."""
    for line in (BUILD / "CMakeCache.txt").read_text().splitlines():
        if line.startswith("TRTPRUNE_FETCHED:"):
            return line.partition("=")[2].split(";")
    return []


def tool(name: str) -> str:
    """A program of this environment, or of PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found is not None, f"{name} is not installed"
    return found


def run(*command: object, **options: Any) -> str:
    """The output of a program, of which the test fails if it does."""
    words = [str(word) for word in command]
    result = subprocess.run(words, capture_output=True, text=True, **options)
    if result.returncode != 0:
        output = (result.stdout + result.stderr)[-4000:]
        pytest.fail(f"{' '.join(words)} exited with {result.returncode}:\n{output}", pytrace=False)
    return result.stdout


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """One build at a time, for test processes side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
