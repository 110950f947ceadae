"""``eval`` and ``bench`` with methods that read CLIP's text, and with engines of other methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import trtprune
from tests.kit import tiny
from tests.kit.clip_kit import ClipKit
from tests.kit.runtime_kit import Kit, picture
from trtprune.cli import main

CLIP_METHODS = ("cdpruner", "trim")
QUESTIONS = ("What is on the mat ?", "Where is the cat ?", "Is it the hat ?")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build without CLIP, one with, the CLIP of its tower and one of another, questions."""
    place = tmp_path_factory.mktemp("clip-zoo")
    kit = Kit.make(place / "llava", tiny.Tiny(seed=43, layers=2))
    tower = kit.model.model.vision_tower
    ClipKit.make(place / "clip", kit.tiny, tower)
    ClipKit.make(place / "clip2", kit.tiny, tower, seed=8)
    ClipKit.make(place / "foreign", tiny.Tiny(seed=43, layers=2, vision_hidden=16), None)
    trtprune.build(str(kit.path), place / "out", method="fastervlm", keep=5)
    trtprune.build(str(kit.path), place / "with-clip", method="fastervlm", keep=5, clip=place / "clip")
    for name in CLIP_METHODS:
        trtprune.build(str(kit.path), place / name, method=name, keep=5, clip=place / "clip")
    lines = []
    for number in range(6):
        picture(number % 3).save(place / f"{number % 3}.png")
        row = {"image": f"{number % 3}.png", "question": QUESTIONS[number // 2], "answer": "nothing"}
        lines.append(json.dumps({"id": f"q{number}", **row}))
    (place / "questions.jsonl").write_text("\n".join(lines))
    return place


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def command(*words: Any) -> tuple[int, str, str]:
    found = CliRunner().invoke(main, [str(word) for word in words])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stdout, found.stderr


def ask(out: str, folder: Path, *words: Any) -> tuple[int, str, str]:
    given = ("--keep", 4, "--max-new-tokens", 4, "--threads", 1, "--no-plot", "-o", folder)
    return command("eval", out, "--data", "questions.jsonl", *given, *words)


def answers(folder: Path) -> dict[tuple[str, str], str]:
    lines = (folder / "results.jsonl").read_text().splitlines()[1:]
    return {(one["method"], one["id"]): one["answer"] for one in map(json.loads, lines)}


@pytest.mark.parametrize(
    ("out", "how"),
    [
        ("out", ("--clip", "clip")),
        ("with-clip", ()),
        ("out", ("--with", "cdpruner", "--with", "trim")),
    ],
    ids=["eval --clip", "build --clip", "--with"],
)
def test_answers_are_those_of_builds_with_clip(out: str, how: tuple[str, ...], tmp_path: Path) -> None:
    code, _, log = ask(out, tmp_path / "got", "--methods", ",".join(CLIP_METHODS), *how)
    assert code == 0, log
    expected = {}
    for name in ("none", *CLIP_METHODS):
        vlm = trtprune.load(name if name in CLIP_METHODS else "with-clip", threads=1)
        for number in range(6):
            keep = 4 if name in CLIP_METHODS else 16
            said = vlm.generate(f"{number % 3}.png", QUESTIONS[number // 2], keep=keep, max_new_tokens=4)
            expected[name, f"q{number}"] = said.text
    assert answers(tmp_path / "got") == expected


def test_without_clip_the_hint_is_a_flag_of_the_command(tmp_path: Path) -> None:
    for words in (["eval", "out", "--data", "questions.jsonl", "-o", tmp_path / "x"], ["bench", "out"]):
        code, _, log = command(*words, "--methods", "cdpruner", "--keep", 4)
        assert code == 1
        assert "CLIP's text tower" in log
        assert "--clip CHECKPOINT" in log
        assert "--clip" in command(words[0], "--help")[1]
    assert not (tmp_path / "x" / "results.jsonl").exists()


def test_answers_with_another_clip_are_not_mixed(tmp_path: Path) -> None:
    assert ask("out", tmp_path, "--methods", "cdpruner", "--clip", "clip")[0] == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    for words in (["--clip", "clip2"], ["--with", "cdpruner"]):
        code, _, log = ask("out", tmp_path, "--methods", "cdpruner", *words)
        assert code == 1
        assert "given with another clip" in log
    assert (tmp_path / "results.jsonl").read_bytes() == before
    code, _, log = ask("out", tmp_path, "--methods", "cdpruner,trim,fastervlm", "--clip", "clip")
    assert code == 0, log
    assert "24 answers, 12 of them there already" in log


def test_a_clip_of_another_tower_is_refused(tmp_path: Path) -> None:
    for words in (
        ["eval", "out", "--data", "questions.jsonl", "-o", tmp_path / "x"],
        ["bench", "out", "--no-memory"],
    ):
        code, _, log = command(*words, "--methods", "trim", "--keep", 4, "--clip", "foreign")
        assert code == 1
        assert "--clip foreign" in log
    assert not (tmp_path / "x" / "results.jsonl").exists()


def test_all_takes_them_in(tmp_path: Path) -> None:
    code, _, log = ask("out", tmp_path / "got", "--methods", "all", "--clip", "clip", "--limit", 1)
    assert code == 0, log
    assert {method for method, _ in answers(tmp_path / "got")} >= {*CLIP_METHODS, "mmtok", "adafv", "none"}
    code, _, log = ask("out", tmp_path / "less", "--methods", "all", "--limit", 1)
    assert code == 0, log
    assert not {method for method, _ in answers(tmp_path / "less")} & {*CLIP_METHODS}
    assert all(f"left out  {name}: " in log for name in CLIP_METHODS)


@pytest.mark.parametrize("how", [("--clip", "clip"), ("--with", "cdpruner", "--with", "trim")])
def test_bench(how: tuple[str, ...], tmp_path: Path) -> None:
    code, _, log = command(
        "bench", "out", "--methods", ",".join(CLIP_METHODS), "--keep", 4, "--rounds", 1, "--warmup", 1,
        "--max-new-tokens", 2, "--no-memory", "--threads", 1, "--json", tmp_path / "b.json", *how,
    )  # fmt: skip
    assert code == 0, log
    rows = {row["method"]: row for row in json.loads((tmp_path / "b.json").read_text())["rows"]}
    assert set(rows) == {"none", *CLIP_METHODS}
    for name in CLIP_METHODS:
        # The text tower runs once for every question, and its work counts.
        assert rows[name]["flops"]["clip_text"] > 0
        assert rows[name]["bytes"]["clip_text"]["weights"] > 0
    assert "clip_text" not in rows["none"]["flops"]
