"""The package as it is handed out: what sdist and wheel hold, that both install and run, and what their page says.

The interpreters and installers of the slow tests are those that ``uv`` finds here; they need a package index.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.kit.tiny import Tiny
from tests.kit.tiny_files import complete

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# What a checkout has and an sdist must have too, folders whole.
FOLDERS = ("tests", "docs", "plugins", "examples", "export_scripts", "benchmarks", "docker", "trtprune")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc", "*.whl", "build")


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without the test runner's paths."""
    names = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HF_HUB_OFFLINE")
    return {k: v for k, v in os.environ.items() if k not in names} | more


def run(*words: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked folders; building writes beside what it builds."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    copy.mkdir()
    for name in (*FOLDERS, ".ci"):
        shutil.copytree(ROOT / name, copy / name, ignore=LEFT_OUT)
    for file in (p for p in ROOT.iterdir() if p.is_file() and p.suffix != ".png"):
        shutil.copy(file, copy)
    return copy


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", checkout)
    [path] = (checkout / "dist").glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    [path] = sdist.parent.glob("*.whl")
    return path


def files_of(checkout: Path, *folders: str) -> set[str]:
    found = (path for folder in folders for path in (checkout / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(checkout)) for path in found}


def test_the_sdist_is_a_whole_checkout(checkout: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = {"Makefile", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "LICENSE", "setup.py"}
    wanted = files_of(checkout, *FOLDERS, ".ci") | files
    assert {"tests/conftest.py", "tests/kit/tiny.py", "plugins/CMakeLists.txt", "docs/methods.md"} < wanted
    assert wanted <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_wheel_is_the_package_alone(checkout: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode()
        entry_points = archive.read(next(n for n in names if n.endswith("/entry_points.txt"))).decode()
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == files_of(checkout, "trtprune")
    assert {"trtprune/py.typed", "trtprune/demo/data/trained.safetensors"} < inside
    for name, target in PROJECT["project"]["scripts"].items():
        assert f"{name} = {target}" in entry_points
    head = Parser().parsestr(metadata)
    assert head["Requires-Python"] == PROJECT["project"]["requires-python"]
    assert set(PROJECT["project"]["optional-dependencies"]) == set(head.get_all("Provides-Extra") or [])


def test_the_wheel_installs_and_builds_a_model(wheel: Path, tmp_path: Path) -> None:
    """In a new environment, with the dependencies of this one and nothing of this checkout."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    if importlib.util.find_spec("pip"):
        installer = [sys.executable, "-m", "pip", "--python", python, "install"]
    else:
        installer = [Path(sys.executable).parent / "uv", "pip", "install", "--python", python]
    run(*installer, "-q", "--no-deps", "--no-index", wheel)
    [site] = (tmp_path / "venv/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    trtprune, place = tmp_path / "venv/bin/trtprune", {"cwd": tmp_path, "env": clean_environment()}
    where = run(python, "-c", "import trtprune; print(trtprune.__file__)", **place).stdout
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    assert run(trtprune, "--help", **place).stdout.startswith("Usage: trtprune")
    model = complete(tmp_path / "model", Tiny())
    run(trtprune, "build", "--model", model, "--keep", "5", "-o", "out", **place)
    assert '"keep": 5' in run(trtprune, "inspect", "out", "--json", **place).stdout


def test_declared_versions_agree() -> None:
    project = PROJECT["project"]
    accepted = SpecifierSet(project["requires-python"])
    named = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert named == list(PYTHONS)
    assert all(accepted.contains(version) for version in PYTHONS)
    assert not accepted.contains("3.10.99")
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + PYTHONS[0].replace(".", "")
    assert PROJECT["tool"]["mypy"]["python_version"] == PYTHONS[0]
    assert f"Python {PYTHONS[0]}" in (ROOT / "README.md").read_text()


def test_no_private_module_of_a_dependency_is_imported() -> None:
    """A release may change those without a word, so none is relied on."""
    private = re.compile(r"^\s*(?:from|import)\s+(?!trtprune|_|\.)\w+(?:\.\w+)*\._\w+", re.MULTILINE)
    found = [path for path in (ROOT / "trtprune").rglob("*.py") if private.search(path.read_text(encoding="utf-8"))]
    assert not found


def test_extras_that_others_take_in() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert [Requirement(text).name for text in extras["plot"]] == ["matplotlib"]
    assert "trtprune[plot]" in extras["compare"]
    assert extras["demo"] == [], "kept for those who type it; what it held comes with every installation"
    assert any(Requirement(text).name == "gguf" for text in PROJECT["project"]["dependencies"])


@pytest.fixture(scope="module")
def setup_script() -> Any:
    spec = importlib.util.spec_from_file_location("trtprune_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def targets(markdown: str, kinds: tuple[str, ...] = ("href", "src")) -> list[str]:
    """The targets of links (``href``) and pictures (``src``), as a Markdown parser finds them."""
    found, tokens = [], list(MarkdownIt("commonmark").enable("table").parse(markdown))
    while tokens:
        token = tokens.pop(0)
        tokens[:0] = token.children or []
        found += [str(token.attrs[key]) for key in kinds if key in token.attrs]
    return found


def test_the_index_page_has_no_link_that_leads_nowhere(setup_script: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = [target for target in targets(readme) if not re.match(r"[a-z]+:|#", target)]
    assert len(relative) > 10
    for target in relative:
        assert (ROOT / target.partition("#")[0]).exists(), target
    assert all(re.match(r"[a-z]+:|#", target) for target in targets(setup_script.page(readme, "")))
    home = "https://example.org/owner/trtprune"
    page = setup_script.page(readme, home)
    absolute = [target for target in targets(page) if target.startswith(home)]
    assert [t.removeprefix(f"{home}/").split("/main/")[1] for t in absolute] == relative
    assert all(target.startswith(f"{home}/raw/") for target in targets(page, ("src",)))
    assert setup_script.urls("") == {}
    assert setup_script.urls(home)["Source"] == home


# -- real installations -----------------------------------------------------------------------------------------


def interpreter(version: str) -> str:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is not installed")
    # pyenv's shims answer for versions that are not chosen, so its folders are looked through first.
    for path in sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*")):
        return str(path / "bin/python")
    command = [uv, "python", "find", "--no-project", "--no-python-downloads", version]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no Python {version} here")
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
@pytest.mark.parametrize("installer", ["pip", "uv", "uv tool", "pipx"])
@pytest.mark.parametrize("version", PYTHONS)
def test_a_real_installation_builds_and_runs_the_demo(
    version: str, installer: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """With an index's newest packages, and no pip in the environment where the installer leaves none."""
    python, file = interpreter(version), request.getfixturevalue(kind)
    what, uv = f"trtprune[cpu] @ file://{file}", str(Path(sys.executable).parent / "uv")
    env = clean_environment(
        TRTPRUNE_CACHE=str(tmp_path / "cache"),
        UV_TOOL_DIR=str(tmp_path / "tools"),
        UV_TOOL_BIN_DIR=str(tmp_path / "bin"),
        PIPX_HOME=str(tmp_path / "pipx"),
        PIPX_BIN_DIR=str(tmp_path / "bin"),
    )
    place: dict[str, Any] = {"cwd": tmp_path, "env": env}
    if installer == "uv tool":
        run(uv, "tool", "install", "--python", python, what, **place)
    elif installer == "pipx":
        run(uv, "tool", "run", "pipx", "install", "--python", python, what, **place)
    elif installer == "uv":
        run(uv, "venv", "--python", python, tmp_path, "--allow-existing", **place)
        run(uv, "pip", "install", "--python", tmp_path / "bin/python", what, **place)
    else:
        run(python, "-m", "venv", tmp_path, **place)
        run(tmp_path / "bin/python", "-m", "pip", "install", "-q", what, **place)
    program = tmp_path / "bin/trtprune"
    run(program, "build", "--model", "demo", "--keep", "64", "-o", "out", **place)
    image = ROOT / "examples/scene.png"
    answer = run(program, "run", "out", "--image", image, "--prompt", "What color is the star?", **place)
    assert answer.stdout.strip() == "red"
    assert "no problems" in run(program, "doctor", **place).stdout


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["cpu", "cuda", "openvino", "compare", "plot", "torch", "lmms"])
@pytest.mark.parametrize("version", PYTHONS)
def test_every_extra_resolves(version: str, extra: str, wheel: Path, tmp_path: Path) -> None:
    """By the index alone; no interpreter of that version is needed for it."""
    requirements = tmp_path / "requirements.in"
    requirements.write_text(f"trtprune[{extra}] @ file://{wheel}\n")
    uv = str(Path(sys.executable).parent / "uv")
    run(uv, "pip", "compile", "-q", "--python-version", version, requirements, env=clean_environment())
