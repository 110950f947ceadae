"""Settings that are asked for as one object: its keywords in Python, and the flags that set it, are its fields."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, get_type_hints

import pytest

from trtprune.backends.running import Running
from trtprune.bench.settings import BenchSettings
from trtprune.compare.settings import CompareKeywords, CompareSettings
from trtprune.compiler.request import BuildRequest, BuildSettings
from trtprune.eval.settings import EvalKeywords, EvalSettings

KINDS = [BuildRequest, EvalSettings, CompareSettings, BenchSettings, Running]


def names_of(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("kind", "keywords", "others"),
    [
        (BuildRequest, BuildSettings, {"model", "output"}),
        (EvalSettings, EvalKeywords, set()),
        (CompareSettings, CompareKeywords, set()),
    ],
)
def test_keywords_are_the_fields(kind: Any, keywords: Any, others: set[str]) -> None:
    fields = get_type_hints(kind)
    assert {name: fields[name] for name in names_of(kind) - others} == get_type_hints(keywords)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described(kind: Any) -> None:
    described = [line for line in (inspect.getdoc(kind) or "").splitlines() if line.startswith("    ")]
    listed = {name.strip() for line in described if ": " in line for name in line.split(": ")[0].split(",")}
    assert names_of(kind) <= listed


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_changed_behind_the_back(kind: Any) -> None:
    given = {"model": "demo", "output": "out"} if kind is BuildRequest else {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(**given), dataclasses.fields(kind)[0].name, None)


@pytest.mark.parametrize(
    ("command", "kind", "elsewhere"),
    [
        ("build", BuildRequest, {"engine", "export_only"}),
        ("export", BuildRequest, {"engine", "export_only"}),
        ("eval", EvalSettings, set()),
        ("bench", BenchSettings, {"running"}),
        ("compare", CompareSettings, {"draw", "question", "tolerance", "running"}),
        ("run", Running, set()),
        ("chat", Running, set()),
        ("show", Running, set()),
        ("bench", Running, set()),
        ("compare", Running, set()),
    ],
)
def test_a_flag_for_every_field(command: str, kind: Any, elsewhere: set[str]) -> None:
    """A field that no flag reaches would be out of reach of who types."""
    from trtprune.cli import main

    assert names_of(kind) - {parameter.name for parameter in main.commands[command].params} == elsewhere
