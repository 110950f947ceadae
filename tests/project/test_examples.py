"""The examples run as their first lines say, and print what the library answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trtprune
from tests.kit.runtime_kit import picture
from tests.kit.tiny import Tiny
from tests.kit.tiny_files import complete

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    trtprune.build(complete(folder / "model", Tiny()), folder / "out", keep=5)
    picture().save(folder / "out.png")
    return folder / "out"


def embed(*arguments: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, EXAMPLES / "embed_in_python.py", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_embed_in_python(engine: Path) -> None:
    image, limit = engine.with_suffix(".png"), 5
    done = embed(engine, image, "what", "is it", "--max-new-tokens", limit)
    assert done.returncode == 0, done.stderr
    vlm = trtprune.load(engine)
    lines = done.stdout.splitlines()
    for line, keep in zip(lines, (1, 5, 16), strict=False):
        text = vlm.generate(str(image), "what", keep=keep, max_new_tokens=limit).text
        assert line.startswith(f"keep {keep} of 16: {text!r}, first token after ")
    result = vlm.generate(str(image), "what", max_new_tokens=limit)
    assert lines[3] == f"streamed: {result.text} [{len(result.token_ids)} tokens, {result.finish_reason}]"
    chat = vlm.chat(str(image))
    for line, question in zip(lines[4:], ("what", "is it"), strict=True):
        assert line == f"{question} -> {chat.ask(question, max_new_tokens=limit).text}"


def test_embed_in_python_says_what_is_wrong(engine: Path, tmp_path: Path) -> None:
    for directory, image, name in ((tmp_path / "gone", "a.png", "gone"), (engine, tmp_path / "no.png", "no.png")):
        done = embed(directory, image, "what")
        assert done.returncode == 1
        assert done.stdout == ""
        [line] = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert name in line


WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
sys.argv[:] = sys.argv[2:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
(runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module)(sys.argv[0], run_name="__main__")
"""
SCRIPTS = sorted(str(p) for p in (EXAMPLES / "demo_training").glob("*.py") if '"__main__":' in p.read_text())


@pytest.mark.parametrize("script", [*SCRIPTS, "trtprune.eval.lmms"], ids=lambda s: s.rpartition("/")[2])
def test_scripts_without_what_they_need(script: str) -> None:
    """``--help`` is help, and anything else one line, where torch or lmms-eval is missing."""
    missing = "torch,transformers,safetensors,lmms_eval.api.model"
    words = [sys.executable, "-c", WITHOUT, missing, script]
    helped = subprocess.run([*words, "--help"], capture_output=True, text=True, check=False)
    assert "Traceback" not in helped.stderr
    assert len(helped.stdout.splitlines()) > 3
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
