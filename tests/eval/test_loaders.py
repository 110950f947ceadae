"""The sets' own layouts, written small as their descriptions have them, and the three sets that need no download."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from trtprune.demo import scenes, signs
from trtprune.errors import InputError
from trtprune.eval.layouts import LAYOUTS
from trtprune.eval.loaders import DATA_HELP, FIRST_SCENE, load_data
from trtprune.eval.rows import Drawn
from trtprune.eval.scoring import score

SHORT = "\nAnswer the question using a single word or phrase."


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


def vqav2(root: Path) -> None:
    questions = [
        {"image_id": 42, "question": "What color is it?", "question_id": 42000},
        {"image_id": 42, "question": "Is it old?", "question_id": 42001},
        {"image_id": 73, "question": "How many?", "question_id": 73000},
        {"image_id": 42, "question": "Nobody was asked?", "question_id": 42002},
    ]
    people = ["red"] * 7 + ["dark red", "Red", "maroon"]
    given = [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(people, 1)]
    yes = [{"answer": "yes", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
    annotations = [
        {"question_id": 42000, "image_id": 42, "answer_type": "other", "answers": given, "question_type": "what color"},
        {"question_id": 42001, "image_id": 42, "answer_type": "yes/no", "answers": yes, "question_type": "is it"},
        {"question_id": 73000, "image_id": 73, "answer_type": "number", "answers": yes, "question_type": "how many"},
    ]
    put(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"data_type": "mscoco", "questions": questions})
    put(root / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    draw(root / "val2014" / "COCO_val2014_000000000042.jpg")


def gqa(root: Path) -> None:
    one = {"question": "Is it overcast?", "imageId": "n15740", "answer": "no", "types": {"structural": "verify"}}
    two = {"question": "Who?", "imageId": "../n15740", "answer": "man", "types": {"structural": "query"}}
    put(root / "questions" / "testdev_balanced_questions.json", {"201": one, "202": two, "203": {"question": "?"}})
    draw(root / "images" / "n15740.jpg")


def pope(root: Path) -> None:
    for part in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": i, "image": "COCO_val2014_000000000042.jpg", "text": f"Is there {i}?", "label": label}
            for i, label in enumerate(("yes", "no"), 1)
        ]
        put(root / f"coco_pope_{part}.json", "\n".join(map(json.dumps, lines)) + "\n")
    draw(root / "val2014" / "COCO_val2014_000000000042.jpg")


def textvqa(root: Path) -> None:
    entry = {"question": "what does the SIGN say?", "image_id": "0a1b", "question_id": 34602, "answers": ["stop"] * 10}
    put(root / "TextVQA_0.5.1_val.json", {"dataset_name": "textvqa", "data": [entry]})
    draw(root / "train_images" / "0a1b.jpg")


def scienceqa(root: Path) -> None:
    one = {"question": "Which?", "choices": ["a cat", "a dog"], "answer": 1, "hint": "Look.", "image": "image.png"}
    two = {"question": "What?", "choices": ["x", "y"], "answer": 5, "hint": "", "image": "image.png"}
    blind = {"question": "Why?", "choices": ["x", "y"], "answer": 0, "hint": "", "image": None}
    subject = {"subject": "natural science"}
    put(root / "problems.json", {"4": one | subject, "5": blind, "6": two, "7": one, "8": one | {"answer": -1}})
    put(root / "pid_splits.json", {"train": ["7"], "test": ["4", "5", "6", "99", "8"]})
    draw(root / "images" / "test" / "4" / "image.png", root / "images" / "test" / "6" / "image.png")
    draw(root / "images" / "test" / "8" / "image.png")


MAKERS = {"vqav2": vqav2, "gqa": gqa, "pope": pope, "textvqa": textvqa, "scienceqa": scienceqa}


def test_every_layout_is_tested() -> None:
    assert set(MAKERS) == set(LAYOUTS)
    assert all(f"{name}:DIR" in DATA_HELP for name in MAKERS)


def test_vqav2(tmp_path: Path) -> None:
    vqav2(tmp_path)
    data = load_data(f"vqav2:{tmp_path}")
    color, old = data.rows
    assert (color.id, color.group, old.group, data.metric) == ("42000", "other", "yes/no", "vqa")
    assert color.question == "What color is it?" + SHORT
    assert color.image == tmp_path / "val2014" / "COCO_val2014_000000000042.jpg"
    # Seven said red, one Red: eight after the normalisation; the official page's formula gives 1.
    assert score(color, "Red.", data.metric) == 1
    assert score(color, "maroon", data.metric) == pytest.approx(0.3)
    assert [(item.line, item.reason.split("/")[-1]) for item in data.rejected] == [
        (3, "COCO_val2014_000000000073.jpg: no such file"),
        (4, "no answer"),
    ]
    assert load_data(f"vqav2:{tmp_path}", suffix=False).rows[0].question == "What color is it?"


def test_gqa(tmp_path: Path) -> None:
    gqa(tmp_path)
    data = load_data(f"gqa:{tmp_path}")
    (row,) = data.rows
    assert (row.id, row.answers, row.group, data.metric) == ("201", ("no",), "verify", "gqa")
    assert row.question == "Is it overcast?" + SHORT
    assert "is no file name" in data.rejected[0].reason  # an id must not lead out of the folder
    assert "has no 'imageId'" in data.rejected[1].reason


def test_pope(tmp_path: Path) -> None:
    pope(tmp_path)
    data = load_data(f"pope:{tmp_path}")
    assert Counter(row.group for row in data.rows) == {"random": 2, "popular": 2, "adversarial": 2}
    assert len({row.id for row in data.rows}) == 6
    assert data.rows[0].question == "Is there 1?" + SHORT
    assert score(data.rows[0], "Yes, there is.", data.metric) == 1
    assert score(data.rows[1], "Yes, there is.", data.metric) == 0


def test_textvqa(tmp_path: Path) -> None:
    textvqa(tmp_path)
    data = load_data(f"textvqa:{tmp_path}")
    assert data.rows[0].question == "What does the sign say?" + SHORT  # as lmms-eval's task writes it
    assert data.metric == "textvqa"
    assert score(data.rows[0], "STOP!", data.metric) == 1


def test_scienceqa(tmp_path: Path) -> None:
    scienceqa(tmp_path)
    data = load_data(f"scienceqa:{tmp_path}")
    (row,) = data.rows
    assert row.question == (
        "Context: Look.\nWhich?\nA. a cat\nB. a dog\nAnswer with the option's letter from the given choices directly."
    )
    assert (row.answers, row.choices, row.group) == (("B",), ("a cat", "a dog"), "natural science")
    assert score(row, "B. a dog", data.metric) == 1
    assert [item.line for item in data.rejected] == [
        2,
        3,
        4,
    ]  # answers beyond the choices on either side; an unknown problem


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_missing_is_named_with_where_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--data {name}:.*: no such folder .*http"):
        load_data(f"{name}:{tmp_path / 'none'}")
    with pytest.raises(InputError, match=f"--data {name}:.*: no .*json.* in it .*http"):
        load_data(f"{name}:{tmp_path}")
    with pytest.raises(InputError, match=f"--data {name}: needs a folder .*{name}:DIR; from http"):
        load_data(name)
    MAKERS[name](tmp_path)
    pictures = [path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".png")]
    assert load_data(f"{name}:{tmp_path}").rows
    for path in pictures:
        path.unlink()
    with pytest.raises(InputError, match=f"--data {name}:.*: no .*(jpg|png) in .*http"):
        load_data(f"{name}:{tmp_path}")
    if name != "scienceqa":  # its pictures all have one name
        elsewhere = tmp_path / "else" / "where"
        draw(*(elsewhere / path.name for path in pictures))
        assert load_data(f"{name}:{tmp_path}", images=elsewhere).rows
    for path in tmp_path.rglob("*.json"):
        path.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        load_data(f"{name}:{tmp_path}")
    for path in tmp_path.rglob("*.json"):
        path.write_text("[]")
    with pytest.raises(InputError, match=f"--data {name}:"):
        load_data(f"{name}:{tmp_path}")


def test_strict_and_metric_reach_the_layouts(tmp_path: Path) -> None:
    gqa(tmp_path)
    with pytest.raises(InputError, match="--strict: 2 rows cannot be used: gqa:"):
        load_data(f"gqa:{tmp_path}", strict=True)
    assert load_data(f"gqa:{tmp_path}", metric="exact").metric == "exact"
    with pytest.raises(InputError, match="--metric bleu"):
        load_data(f"gqa:{tmp_path}", metric="bleu")


def test_nothing_of_that_name() -> None:
    for spec in ("cifar", "cifar:.", "nowhere.txt"):
        with pytest.raises(InputError, match=f"--data {spec}: no such file or set .*scenes"):
            load_data(spec)
    with pytest.raises(InputError, match="cannot be read"):
        load_data("nowhere.jsonl")
    with pytest.raises(InputError, match="--limit 0"):
        load_data("scenes", limit=0)


def test_easy_vqa_is_its_test_split() -> None:
    easy_vqa = pytest.importorskip("easy_vqa")
    data = load_data("easy-vqa")
    texts, answers, images = easy_vqa.get_test_questions()
    paths = easy_vqa.get_test_image_paths()
    assert [(r.question, r.answers[0], str(r.image)) for r in data.rows] == [
        (text, answer, str(paths[image])) for text, answer, image in zip(texts, answers, images, strict=True)
    ]
    closed = sum(answer in ("yes", "no") for answer in answers)
    assert Counter(row.group for row in data.rows) == {"yes/no": closed, "open": len(answers) - closed}
    some = load_data("easy-vqa", limit=50, seed=3)
    assert len(some.rows) == 50
    assert some.rows == load_data("easy-vqa", limit=50, seed=3).rows != load_data("easy-vqa", limit=50).rows


def test_scenes_are_held_out_and_repeat() -> None:
    data = load_data("scenes", limit=60)
    assert data == load_data("scenes", limit=60)
    assert data.rows != load_data("scenes", limit=60, seed=1).rows
    assert load_data("scenes", limit=20).rows == data.rows[:20]  # a longer run goes on where a shorter one ended
    assert set(data.groups) == {"non-salient", "salient", "count", "yes/no"}
    assert data.groups.count("non-salient") == 1
    assert len({row.id for row in data.rows}) == 60
    assert len({row.picture_key for row in data.rows}) < 20
    for row in data.rows[:20]:
        number = int(row.id.split("-")[1])
        assert number >= FIRST_SCENE
        scene = scenes.generate(number, split="test")
        (question,) = [q for q in scene.questions if q.text == row.question]
        assert (question.answer,) == row.answers
        # The group tells whether the asked object is the scene's largest, which is what saliency favours.
        if row.group in ("salient", "non-salient"):
            (asked,) = question.about
            radii = [item.radius for item in scene.objects]
            assert (radii[asked] == max(radii)) == (row.group == "salient")
    first = data.rows[0]
    assert isinstance(first.image, Drawn)
    picture = first.picture()
    assert isinstance(picture, Image.Image)
    assert ImageChops.difference(picture, scenes.generate(FIRST_SCENE, split="test").image).getbbox() is None


def test_signs_are_held_out_and_repeat() -> None:
    data = load_data("signs", limit=60)
    assert data == load_data("signs", limit=60)
    assert data.rows != load_data("signs", limit=60, seed=1).rows
    assert load_data("signs", limit=20).rows == data.rows[:20]
    assert set(data.groups) == {"non-salient", "salient", "by number"}
    assert len({row.id for row in data.rows}) == 60
    for row in data.rows:
        number = int(row.id.split("-")[1])
        found = signs.generate(number, split="test")
        (question,) = [q for q in found.questions if q.text == row.question]
        assert (question.answer,) == row.answers
        heights = [sign.height for sign in found.signs]
        if row.group != "by number":
            assert question.answer == signs.DIGITS[found.signs[question.about].digit]
            assert (heights[question.about] == max(heights)) == (row.group == "salient")
        assert isinstance(row.image, Drawn)
    picture = data.rows[-1].picture()
    assert isinstance(picture, Image.Image)
    assert ImageChops.difference(picture, found.image).getbbox() is None
