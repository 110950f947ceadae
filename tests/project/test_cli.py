"""docs/cli.md is what the commands say, docs/environment.md names what the code reads."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from trtprune.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
ENVIRONMENT = (ROOT / "docs/environment.md").read_text(encoding="utf-8")
# The release whose way to write ranges and lists of choices the page has.
CLICK = re.search(r"^click==(\S+)", (ROOT / "docker/constraints.txt").read_text(), re.MULTILINE)


def test_the_page_is_current() -> None:
    assert CLICK is not None
    if importlib.metadata.version("click") != CLICK[1]:
        pytest.skip(f"help is written a little differently by each release of click; the page's is {CLICK[1]}")
    done = subprocess.run(
        [sys.executable, ROOT / "docs/write_cli.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_command_and_option_is_on_the_page() -> None:
    for name, command in main.commands.items():
        [section] = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name not in ("verbose", "quiet", "log_file"):
                assert any(spelling in section for spelling in parameter.opts), (name, parameter.opts)


def test_every_variable_that_is_read_is_named() -> None:
    read = set()
    for path in (ROOT / "trtprune").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        read |= set(re.findall(r"environ(?:\.get\(|\[|\.setdefault\()\"([A-Z_]+)\"", text))
        read |= set(re.findall(r"env\.get\(\"([A-Z_]+)\"\)", text))
        read |= set(re.findall(r"\b(TRTPRUNE_[A-Z_]+)\b", text))
    for path in (ROOT / "cpp" / "src").rglob("*.cpp"):
        read |= set(re.findall(r"\"(TRTPRUNE_[A-Z_]+)\"", path.read_text(encoding="utf-8")))
    assert {"TRTPRUNE_CACHE", "PIP_INDEX_URL", "UV_INDEX", "TRTPRUNE_ONNXRUNTIME"} <= read
    # Folders that systems name, a plain terminal, and what environments say of themselves.
    own = {"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME", "XDG_DATA_DIRS", "LOCALAPPDATA"}
    own |= {"WINDIR", "PYTHONPATH", "VIRTUAL_ENV", "TERM"}
    assert read - own <= set(re.findall(r"`([A-Z_]+)`", ENVIRONMENT))
    ours = {name for name in re.findall(r"`([A-Z_]+)`", ENVIRONMENT) if name.startswith("TRTPRUNE_")}
    assert ours <= read


def test_the_generator_writes_what_it_checks(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("write_cli", ROOT / "docs/write_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.page()
    assert text.count("\n## ") == len(main.commands)
    assert "`--methods A,B:OPTION=VALUE` (also `--method`)" in text


def test_links_lead_somewhere() -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)
