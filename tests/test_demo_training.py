"""The demo's training data: what a patch is said to show is there, and no test picture is drawn."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from trtprune.demo import scenes

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "demo_training"))
pytest.importorskip("torch")
pytest.importorskip("transformers")
align = pytest.importorskip("align")
data = pytest.importorskip("data")


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
