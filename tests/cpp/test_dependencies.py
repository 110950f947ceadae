"""``cpp/fetch_dependencies.py`` with a mirror that is not asked: contents are checked, nothing is left by halves."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
import urllib.error
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_cpp_dependencies", ROOT / "cpp/fetch_dependencies.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def deb(entries: dict[str, str], *, compression: str = "xz") -> bytes:
    """A Debian package; ``-> path`` stands for a link."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(f"./{name}")
            if content.startswith("-> "):
                entry.type, entry.linkname = tarfile.SYMTYPE, content[3:]
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content.encode()))
    result = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", data.getvalue())):
        result += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        result += b"\n" * (len(content) % 2)
    return result


class Mirror:
    """Answers addresses that end with a known name; 404 for others."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []

    def __call__(self, url: str, timeout: float) -> Any:
        self.asked.append(url.rpartition("/")[2])
        if self.asked[-1] not in self.files:
            raise urllib.error.HTTPError(url, 404, "Not Found", None, None)
        return io.BytesIO(self.files[self.asked[-1]])


def serve(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *names: str, wrong: str = "") -> Mirror:
    """Library ``a`` of the packages ``names``, each with a header, and its mirror."""
    files = {f"{name}_1_amd64.deb": deb({f"usr/include/{name}.h": name}) for name in names}
    packages = [script.Package(f"a/a/{file}", hashlib.sha256(data).hexdigest()) for file, data in files.items()]
    monkeypatch.setitem(script.LIBRARIES, "a", tuple(packages))
    mirror = Mirror(
        {name: b"!<arch>\nother" if name.startswith(wrong or "?") else data for name, data in files.items()}
    )
    monkeypatch.setattr(script.urllib.request, "urlopen", mirror)
    monkeypatch.setattr(script.platform, "machine", lambda: "x86_64")
    return mirror


def test_fetch(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = serve(script, monkeypatch, "one", "two")
    target = tmp_path / "out" / "a"
    script.fetch("a", target)
    files = sorted(str(file.relative_to(target)) for file in target.rglob("*") if file.is_file())
    assert files == [".complete", "usr/include/one.h", "usr/include/two.h"]
    assert list(target.parent.iterdir()) == [target]  # nothing of the work is left
    script.fetch("a", target)
    assert mirror.asked == ["one_1_amd64.deb", "two_1_amd64.deb"]  # there already
    (target / ".complete").write_text("another version")
    script.fetch("a", target)
    assert len(mirror.asked) == 4


def test_another_content(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(script, monkeypatch, "one", "two", wrong="two")
    with pytest.raises(SystemExit, match=r"two_1_amd64.deb is not the file it was"):
        script.fetch("a", tmp_path / "out" / "a")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_answer(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(script, monkeypatch, "one")

    def fail(url: str, timeout: float) -> Any:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(script.urllib.request, "urlopen", fail)
    with pytest.raises(SystemExit, match="no route"):
        script.fetch("a", tmp_path / "out" / "a")
    assert list((tmp_path / "out").iterdir()) == []


def test_gone_from_the_mirror(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt brings what took its place, through lists and sources of its own."""
    mirror = serve(script, monkeypatch, "one", "two")
    mirror.files.clear()
    commands = []

    def apt(command: list[str], *, env: dict[str, str], cwd: Path | None = None, **_: Any) -> Any:
        commands.append(command[1:])
        configuration = Path(env["APT_CONFIG"]).read_text()
        assert str(tmp_path) in configuration
        if command[1] == "download":
            (cwd / f"{command[-1]}_2_amd64.deb").write_bytes(deb({f"usr/include/{command[-1]}.h": "newer"}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(script.subprocess, "run", apt)
    script.fetch("a", tmp_path / "out" / "a")
    assert (tmp_path / "out/a/usr/include/two.h").read_text() == "newer"
    assert [words[0] for words in commands] == ["update", "download", "download"]

    def none(command: list[str], **_: Any) -> Any:
        raise FileNotFoundError("apt-get")

    monkeypatch.setattr(script.subprocess, "run", none)
    with pytest.raises(SystemExit, match=r"has no a/a/one_1_amd64.deb any more, and apt-get; install one with"):
        script.fetch("a", tmp_path / "out" / "b")


def test_links_stay_inside(script: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "prefix"
    links = {"lib/x.so.1.2": "x", "usr/lib/x.so": "-> /lib/x.so.1.2", "usr/lib/x.so.1": "-> x.so"}
    script.unpack(deb(links), target)
    assert (target / "usr/lib/x.so.1").resolve() == target / "lib/x.so.1.2"
    for entry in ({"../out": "x"}, {"usr/x": "-> ../../out"}):
        with pytest.raises(SystemExit, match="leads out of it"):
            script.unpack(deb(entry), target)
    for bad in (b"", b"!<arch>\n", b"PK\x03\x04"):
        with pytest.raises(SystemExit):
            script.unpack(bad, target)


def test_other_machines(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.platform, "machine", lambda: "riscv64")
    with pytest.raises(SystemExit, match="no packages of libpng for riscv64 are known; install libpng"):
        script.fetch("libpng", tmp_path / "x")


def test_library_of_this_python(script: ModuleType, tmp_path: Path) -> None:
    library = script.onnxruntime_library(tmp_path / "unused")
    assert library.is_file()
    assert not (tmp_path / "unused").exists()


def test_everything_is_pinned(script: ModuleType) -> None:
    for packages in script.LIBRARIES.values():
        for package in packages:
            assert package.path.endswith(".deb")
            assert len(bytes.fromhex(package.sha256)) == 32
    assert "==" in script.WHEEL
    assert len(bytes.fromhex(script.WHEEL_SHA256)) == 32
