"""Builds ``plugins/`` for the tests, under ``build/`` of the checkout, where the next run finds it."""

from __future__ import annotations

import fcntl
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@functools.cache
def emulator() -> Path:
    """``libtrtprune_emulator.so``: the kernels' bodies on the CPU; needs a C++ compiler only."""
    return _build("tests-emulator", "trtprune_emulator", "-DTRTPRUNE_CUDA=OFF") / "libtrtprune_emulator.so"


@functools.cache
def library() -> Path:
    """The folder with everything else: libraries for all architectures, programs, ``compile_commands.json``.

    nvcc is the one on PATH; where there is none it is downloaded (100 MB, once).
    """
    return _build("tests-plugins", "all", "-DTRTPRUNE_FETCH_NVCC=ON", f"-DPython3_EXECUTABLE={sys.executable}")


def _build(name: str, target: str, *options: str) -> Path:
    folder = ROOT / "build" / name
    with _lock(folder):
        cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or "cmake"
        ninja = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        source = str(ROOT / "plugins")
        _run(cmake, "-S", source, "-B", str(folder), *generator, "-DTRTPRUNE_TESTS=ON", *options)
        _run(cmake, "--build", str(folder), "--target", target)
    return folder


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        output = (result.stdout + result.stderr)[-4000:]
        pytest.fail(f"{' '.join(command)} exited with {result.returncode}:\n{output}", pytrace=False)
    return result.stdout


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One build at a time, for test processes side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
