"""The demo's training data: what a patch is said to show is there, and no test picture is drawn."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from trtprune.demo import scenes, signs

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "demo_training"))
pytest.importorskip("torch")
pytest.importorskip("transformers")
align = pytest.importorskip("align")
data = pytest.importorskip("data")
torch = pytest.importorskip("torch")
train_signs = pytest.importorskip("train_signs")


@pytest.mark.parametrize("size", [168, 224, 336])
@pytest.mark.parametrize("seed", range(8))
def test_a_patch_shows_the_object_it_is_labelled_with(seed: int, size: int) -> None:
    scene = scenes.generate(seed)
    side = size // 14
    shown = align.scene_patches(scene.objects, size).reshape(side, side)
    picture = np.asarray(scene.image, np.int64)
    step = 336 / side
    near = {
        index: np.abs(picture - np.array(scenes.COLORS[item.color])).max(-1) <= 12
        for index, item in enumerate(scene.objects)
    }
    for index in range(len(scene.objects)):
        assert (shown == index).any(), "every object owns a patch"
    for y in range(side):
        for x in range(side):
            box = np.s_[round(y * step) : round((y + 1) * step), round(x * step) : round((x + 1) * step)]
            if shown[y, x] == -1:
                assert not any(mask[box].any() for mask in near.values()), "ground without a pixel of an object"
            elif shown[y, x] >= 0 and scene.objects[shown[y, x]].shape in ("circle", "square"):
                assert near[shown[y, x]][box].any()


def test_descriptions_are_true_and_cover_every_phrase() -> None:
    for seed in range(20):
        scene = scenes.generate(seed)
        pairs = data.descriptions(scene)
        assert len({text for text, _ in pairs}) == len(pairs) == len(scenes.names(scene.objects))
        for text, answer in pairs:
            (name,) = re.fullmatch(r"describe the (.+)\.", text).groups()  # type: ignore[union-attr]
            color, shape, height, side = answer.split()
            (item,) = [
                o
                for o in scene.objects
                if (o.color, o.shape) == (color, shape)
                and (name in (o.shape, f"{o.color} object") or (name == "largest object" and o.radius > 40))
            ]
            assert (height, side) == ("top" if item.y < 168 else "bottom", "left" if item.x < 168 else "right")


def test_running_accuracy_looks_at_seeds_that_are_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {k: (f"{k}.png", [("what color is the shape?", "red")]) for k in range(300)}
    monkeypatch.setattr(data, "load_easy_vqa", lambda split: table if split == "train" else {})
    drawn: list[tuple[int, str]] = []
    real = scenes.generate

    def generate(seed: int, *, split: str = "train") -> scenes.Scene:
        drawn.append((seed, split))
        return real(seed)

    monkeypatch.setattr(data.scenes, "generate", generate)
    source = data.Source(1)
    example = source.scene_example(16, 0.5)
    assert len(example.questions) == 16
    assert sum(text.startswith("describe ") for text, _ in example.questions) <= 8
    assert drawn
    assert all(seed > 0 and split == "train" for seed, split in drawn)
    assert not {path for path, _ in source.train} & {path for path, _ in source.held}


@pytest.mark.parametrize("seed", range(1, 12))
def test_a_patch_shows_the_sign_it_is_labelled_with(seed: int) -> None:
    found = train_signs.crowd(seed)
    assert len(found.signs) >= 3
    shown = train_signs.shown(found.signs).reshape(24, 24)
    picture = np.asarray(found.image, np.int64).reshape(24, 14, 24, 14, 3).swapaxes(1, 2)
    grounds = picture.reshape(24, 24, -1, 3)
    assert (shown == -1).any()
    for index, sign in enumerate(found.signs):
        assert (shown == index).any(), "every sign owns a patch"
        color = np.array(scenes.COLORS[sign.color])
        for patch in grounds[shown == index]:
            ink = np.abs(patch - color).max(-1) > 12
            assert not ink.all() or (patch.min() > 200 or patch.max() < 60), "its colour or its digit, nothing else"
        # No patch that is said to be ground shows any of the plate.
        y, x = np.nonzero(shown == -1)
        reach = np.maximum(np.abs(14 * x + 7 - sign.x), np.abs(14 * y + 7 - sign.y)) - 7
        assert (reach >= sign.height / 2 - 1e-9).all()


def test_a_window_asks_about_the_signs_in_it() -> None:
    rng = random.Random(0)
    asked = chosen = 0
    for seed in range(60):
        found = signs.generate(seed) if seed % 3 else train_signs.crowd(seed)
        side = rng.randint(10, 24)
        row = train_signs.window(found, side, rng)
        if row is None:
            continue
        _, pairs, (top, left) = row
        assert min(top, left) >= 0
        assert max(top, left) + side <= 24
        edges = [(s.x - s.height / 2, s.y - s.height / 2, s.x + s.height / 2, s.y + s.height / 2) for s in found.signs]
        x0, y0, x1, y1 = 14 * left, 14 * top, 14 * (left + side), 14 * (top + side)
        visible = [
            s for s, (a, b, c, d) in zip(found.signs, edges, strict=True) if c > x0 and a < x1 and d > y0 and b < y1
        ]
        whole = [
            s for s, (a, b, c, d) in zip(found.signs, edges, strict=True) if a >= x0 and c <= x1 and b >= y0 and d <= y1
        ]
        for text, answer in pairs:
            name = text.split()[-2] if text.startswith("what number") else text.split()[-1][:-1]
            (sign,) = [s for s in visible if name in (s.color, signs.DIGITS[s.digit])]
            assert sign in whole
            assert answer == (signs.DIGITS[sign.digit] if text.startswith("what number") else sign.color)
        asked += len(pairs)
        chosen += len(visible) > 1
        if side == 24 and seed % 3:
            assert len(pairs) == len(found.questions)
    assert asked > 50
    assert chosen > 20


def test_standardising_changes_no_output() -> None:
    model_of = pytest.importorskip("model")
    torch.manual_seed(0)
    projector = model_of.Projector(torch.zeros(384), torch.ones(384), 0.1)
    holder = SimpleNamespace(projector=projector)
    features = torch.randn(500, 384) * torch.rand(384) * 5 + torch.randn(384)
    before = projector(features)
    train_signs.standardise(holder, features)
    torch.testing.assert_close(projector(features), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(projector.std, features.std(0) + 1e-6)
    # Once more, from there.
    train_signs.standardise(holder, features[:200])
    torch.testing.assert_close(projector(features), before, rtol=1e-4, atol=1e-5)
