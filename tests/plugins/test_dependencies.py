"""``plugins/fetch_dependencies.py`` with a pip that is not asked: contents are checked, nothing is left by halves."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_dependencies", ROOT / "plugins/fetch_dependencies.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Pip:
    """Puts a wheel of two files where ``pip download -d`` would; ``calls`` are the requirements asked for."""

    def __init__(self, status: int = 0) -> None:
        self.calls: list[str] = []
        self.status = status

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command
        self.calls.append(command[-1])
        if self.status == 0:
            folder = Path(command[command.index("-d") + 1])
            folder.mkdir(parents=True)
            self.write(folder / "a-1-py3-none-any.whl")
        return subprocess.CompletedProcess(command, self.status)

    @staticmethod
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as wheel:
            for name, mode in (("keep/bin/tool", 0o755), ("keep/text", 0o644), ("other/text", 0o644)):
                entry = zipfile.ZipInfo(name)
                entry.external_attr = (0o100000 | mode) << 16
                wheel.writestr(entry, name)


def test_fetch(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Pip.write(tmp_path / "a.whl")
    digest = hashlib.sha256((tmp_path / "a.whl").read_bytes()).hexdigest()
    pip = Pip()
    monkeypatch.setattr(script.subprocess, "run", pip)
    target = tmp_path / "out" / "a"
    wheels = (script.Wheel("a==1", digest, ("keep/",)),)
    script.fetch(wheels, target)
    files = sorted(str(f.relative_to(target)) for f in target.rglob("*") if f.is_file())
    assert files == [".complete", "keep/bin/tool", "keep/text"]
    assert (target / "keep/bin/tool").stat().st_mode & 0o111  # a program stays one
    assert list(target.parent.iterdir()) == [target]  # nothing of the work is left

    script.fetch(wheels, target)
    assert pip.calls == ["a==1"]  # there already
    (target / ".complete").unlink()
    script.fetch(wheels, target)
    assert pip.calls == ["a==1"] * 2


def test_another_file_or_none(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = (script.Wheel("a==1", "0" * 64, ("keep/",)),)
    monkeypatch.setattr(script.subprocess, "run", Pip())
    with pytest.raises(SystemExit, match="a==1 is not the file it was"):
        script.fetch(wheels, tmp_path / "out" / "a")
    monkeypatch.setattr(script.subprocess, "run", Pip(status=1))
    with pytest.raises(SystemExit, match="pip could not download a==1"):
        script.fetch(wheels, tmp_path / "out" / "a")
    assert list((tmp_path / "out").iterdir()) == []


def test_everything_is_pinned(script: ModuleType) -> None:
    for wheel in (script.HEADERS, script.LEAN, *script.NVCC):
        assert "==" in wheel.requirement
        assert len(bytes.fromhex(wheel.sha256)) == 32
