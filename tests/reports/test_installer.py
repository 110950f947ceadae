"""The commands that doctor and hints propose: those of the program that made the environment, and they are right."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from trtprune.doctor.gpu_checks import engine_checks
from trtprune.reports import installer
from trtprune.reports.installer import to_install, to_uninstall

ROOT = Path(__file__).parents[2]
detect = installer.installed_by
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prefix with nothing in it, detected for real."""
    monkeypatch.setattr(installer, "installed_by", detect)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    return tmp_path


def installer_file(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    class Distribution:
        def read_text(self, name: str) -> str:
            return text

    monkeypatch.setattr(installer.importlib.metadata, "distribution", lambda name: Distribution())


def test_pip(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer.importlib.util, "find_spec", lambda name: object())
    installer_file(monkeypatch, "pip\n")
    assert detect() == "pip"
    assert to_install(extra="cpu") == "pip install 'trtprune[cpu]'"
    assert to_install("onnx>=1.20", upgrade=True) == "pip install -U 'onnx>=1.20'"
    assert to_install("onnxruntime", again=True) == "pip install --force-reinstall --no-deps onnxruntime"
    assert to_uninstall("a", "b") == "pip uninstall -y a b"


def test_an_environment_of_uvs(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installer_file(monkeypatch, "uv\n")
    assert detect() == "uv"
    python = shlex.quote(f"{environment}/bin/python")
    assert to_install(extra="plot") == f"uv pip install --python {python} 'trtprune[plot]'"
    monkeypatch.setenv("VIRTUAL_ENV", str(environment))
    assert to_install("gguf") == "uv pip install gguf"
    assert to_uninstall("onnxruntime") == "uv pip uninstall onnxruntime"


def test_no_pip_means_uv(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installer_file(monkeypatch, "")
    monkeypatch.setattr(installer.importlib.util, "find_spec", lambda name: None)
    assert detect() == "uv"


def test_pipx_gets_the_packages_of_an_extra(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name: pipx would look for trtprune itself on an index."""
    (environment / "pipx_metadata.json").write_text("{}")
    monkeypatch.setattr(
        installer.importlib.metadata,
        "requires",
        lambda name: [f"{text} ; extra == '{extra}'" for extra, texts in EXTRAS.items() for text in texts],
    )
    assert detect() == "pipx"
    words = shlex.split(to_install(extra="compare"))
    assert words[:3] == ["pipx", "inject", "trtprune"]
    assert {Requirement(word).name for word in words[3:]} == {"polygraphy", "matplotlib"}
    assert shlex.split(to_install("trtprune[cpu]"))[3:] == EXTRAS["cpu"]
    assert to_uninstall("onnxruntime") == "pipx uninject trtprune onnxruntime"


def receipt(environment: Path, *requirements: str) -> None:
    text = "[tool]\nrequirements = [" + ", ".join(requirements) + "]\n"
    (environment / "uv-receipt.toml").write_text(text)


def test_a_tool_of_uvs_keeps_what_it_had(environment: Path) -> None:
    receipt(
        environment,
        '{ name = "trtprune", extras = ["cpu"], path = "/w/trtprune-0.1-py3-none-any.whl" }',
        '{ name = "easy-vqa", specifier = "==1.0" }',
    )
    assert detect() == "uv tool"
    source = "file:///w/trtprune-0.1-py3-none-any.whl"
    assert shlex.split(to_install(extra="plot")) == [
        "uv", "tool", "install", f"trtprune[cpu,plot] @ {source}", "--with", "easy-vqa==1.0",
    ]  # fmt: skip
    assert shlex.split(to_install("gguf"))[3:] == [
        f"trtprune[cpu] @ {source}", "--with", "easy-vqa==1.0", "--with", "gguf",
    ]  # fmt: skip
    # The two wheels of ONNX Runtime exclude each other.
    assert "trtprune[cuda] @" in to_install(extra="cuda")
    assert "trtprune[cpu,openvino] @" in to_install(extra="openvino")
    receipt(environment, '{ name = "trtprune" }')
    assert to_install(extra="cpu") == "uv tool install 'trtprune[cpu]'"
    (environment / "uv-receipt.toml").write_text("not toml [")
    assert to_install(extra="cpu") == "uv tool install 'trtprune[cpu]'"


def test_every_extra_that_is_named_exists() -> None:
    import re

    for path in (ROOT / "trtprune").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "pip install -" not in text or path.name == "_installer.py", path
        named = re.findall(r"extra=[\"']([a-z-]+)[\"']", text) + re.findall(r"trtprune\[([a-z-]+)\]\"", text)
        assert set(named) <= EXTRAS.keys(), path


def test_the_metadata_of_this_installation_is_read() -> None:
    """Markers as setuptools writes them."""
    found = {Requirement(text).name for text in installer._packages_of("openvino")}
    lines = [Requirement(text) for text in importlib.metadata.requires("trtprune") or []]
    wanted = {r.name for r in lines if r.marker and r.marker.evaluate({"extra": "openvino"})}
    assert found == wanted == {"onnxruntime", "openvino"}


def test_a_wheel_has_no_sources_of_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from trtprune.doctor import gpu_checks

    tried: dict[str, dict[str, Any]] = {"plugins": {"ok": True, "text": "two operators"}}

    def plugins() -> Any:
        return next(c for c in engine_checks(tried, [], lambda name: None) if c.name == "plugins")

    assert "cmake -S " in plugins().fix
    monkeypatch.setattr(gpu_checks, "SOURCES", tmp_path / "plugins")
    assert plugins().fix is None
    assert "plugins/ of trtprune's sources" in plugins().enables


def test_a_missing_module_names_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from trtprune import cli\n"
        "cli.main.commands['models'].callback = lambda **_: __import__('onnxruntime')\n"
        "cli.main(['models'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error == "error: onnxruntime is not installed, and this command needs it"
    assert "trtprune[cpu]" in hint
    assert "container" not in hint


def test_doctor_knows_what_is_optional() -> None:
    from trtprune.doctor import examine

    report = json.loads(json.dumps(examine().to_json()))
    names = {check["name"] for check in report["checks"]}
    assert {"matplotlib", "polygraphy", "torch", "transformers", "demo cache", "model cache", "trtprune"} <= names
