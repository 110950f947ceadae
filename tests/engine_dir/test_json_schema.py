"""The JSON Schema of ``config.json`` says of any file what the reader says: right form or wrong form."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trtprune
from tests.kit import tiny, tiny_files
from trtprune.engine_dir import EngineDir
from trtprune.engine_dir.json_dataclasses import DecodeError, decode
from trtprune.engine_dir.json_schema import json_schema

FILE = Path(trtprune.__file__).parent / "engine_dir" / "config.schema.json"
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([0.5, -1.25, 1 << 62]),
    st.text(max_size=3),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.sampled_from(["a", "model", "name"]), st.integers(0, 3), max_size=2),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("schema")
    trtprune.build(
        str(tiny_files.complete(folder / "model", tiny.Tiny(layers=5))), folder / "out", method="fastv", keep=12
    )
    found: dict[str, Any] = json.loads((folder / "out" / "config.json").read_text())
    return found


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a JSON value."""
    inside: list[tuple[Any, ...]] = [path]
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        inside += places(child, (*path, key))
    return inside


def decodes(data: Any) -> bool:
    try:
        decode(EngineDir, data)
    except DecodeError:
        return False
    return True


def test_the_file_is_the_schema() -> None:
    command = "python -m trtprune.engine_dir.json_schema"
    assert json.loads(FILE.read_text(encoding="utf-8")) == SCHEMA, f"{command} > {FILE}"


def test_it_is_a_schema_and_a_build_follows_it(config: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(config)


@given(st.data())
def test_it_agrees_with_the_reader(config: dict[str, Any], data: st.DataObject) -> None:
    """A value replaced, removed or added anywhere."""
    changed = copy.deepcopy(config)
    known = [place for place in places(config) if place and place != ("schema_version",)]
    *path, key = data.draw(st.sampled_from(known))
    owner: Any = changed
    for step in path:
        owner = owner[step]
    action = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if action == "replace":
        owner[key] = data.draw(VALUES)
    elif action == "remove":
        del owner[key]
    elif isinstance(owner, dict):
        owner["unknown"] = data.draw(VALUES)
    else:
        owner.append(data.draw(VALUES))
    assert VALIDATOR.is_valid(changed) == decodes(changed), (path, key, action)
