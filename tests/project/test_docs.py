"""The documentation's links lead somewhere: files, headings, and the paths that pages name in code."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "docs", "examples", "export_scripts", "plugins", "trtprune/demo/data")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
PATH = re.compile(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|json|jsonl|md|toml|cu|h|cpp|xz|png))`")
OF_A_USER = ("OUT", "DIR", "my_package")
"""First folders of paths that are examples."""


@cache
def parsed(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def links(tokens: Iterable[Token]) -> Iterator[str]:
    for token in tokens:
        yield from (str(token.attrs[key]) for key in ("href", "src") if key in token.attrs)
        yield from links(token.children or ())


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    tokens = parsed(page)
    titles = (after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open")
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in links(parsed(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in headings(target)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_named_files_are_there(page: Path) -> None:
    places = (ROOT, ROOT / "trtprune", page.parent)
    paths = {path for path in PATH.findall(page.read_text(encoding="utf-8")) if not path.startswith(OF_A_USER)}
    gone = {path for path in paths if "NAME" not in path and not any((place / path).exists() for place in places)}
    assert not gone


NAMED = re.compile(r"`(?:\w+\.)?(\w+)` (?:\(|of |in )\[?`(\w+/[\w/]+\.py)`")
"""``name`` (`folder/file.py`) or ``name`` of [`folder/file.py`], a function or class and its file."""


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_named_functions_are_in_the_named_files(page: str) -> None:
    named = NAMED.findall(re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8")))
    assert len(named) > 10
    for name, file in named:
        code = (ROOT / "trtprune" / file).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(?:def|class) {name}\b|^{name}\b.*=", code, re.MULTILINE), f"{name} in {file}"
