"""Signs: equal for equal seeds, what is drawn is what is said to be there, and every answer is true of it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from trtprune.demo import scenes, signs

SEEDS = range(40)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def test_equal_seeds_give_equal_pictures() -> None:
    a, b = signs.generate(3, split="test"), signs.generate(3, split="test")
    assert (a.signs, a.questions) == (b.signs, b.questions)
    assert a.image.tobytes() == b.image.tobytes()
    pictures = {
        hashlib.sha256(signs.generate(seed, split=split).image.tobytes()).digest()
        for seed in range(10)
        for split in ("train", "test")
    }
    assert len(pictures) == 20


@pytest.mark.parametrize("seed", SEEDS)
def test_every_answer_is_true_and_every_question_unambiguous(seed: int) -> None:
    found = signs.generate(seed)
    assert found.image.size == (336, 336)
    assert 3 <= len(found.signs) <= 5
    assert found.signs[0].height > 1.3 * max(sign.height for sign in found.signs[1:])
    asked = Counter()
    for q in found.questions:
        if match := re.fullmatch(r"what number is on the (\w+) sign\?", q.text):
            (sign,) = [s for s in found.signs if s.color == match[1]]
            assert q.answer == WORDS[sign.digit]
            assert q.kind == "number"
        else:
            match = re.fullmatch(r"what color is the sign with the number (\w+)\?", q.text)
            assert match is not None
            (sign,) = [s for s in found.signs if signs.DIGITS[s.digit] == match[1]]
            assert q.answer == sign.color
            assert q.kind == "color"
        assert found.signs[q.about] is sign
        assert q.salient == (sign.height == max(s.height for s in found.signs))
        asked[q.kind] += 1
    assert asked["number"] == len(found.signs)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_picture_shows_them(seed: int) -> None:
    """Each plate has its colour, and of all digits its own lies best on it; plates do not touch."""
    found = signs.generate(seed)
    picture = np.asarray(found.image, np.int64)
    covered = np.zeros(picture.shape[:2], int)
    for sign in found.signs:
        left, top = (round(centre - sign.height / 2) + 2 for centre in (sign.x, sign.y))
        side = round(sign.height) - 4
        assert min(left, top) > 0
        assert max(left, top) + side < 336
        covered[top - 3 : top + side + 3, left - 3 : left + side + 3] += 1
        plate = picture[top : top + side, left : left + side]
        color = np.array(scenes.COLORS[sign.color])
        assert np.abs(plate[:3] - color).max() <= 12
        ink = np.abs(plate - plate[0, 0]).sum(-1) > 200
        assert 0.02 < ink.mean() < 0.4
        overlap = []
        for digit in range(10):
            template = Image.new("L", (side, side))
            font = ImageFont.load_default(0.85 * sign.height)
            ImageDraw.Draw(template).text((side / 2, side / 2), str(digit), fill=255, font=font, anchor="mm")
            # Plates lie between pixels; the template may be moved by a few.
            moves = [np.roll(np.asarray(template) > 127, (y, x), (0, 1)) for y in range(-3, 4) for x in range(-3, 4)]
            overlap.append(max((ink & drawn).sum() / (ink | drawn).sum() for drawn in moves))
        assert int(np.argmax(overlap)) == sign.digit
    assert covered.max() == 1
