"""The installed C++ package, and one small engine directory that C++ and Python run beside each other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from PIL import Image

import trtprune
from tests.kit import cpp_build, tiny
from tests.kit.runtime_kit import picture
from tests.kit.tiny_files import add_text_files

SIZES = ((90, 70), (64, 120))


def install(folder: Path) -> Path:
    """The package under ``folder / "package"``.

    It is installed elsewhere and moved, so that a test fails if a file knows its place.
    """
    cpp_build.target("trtprune")
    cpp_build.target("trtprune_static")
    with cpp_build.lock(cpp_build.BUILD):
        first = folder / "installed"
        cpp_build.run(cpp_build.tool("cmake"), "--install", cpp_build.BUILD, "--prefix", first)
    return Path(shutil.move(first, folder / "package"))


def build_project(source: Path, build: Path, package: Path, *options: str) -> Path:
    """Configures and compiles a project that finds the package."""
    cmake = cpp_build.tool("cmake")
    ninja = f"-DCMAKE_MAKE_PROGRAM={cpp_build.tool('ninja')}"
    prefix = f"-DCMAKE_PREFIX_PATH={';'.join([str(package), *cpp_build.fetched()])}"
    cpp_build.run(cmake, "-S", source, "-B", build, "-G", "Ninja", ninja, prefix, "-DCMAKE_CXX_FLAGS=-Werror", *options)
    cpp_build.run(cmake, "--build", build)
    return build


def engines(folder: Path, **settings: Any) -> Path:
    """An engine directory of a tiny random checkpoint, and ``a.png``, ``b.png`` beside it."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    model = tiny.Tiny()
    tiny.make(checkpoint, model)
    add_text_files(checkpoint, model)
    trtprune.build(str(checkpoint), folder / "engines", **{"keep": 6, "method": "adafv", **settings})
    for name, image in pictures().items():
        image.save(folder / name)
    return folder / "engines"


def pictures() -> dict[str, Image.Image]:
    return {name: picture(seed, size) for seed, (name, size) in enumerate(zip(("a.png", "b.png"), SIZES, strict=True))}


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    """What of ``run --json`` must not depend on the machine; of times the names."""
    timed = ("time_to_first_token_ms", "tokens_per_second")
    rest = {name: value for name, value in answer.items() if name not in timed}
    return {**rest, "timings_ms": sorted(answer["timings_ms"])}
