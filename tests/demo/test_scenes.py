"""Scenes: equal for equal seeds, and every answer true of the objects that were drawn."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter

import pytest

from trtprune.demo import scenes

SEEDS = range(60)


def _matching(scene: scenes.Scene, name: str) -> list[scenes.SceneObject]:
    """The objects a phrase of a question can mean, found independently of the generator."""
    if name == "largest object":
        return [max(scene.objects, key=lambda o: o.radius)]
    singular = {"crosses": "cross", **{f"{shape}s": shape for shape in scenes.SHAPES}}
    words = {singular.get(word, word) for word in name.split()} - {"object", "objects"}
    return [o for o in scene.objects if words <= {o.color, o.shape}]


def test_equal_seeds_give_equal_scenes() -> None:
    a, b = scenes.generate(3, split="test"), scenes.generate(3, split="test")
    assert a.objects == b.objects
    assert a.questions == b.questions
    assert a.image.tobytes() == b.image.tobytes()


def test_splits_and_seeds_differ() -> None:
    pictures = {
        hashlib.sha256(scenes.generate(seed, split=split).image.tobytes()).digest()
        for seed in range(10)
        for split in ("train", "test")
    }
    assert len(pictures) == 20


@pytest.mark.parametrize("seed", SEEDS)
def test_every_answer_is_true_and_every_phrase_unambiguous(seed: int) -> None:
    scene = scenes.generate(seed)
    assert scene.image.size == (336, 336)
    assert scene.image.mode == "RGB"
    assert len({q.text for q in scene.questions}) == len(scene.questions)
    for q in scene.questions:
        assert q.answer == q.answer.lower()
        assert " " not in q.answer
        if match := re.fullmatch(r"what (color|shape) is the (.+)\?", q.text):
            (item,) = _matching(scene, match[2])
            assert q.answer == getattr(item, match[1])
        elif match := re.fullmatch(r"is the (.+) on the left or on the right\?", q.text):
            (item,) = _matching(scene, match[1])
            assert q.answer == ("left" if item.x < 168 else "right")
        elif match := re.fullmatch(r"is the (.+) at the top or at the bottom\?", q.text):
            (item,) = _matching(scene, match[1])
            assert q.answer == ("top" if item.y < 168 else "bottom")
        elif match := re.fullmatch(r"how many (.+) are there\?", q.text):
            assert q.answer == scenes.NUMBERS[len(_matching(scene, match[1]))]
            assert q.salient is None
        elif match := re.fullmatch(r"is there an? (.+)\?", q.text):
            assert q.answer == ("yes" if _matching(scene, match[1]) else "no")
            assert q.text.startswith("is there an ") == (match[1][0] == "o")
        else:
            pytest.fail(f"unknown form of question: {q.text}")
        if q.salient is not None:
            assert q.salient == (q.about == (0,))


@pytest.mark.parametrize("seed", SEEDS)
def test_objects_lie_apart_inside_and_the_first_is_the_largest(seed: int) -> None:
    objects = scenes.generate(seed).objects
    assert 3 <= len(objects) <= 6
    assert all(objects[0].radius > 1.5 * o.radius for o in objects[1:])
    for i, a in enumerate(objects):
        assert a.radius < a.x < 336 - a.radius
        assert a.radius < a.y < 336 - a.radius
        assert all(math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius for b in objects[:i])


def test_an_object_shows_its_colour_at_its_centre() -> None:
    for seed in range(10):
        scene = scenes.generate(seed)
        for item in scene.objects:
            pixel = scene.image.getpixel((round(item.x), round(item.y)))
            assert isinstance(pixel, tuple)
            assert max(abs(p - c) for p, c in zip(pixel, scenes.COLORS[item.color], strict=True)) <= 12


def test_yes_and_no_are_balanced() -> None:
    answers = Counter(q.answer for seed in SEEDS for q in scenes.generate(seed).questions if q.kind == "presence")
    assert set(answers) == {"yes", "no"}
    assert abs(answers["yes"] - answers["no"]) <= 0.05 * answers.total()
