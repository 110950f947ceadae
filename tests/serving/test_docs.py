"""docs/serving.md: its commands and programs are run, its metrics are those that the server has."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

import trtprune
from tests.kit.runtime_kit import picture
from tests.kit.serving import Served, serving
from tests.kit.tiny_files import complete

PAGE = (Path(__file__).resolve().parents[2] / "docs/serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("docs")
    trtprune.build(complete(root / "model"), root / "out", keep=6, method="adafv")
    with serving(root / "out") as found:
        yield found


def snippet(language: str, words: str, served: Served) -> str:
    """The block of the page with these words, for this server: its address, name, and a budget of its small images."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    [block] = [block for block in blocks if words in block]
    asked = {"http://127.0.0.1:8000": served.address, '"demo"': '"tiny"', '"keep": 64': '"keep": 6'}
    for text, own in asked.items():
        block = block.replace(text, own)
    return str(block)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    picture(1).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_curl(served: Served, folder: Path) -> None:
    command = snippet("sh", "/v1/chat/completions", served)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, cwd=folder)
    found = httpx.Response(200, content=done.stdout).json()
    assert found["choices"][0]["message"]["content"]
    assert found["usage"]["kept_tokens"] == 6


def test_python(served: Served, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(snippet("python", "openai.OpenAI", served), names)
    answer = names["answer"]
    assert isinstance(answer, openai.types.chat.ChatCompletion)
    assert answer.choices[0].message.content in capsys.readouterr().out


def test_metrics(served: Served) -> None:
    """The page's table and /metrics name the same ones."""
    text = httpx.get(f"{served.address}/metrics").text
    kinds = dict(re.findall(r"^# TYPE (trtprune_\w+) (\w+)$", text, re.MULTILINE))
    there = {name for name in kinds if not name.endswith("_created")}
    table = PAGE.split("\n## Watch\n")[1].split("\n## ")[0]
    named = re.findall(r"`(trtprune_\w+)(?:\{\w+\})?`", table)
    assert sorted(named) == sorted(there)
    assert {name for name, kind in kinds.items() if kind == "histogram"} == set(
        re.findall(r"trtprune_\w+_seconds", table)
    )
