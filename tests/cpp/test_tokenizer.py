"""The C++ tokenizer beside Hugging Face ``tokenizers``: ids, places and decoded text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.kit.tokenizer_styles import PARTS, STYLES, content, hard_text

Driver = Callable[[list[Any]], list[Any]]
COUNT = 400
POINTS = [point for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]


@pytest.fixture(scope="module")
def run(driver: Callable[[str], Driver]) -> Driver:
    return driver("tokenizer")


def save(path: Path, text: str) -> dict[str, str]:
    """Writes a tokenizer.json; returns the command that opens it."""
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(text)
    return {"open": str(path / "tokenizer.json")}


def expected(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    encoding = tokenizer.encode(text)
    return {"ids": encoding.ids, "offsets": [list(offsets) for offsets in encoding.offsets]}


def compare(run: Driver, opening: Any, tokenizer: Tokenizer, texts: list[str], random: Random) -> None:
    """Ids and places of texts, texts of their ids, and texts of random ids."""
    size = tokenizer.get_vocab_size()
    rows = [tokenizer.encode(text).ids for text in texts]
    rows += [[random.randrange(size + 3) for _ in range(random.randrange(12))] for _ in texts]
    commands = [{"encode": text} for text in texts] + [{"decode": ids, "skip": i % 2} for i, ids in enumerate(rows)]
    for command in commands:
        command["skip"] = bool(command.get("skip"))
    answers = run([opening, *commands])[1:]
    for text, answer in zip(texts, answers, strict=False):
        assert answer == expected(tokenizer, text), repr(text)
    for command, answer in zip(commands[len(texts) :], answers[len(texts) :], strict=True):
        text = tokenizer.decode(command["decode"], skip_special_tokens=command["skip"])
        assert answer == {"text": text}, command


@pytest.mark.parametrize("style", STYLES)
def test_styles(run: Driver, tmp_path: Path, style: str) -> None:
    random = Random(style)
    texts = ["", *PARTS, *(hard_text(random) for _ in range(COUNT))]
    compare(run, save(tmp_path, content(style)), Tokenizer.from_str(content(style)), texts, random)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_styles_at_length(run: Driver, tmp_path: Path, style: str) -> None:
    tokenizer = Tokenizer.from_str(content(style))
    opening = save(tmp_path, content(style))
    for seed in range(10):
        random = Random(f"{style} {seed}")
        compare(run, opening, tokenizer, [hard_text(random) for _ in range(2000)], random)
