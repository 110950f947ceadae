"""How the demo's accuracy is counted: groups, blind controls, intervals. The model is made up."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trtprune.demo import scenes

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "demo_training"))
pytest.importorskip("torch")
pytest.importorskip("transformers")
evaluate = pytest.importorskip("evaluate")


class Looks:
    """Answers what its picture's first pixel says; without a picture always "0"."""

    def right(self, image: Image.Image | None, questions: list[tuple[str, str]]) -> list[bool]:
        shown = "0" if image is None else str(image.getpixel((0, 0))[0])
        return [answer == shown for _, answer in questions]


def row(number: int, labels: tuple[str, ...]) -> Any:
    return Image.new("RGB", (2, 2), (number, 0, 0)), [("what?", str(number), labels)]


def test_every_figure_has_its_controls_and_interval() -> None:
    # Four pictures of 0, 0, 1, 1: the neighbour's question is right by chance twice.
    rows = [row(n, ("open", "small")) for n in (0, 0, 1, 1)]
    found = evaluate.evaluate(Looks(), rows, "test", math.inf)
    assert found["images"] == 4
    for label in ("all", "open", "small"):
        of = found["accuracy"][label]
        assert (of["questions"], of["image"], of["wrong_image"], of["no_image"]) == (4, 1.0, 0.5, 0.5)
        # Wilson: 4 of 4 gives 1 / (1 + z²/4) = 0.5101; 2 of 4 is symmetric about a half.
        assert of["image_95"] == [0.5101, 1.0]
        assert sum(of["no_image_95"]) == pytest.approx(1, abs=1e-4)
        assert of["wrong_image_95"] == of["no_image_95"]


def test_a_stopped_evaluation_counts_what_it_reached() -> None:
    found = evaluate.evaluate(Looks(), [row(1, ("open",))] * 3, "test", -math.inf)
    assert found == {"images": 0, "accuracy": {}}


def test_scene_questions_are_counted_by_the_object_they_ask_about() -> None:
    rows = evaluate.scene_rows(12, 0, 10)
    seen = set()
    for number, (image, items) in enumerate(rows):
        scene = scenes.generate(1000 + number, split="test")
        assert image.tobytes() == scene.image.tobytes()
        assert len(items) == 10
        known = {(q.text, q.answer): q for q in scene.questions}
        for text, answer, labels in items:
            question = known[text, answer]
            assert ("yes_no" in labels) == (answer in ("yes", "no")) != ("open" in labels)
            assert question.kind in labels
            if question.kind in ("color", "shape", "position"):
                largest = question.about == (0,)
                assert ("large" in labels, "small" in labels) == (largest, not largest)
                assert f"{'large' if largest else 'small'}_{question.kind}" in labels
            else:
                assert not {"large", "small"} & set(labels)
            seen |= set(labels)
    assert {"large", "small", "count", "presence", "small_color", "large_position"} <= seen
