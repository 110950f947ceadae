"""Methods of other installed packages, and those that a program registers itself."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from trtprune import pruning
from trtprune.errors import BudgetError
from trtprune.pruning import registry

METHOD = '''
from trtprune.pruning import Method, Option


class Last(Method):
    """The last tokens."""

    name = "last"
    summary = "the last tokens of the image"
    options = (Option("step", 1, "distance between kept tokens", minimum=1, maximum=9),)

    def select(self, image_features, *, keep, step, **inputs):
        import numpy as np

        return np.sort(len(image_features) - 1 - step * np.arange(keep))


class Nameless(Method):
    """No select."""

    name = "nameless"
    summary = "nothing"


number = 3
'''
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package: files of its own, and the dist-info that names entry points."""
    pruning.all_methods()  # what is imported later would not be registered again behind the test
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    modules = {*sys.modules}

    def add(package: str, points: dict[str, str], source: str = METHOD, version: str = "1.2") -> None:
        folder = tmp_path / package
        info = folder / f"{package}-{version}.dist-info"
        info.mkdir(parents=True)
        (folder / f"{package}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        lines = "\n".join(f"{name} = {value}" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[trtprune.methods]\n{lines}\n")
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()
        registry._foreign.cache_clear()

    yield add
    monkeypatch.undo()
    registry._foreign.cache_clear()
    for name in {*sys.modules} - modules:
        if name.endswith("_package"):
            del sys.modules[name]


def test_an_installed_package_adds_a_method(install: Install) -> None:
    built_in = pruning.names()
    install("last_package", {"last": "last_package:Last"})
    assert pruning.names() == [*built_in, "last"]
    assert "last_package" not in sys.modules  # a name alone imports nothing
    method = pruning.get("last")
    assert "last_package" in sys.modules
    assert method in pruning.all_methods()
    features = np.zeros((9, 4), np.float32)
    assert method.reference(features, keep=3).tolist() == [6, 7, 8]
    assert method.reference(features, keep=3, step="2").tolist() == [4, 6, 8]
    assert "last" in pruning.names(inside=False)


def test_the_command_line_lists_it(install: Install) -> None:
    from click.testing import CliRunner

    from trtprune.cli import main

    install("last_package", {"last": "last_package:Last"})
    output = CliRunner().invoke(main, ["methods"]).output
    assert "the last tokens of the image" in output
    assert "--option step=1" in output


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ({"adafv": "bad_package:Last"}, ["called adafv", "of trtprune and of package bad_package 1.2"]),
        ({"Last One": "bad_package:Last"}, ["package bad_package 1.2", "'Last One' is no name of a method"]),
        ({"other": "bad_package:Last"}, ["other", "bad_package 1.2", "calls itself 'last'"]),
        ({"gone": "bad_package:Gone"}, ["cannot load bad_package:Gone", "AttributeError"]),
        ({"far": "far_package:Far"}, ["cannot load far_package:Far", "ModuleNotFoundError"]),
        ({"three": "bad_package:number"}, ["bad_package:number is no class of trtprune.pruning.Method"]),
        ({"nameless": "bad_package:Nameless"}, ["bad_package 1.2", "abstract method"]),
    ],
)  # fmt: skip
def test_a_package_that_does_not_fit(install: Install, points: dict[str, str], words: list[str]) -> None:
    install("bad_package", points)
    for ask in (pruning.all_methods, lambda: pruning.get(next(iter(points)))):
        with pytest.raises(BudgetError) as caught:
            ask()
        assert all(word in str(caught.value) for word in words), caught.value
        assert caught.value.hint
    if "adafv" not in points and "Last One" not in points:
        assert pruning.get("fastervlm").name == "fastervlm"  # others go on working


def test_two_packages_with_one_name(install: Install) -> None:
    install("one_package", {"last": "one_package:Last"})
    install("two_package", {"last": "two_package:Last"}, version="3")
    with pytest.raises(BudgetError, match="two methods are called last: of package") as caught:
        pruning.names()
    assert {"one_package", "two_package"} <= {*str(caught.value).replace(" 1.2", "").replace(" 3", "").split()}


def test_a_program_registers_a_method(install: Install) -> None:
    class Mine(type(pruning.get("fastervlm"))):  # type: ignore[misc]
        name = "mine"

    assert pruning.register(Mine) is Mine
    assert pruning.register(Mine) is Mine
    assert isinstance(pruning.get("mine"), Mine)
    assert pruning.names()[-1] == "mine"
    for taken in ("mine", "adafv", "hiprune"):
        other = type("Other", (Mine,), {"name": taken})
        with pytest.raises(BudgetError, match=f"two methods are called {taken}"):
            pruning.register(other)
    with pytest.raises(BudgetError, match="'My method' is no name"):
        pruning.register(type("Other", (Mine,), {"name": "My method"}))


def test_a_name_imports_one_method() -> None:
    code = (
        "import sys, trtprune.pruning as p; p.names(); p.get('divprune'); "
        "loaded = [m for m in sys.modules if m.startswith('trtprune.pruning.methods.')]; "
        "assert loaded == ['trtprune.pruning.methods.divprune'], loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_file_is_a_method() -> None:
    folder = Path(registry.__file__).parent / "methods"
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", *registry.MODULES}
