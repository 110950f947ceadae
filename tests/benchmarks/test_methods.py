"""benchmarks/bench_methods.py: its question sets, and that a stopped run is gone on with; the model is made up."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import tests.kit.bench  # noqa: F401
from trtprune.demo import scenes
from trtprune.errors import BudgetError

import bench_methods  # isort: skip
from bench_methods import BLIND, FIRST_SCENE, Item, main  # isort: skip


def test_scene_questions_ask_about_what_their_set_says() -> None:
    items = bench_methods.scene_items(25)
    kinds, seen = set(), 0
    for number in range(40):
        scene = scenes.generate(FIRST_SCENE + number, split="test")
        for item in (i for i in items if i.image.tobytes() == scene.image.tobytes()):
            (question,) = [q for q in scene.questions if (q.text, q.answer) == (item.question, item.answer)]
            (about,) = [scene.objects[i] for i in question.about]
            largest = about.radius == max(o.radius for o in scene.objects)
            assert item.set == ("large" if largest else "small")
            kinds.add((item.set, question.kind))
            seen += 1
    assert seen == len(items) == 50
    assert kinds == {(s, k) for s in ("large", "small") for k in ("color", "shape", "position")}
    fewer = [i.question for i in bench_methods.scene_items(5) if i.set == "small"]
    assert fewer == [i.question for i in items if i.set == "small"][:5]


def test_easy_questions_are_open_ones_of_the_test_split() -> None:
    easy_vqa = pytest.importorskip("easy_vqa")
    wanted = {(q, a) for q, a, _ in zip(*easy_vqa.get_test_questions(), strict=True)}
    items = bench_methods.easy_items(40)
    assert len(items) == 40
    assert all((i.question, i.answer) in wanted and i.answer not in ("yes", "no") for i in items)


class FakeBuild:
    """Right with probability by method; knows the answer, so a wrong picture is seen only through ``features``."""

    asked: list[tuple[str, str, int]] = []  # noqa: RUF012
    stop_after: int | None = None

    def __init__(self, method: str, folder: Path) -> None:
        def check_keep(keep: int) -> None:
            if method == "narrow" and keep < 100:
                raise BudgetError("--keep: outside")

        self.method, self.name, self.vision = method, f"{method} fake=1", "sha256:same"
        model = SimpleNamespace(digest="sha256:model")
        self.vlm = SimpleNamespace(check_keep=check_keep, config=SimpleNamespace(model=model))

    def look(self, image: Image.Image) -> Any:
        return image.getpixel((0, 0))

    def answer(self, features: Any, item: Item, keep: int) -> str:
        if FakeBuild.stop_after is not None and len(FakeBuild.asked) >= FakeBuild.stop_after:
            raise KeyboardInterrupt
        FakeBuild.asked.append((self.method, item.question, keep))
        if self.method == "blind" and int(item.question) % 2:
            return "something else"
        return str(features[0])  # what the picture shows

    def time(self, image: Image.Image, question: str, keep: int) -> tuple[float, float, int]:
        return 100.0 + keep, 2.0, 1000 * keep

    def operations(self, keep: int) -> float:
        return float(keep)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeBuild]:
    def items(name: str, count: int) -> list[Item]:
        return [Item(name, Image.new("RGB", (2, 2), (i, 0, 0)), str(i), str(i)) for i in range(count)]

    monkeypatch.setattr(bench_methods, "Build", FakeBuild)
    monkeypatch.setattr(bench_methods, "easy_items", lambda count: items("easy", count))
    monkeypatch.setattr(bench_methods, "scene_items", lambda count: items("small", count) + items("large", count))
    monkeypatch.setattr(bench_methods, "SAVE_EVERY", 1)
    monkeypatch.setattr(FakeBuild, "asked", [])
    monkeypatch.setattr(FakeBuild, "stop_after", None)
    return FakeBuild


ARGUMENTS = ["--questions", "8", "--keep", "128,64", "--methods", "sharp,blind,narrow", "--rounds", "2"]


def test_two_parts_make_one_file(fake: type[FakeBuild], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "methods.json"
    main([*ARGUMENTS, "--accuracy-only", "--json", str(out)])
    first = json.loads(out.read_text())
    assert "first_token_ms" not in first["rows"][0]
    main([*ARGUMENTS, "--timing-only", "--json", str(out)])
    assert "narrow 64: left out" in capsys.readouterr().out
    result = json.loads(out.read_text())
    table = {(row["method"], row["keep"]): row for row in result["rows"]}
    assert list(table) == [
        ("none fake=1", 576), (BLIND, 576), ("sharp fake=1", 128), ("blind fake=1", 128), ("narrow fake=1", 128),
        ("sharp fake=1", 64), ("blind fake=1", 64),
    ]  # fmt: skip
    for (name, keep), row in table.items():
        if name != BLIND:
            assert (row["first_token_ms"], row["kv_cache_bytes"]) == (100 + keep, 1000 * keep)
            assert len(row["first_token_ms_all"]) == 2
    right = {entry: {s: v["right"] for s, v in row["accuracy"].items()} for entry, row in table.items()}
    assert right["none fake=1", 576] == right["sharp fake=1", 64] == {"easy": 8, "large": 8, "small": 8}
    assert right["blind fake=1", 64] == {"easy": 4, "large": 4, "small": 4}
    assert right[BLIND, 576] == {"easy": 0, "large": 0, "small": 0}
    broken = table["blind fake=1", 64]["accuracy"]["small"]
    # Four of eight broken, none repaired: 2 · (1/2)^4. Wilson's interval of 4 in 8 is symmetric about a half.
    assert (broken["broken"], broken["repaired"], broken["mcnemar_p"]) == (4, 0, pytest.approx(0.125))
    assert broken["low"] + broken["high"] == pytest.approx(1, abs=2e-4)
    assert "command" not in result  # each part says its own
    assert "--accuracy-only" in result["accuracy_command"]
    assert "--timing-only" in result["timing_command"]


def test_a_killed_run_is_gone_on_with(fake: type[FakeBuild], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = tmp_path / "whole.json", tmp_path / "part.json"
    main([*ARGUMENTS, "--accuracy-only", "--json", str(whole)])
    asked, fake.asked = sorted(fake.asked), []
    monkeypatch.setattr(fake, "stop_after", 30)  # in the middle of a question
    with pytest.raises(KeyboardInterrupt):
        main([*ARGUMENTS, "--accuracy-only", "--json", str(out)])
    held = json.loads(out.read_text())["marks"]
    assert {len(marks) for marks in held.values()} == {30 // 7}
    fake.asked, kept = [], list(fake.asked[: 7 * (30 // 7)])
    monkeypatch.setattr(fake, "stop_after", None)
    main([*ARGUMENTS, "--accuracy-only", "--json", str(out)])
    assert json.loads(out.read_text())["marks"] == json.loads(whole.read_text())["marks"]
    assert sorted(kept + fake.asked) == asked


def test_no_time_left_leaves_like_beside_like(fake: type[FakeBuild], tmp_path: Path) -> None:
    out = tmp_path / "methods.json"
    main([*ARGUMENTS, "--accuracy-only", "--max-minutes", "0", "--json", str(out)])
    assert set(json.loads(out.read_text())["marks"].values()) == {""}


def test_a_file_of_another_run_is_refused(fake: type[FakeBuild], tmp_path: Path) -> None:
    out = tmp_path / "methods.json"
    main([*ARGUMENTS, "--accuracy-only", "--json", str(out)])
    with pytest.raises(SystemExit, match="another --json"):
        main([*ARGUMENTS[:-6], "--keep", "32", *ARGUMENTS[4:], "--timing-only", "--json", str(out)])
