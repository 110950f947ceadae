"""Who includes whom in ``cpp/``: the floors of docs/architecture.md, and no circle."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

CPP = Path(__file__).parents[2] / "cpp"
FLOORS = (
    {"c_api"},
    {"vlm.cpp"},
    {"runtime"},
    {"image.cpp", "backend", "images", "text"},
    {"engine_dir"},
    {"arguments.hpp", "arguments.cpp", "error.cpp", "files", "schedule.hpp", "schedule.cpp"}
    | {"together.hpp", "together.cpp"},
)
"""Folders and files of ``cpp/src/``, from the top."""

FACTS = {"text/info.hpp": "engine_dir", "backend/tensor_names.hpp": "files"}
"""Headers of constants and plain structs, which count as a lower folder."""


def included(file: Path) -> list[str]:
    """Headers of ``cpp/src/`` that a file names."""
    return re.findall(r'^#include "([^"]+)"', file.read_text(), re.MULTILINE)


def room(path: str) -> str:
    """The folder, or file outside of folders, of a path relative to ``cpp/src/``."""
    return FACTS.get(path, path.split("/")[0])


def floor(path: str) -> int:
    """The floor of a path relative to ``cpp/src/``."""
    (number,) = (number for number, rooms in enumerate(FLOORS) if room(path) in rooms)
    return number


def test_a_folder_includes_lower_floors() -> None:
    """Folders on one floor do not know each other, but for those at the bottom."""
    wrong = []
    for file in sorted((CPP / "src").rglob("*.[ch]pp")):
        name = str(file.relative_to(CPP / "src"))
        for header in included(file):
            assert (CPP / "src" / header).is_file(), f'{name}: "{header}" is not relative to cpp/src'
            own, other = floor(name), floor(header)
            neighbours = room(header) != room(name) and own < len(FLOORS) - 1
            if other < own or (other == own and neighbours and name != "image.cpp"):
                wrong.append(f"{name} includes {header}")
    assert wrong == []


def test_no_circle() -> None:
    headers = {str(file.relative_to(CPP / "src")): included(file) for file in (CPP / "src").rglob("*.hpp")}
    list(TopologicalSorter(headers).static_order())


def test_public_headers_include_nothing_private() -> None:
    for file in (CPP / "include/trtprune").iterdir():
        assert included(file) == [], file
        for header in re.findall(r"^#include <([^>]+)>", file.read_text(), re.MULTILINE):
            assert re.fullmatch(r"trtprune/\w+\.hpp|\w+(\.h)?", header), f"{file.name}: {header}"


def test_no_streams_and_no_assertions() -> None:
    """The library prints nothing, and bad input ends no process."""
    for file in (CPP / "src").rglob("*.[ch]pp"):
        text = file.read_text()
        assert not re.search(r"<iostream>|<cassert>|\bstd::c(out|err)\b|\bprintf\(|\b(abort|exit)\(", text), file
