"""The walls between rooms of ``[tool.importlinter]`` in pyproject.toml: they stand, and a broken one is seen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter's command line, on the package that lies in ``root``."""
    code = "import sys; from importlinter.cli import lint_imports_command as main; main(['--no-cache', '--no-logo'])"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "trtprune", tmp_path / "trtprune", ignore=lambda _, names: [n for n in names if n == "data"])
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_walls_stand() -> None:
    run = lint(ROOT)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("checkpoint/hub.py", "from trtprune.cli.console import echo", "nothing imports the command line"),
        ("runtime/prompt.py", "from trtprune.models.llava import Llava", "no model family and no pruning"),
        ("runtime/layout.py", "from trtprune.pruning import methods", "no model family and no pruning"),
        ("bench/cells.py", "import trtprune.eval.rows", "rooms of lower floors only"),
        ("files/reading.py", "def late():\n    from trtprune.engine_dir import open_engine_dir", "lower floors only"),
        ("pruning/methods/dart.py", "from trtprune.pruning.methods import mmr", "no pruning method imports another"),
        ("pruning/base.py", "from trtprune.pruning.methods.dart import Dart", "no circle of imports"),
        ("compiler/plan.py", "import torch", "torch and transformers"),
    ],
)
def test_a_broken_wall_is_seen(copy: Path, file: str, line: str, contract: str) -> None:
    path = copy / "trtprune" / file
    path.write_text(path.read_text() + f"\n{line}\n")
    run = lint(copy)
    assert run.returncode == 1
    report = " ".join(run.stdout.split())
    broken = report.partition("Broken contracts")[2]
    assert contract in broken
    assert file.removesuffix(".py").replace("/", ".") in broken


def test_an_exception_that_is_not_needed_is_an_error(copy: Path) -> None:
    rules = copy / "pyproject.toml"
    text = rules.read_text()
    ancestors = 'ancestors = ["trtprune"]\n'
    assert text.count(ancestors) == 1
    rules.write_text(text.replace(ancestors, f'{ancestors}ignore_imports = ["trtprune.show -> trtprune.bench"]\n'))
    run = lint(copy)
    assert run.returncode == 1
    assert "No matches for ignored import" in run.stdout + run.stderr


def test_the_architecture_page_has_the_same_floors() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [floors] = [rule["layers"] for rule in rules if rule["id"] == "floors"]
    page = (ROOT / "docs" / "architecture.md").read_text().split("\n## Rooms\n")[1].split("\n## ")[0]
    table: list[set[str]] = []
    for number, room in re.findall(r"^\| ([0-9–]*) ?\| (`.*?) \|", page, re.MULTILINE):
        names = set(re.findall(r"`(\w+)(?:/|\.py)`", room))
        if number:
            table.append(set())
        table[-1] |= names
    expected = [set(floor.split(" | ")) for floor in floors]
    rooms = [floor for floor in expected if any((ROOT / "trtprune" / name).is_dir() for name in floor)]
    assert table == [*rooms, set.union(*(floor for floor in expected if floor not in rooms))]
    assert {path.name for path in (ROOT / "trtprune").iterdir() if (path / "__init__.py").exists()} < set.union(*table)
