"""Synthetic images with numbers to read: plates of different colours, a digit on each, on the ground of ``scenes``.

The questions are about text in an image: a few patches of fine detail, and a pruning method must keep the right ones.
Everything follows from the seed and from Pillow's own font.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from trtprune.demo.scenes import COLORS, SIZE, ground

__all__ = ["DIGITS", "Sign", "SignQuestion", "Signs", "draw", "generate", "questions"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LARGEST, OTHERS = (84, 108), (46, 62)
"""Heights of the plates, in pixels."""
MARGIN = 6
LIGHT, DARK = (250, 250, 250), (12, 12, 12)


@dataclass(frozen=True)
class Sign:
    """A plate: its digit, its colour, its centre and its height (and width) in pixels of a 336-pixel picture."""

    digit: int
    color: str
    x: float
    y: float
    height: float


@dataclass(frozen=True)
class SignQuestion:
    """A question with a one-word, lower-case answer.

    Attributes:
        text: The question, without any request for the form of the answer.
        answer: The word.
        kind: ``number``, read from the plate of a colour; ``color``, of the plate with a number.
        about: Index of the sign.
    """

    text: str
    answer: str
    kind: Literal["number", "color"]
    about: int

    @property
    def salient(self) -> bool:
        """Whether the sign is the picture's largest."""
        return self.about == 0


@dataclass(frozen=True)
class Signs:
    """A picture (RGB, 336 x 336), the signs in it (the first is the largest) and all questions about it."""

    image: Image.Image
    signs: tuple[Sign, ...]
    questions: tuple[SignQuestion, ...]


def generate(seed: int, *, split: Literal["train", "test"] = "train") -> Signs:
    """The picture of a seed.

    Args:
        seed: Any integer; equal seeds give equal pictures wherever Pillow has the same FreeType.
        split: The two splits share no picture.
    """
    rng = random.Random(f"trtprune signs {split} {seed}")
    signs = _place(rng)
    return Signs(draw(signs, rng), signs, questions(signs))


def _place(rng: random.Random) -> tuple[Sign, ...]:
    """Three to five plates that do not touch, each of another colour, the first one clearly the largest."""
    count = rng.randint(3, 5)
    colors = rng.sample(list(COLORS), count)
    digits = [rng.randrange(10) for _ in range(count)]
    placed: list[Sign] = []
    while len(placed) < count:
        i = len(placed)
        height = rng.uniform(*(LARGEST if i == 0 else OTHERS))
        for _ in range(40):
            x, y = (rng.uniform(height / 2 + 4, SIZE - height / 2 - 4) for _ in range(2))
            if all(max(abs(x - s.x), abs(y - s.y)) > (height + s.height) / 2 + MARGIN for s in placed):
                placed.append(Sign(digits[i], colors[i], x, y, height))
                break
        else:
            placed.clear()
    return tuple(placed)


def draw(signs: tuple[Sign, ...], rng: random.Random) -> Image.Image:
    """The ground, then the plates, drawn at double size for smooth edges."""
    image = ground(rng)
    for sign in signs:
        fill = tuple(min(255, max(0, c + rng.randint(-10, 10))) for c in COLORS[sign.color])
        side = round(2 * sign.height)
        plate = Image.new("RGB", (side, side), fill)
        ink = DARK if sum(fill) > 380 else LIGHT
        font = ImageFont.load_default(0.85 * side)
        ImageDraw.Draw(plate).text((side / 2, side / 2), str(sign.digit), fill=ink, font=font, anchor="mm")
        image.paste(plate, (round(2 * sign.x - side / 2), round(2 * sign.y - side / 2)))
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def questions(signs: tuple[Sign, ...]) -> tuple[SignQuestion, ...]:
    """Both questions about every sign, where only one sign fits."""
    colors, digits = [sign.color for sign in signs], [sign.digit for sign in signs]
    found = []
    for i, sign in enumerate(signs):
        if colors.count(sign.color) == 1:
            found.append(SignQuestion(f"what number is on the {sign.color} sign?", DIGITS[sign.digit], "number", i))
        if digits.count(sign.digit) == 1:
            text = f"what color is the sign with the number {DIGITS[sign.digit]}?"
            found.append(SignQuestion(text, sign.color, "color", i))
    return tuple(found)
