"""Synthetic scenes with questions: several small objects and one large one on a busy ground.

Most of a scene's visual tokens show ground, so the selection of a pruning method matters. The asked object is mostly
not the most conspicuous one, so a method that only looks at the image differs from one that reads the question.
Everything follows from the seed; drawing needs Pillow alone.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageOps

__all__ = ["COLORS", "NUMBERS", "SHAPES", "Scene", "SceneObject", "SceneQuestion", "generate", "names"]

SIZE = 336
SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "green": (25, 150, 50),
    "blue": (35, 65, 215),
    "yellow": (245, 220, 30),
    "black": (12, 12, 12),
    "white": (250, 250, 250),
    "purple": (135, 40, 165),
    "orange": (245, 130, 20),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
# Muted pairs: no ground colour looks like an object's.
_GROUNDS = (
    ((96, 88, 78), (168, 156, 140)),
    ((88, 96, 100), (156, 166, 170)),
    ((92, 98, 84), (160, 166, 148)),
    ((104, 92, 98), (172, 158, 164)),
)

Kind = Literal["color", "shape", "count", "position", "presence"]


@dataclass(frozen=True)
class SceneObject:
    """One object: its kind, its centre and radius in pixels of a 336-pixel scene, its rotation in radians."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class SceneQuestion:
    """A question with a one-word, lower-case answer.

    Attributes:
        text: The question, without any request for the form of the answer.
        answer: The word.
        kind: The kind of the answer.
        about: Indices of the objects asked about (empty if the right answer is "no" or "zero").
        salient: Whether the one asked object is the scene's largest; None for counts and for absent objects.
    """

    text: str
    answer: str
    kind: Kind
    about: tuple[int, ...]
    salient: bool | None


@dataclass(frozen=True)
class Scene:
    """An image (RGB, 336 x 336), the objects in it (the first is the largest) and all questions about it."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    questions: tuple[SceneQuestion, ...]


def generate(seed: int, *, split: Literal["train", "test"] = "train") -> Scene:
    """The scene of a seed.

    Args:
        seed: Any integer; equal seeds give equal scenes on every machine.
        split: The two splits share no scene.
    """
    rng = random.Random(f"trtprune scene {split} {seed}")
    objects = _place(rng)
    return Scene(_draw(objects, rng), objects, tuple(_questions(objects, rng)))


def _place(rng: random.Random) -> tuple[SceneObject, ...]:
    """Three to six objects that do not touch; the first one is clearly the largest."""
    count = rng.randint(3, 6)
    colors = rng.sample(list(COLORS), count)
    if rng.random() < 0.4:  # one colour twice, so that counting a colour is not always counting to one
        colors[-1] = colors[rng.randrange(count - 1)]
    shapes = [rng.choice(SHAPES) for _ in range(count)]
    placed: list[SceneObject] = []
    while len(placed) < count:
        i = len(placed)
        radius = rng.uniform(50, 66) if i == 0 else rng.uniform(19, 30)
        for _ in range(40):
            x, y = rng.uniform(radius + 4, SIZE - radius - 4), rng.uniform(radius + 4, SIZE - radius - 4)
            if all(math.hypot(x - o.x, y - o.y) > radius + o.radius + 6 for o in placed):
                placed.append(SceneObject(shapes[i], colors[i], x, y, radius, rng.uniform(-0.3, 0.3)))
                break
        else:
            placed.clear()
    return tuple(placed)


def _outline(item: SceneObject) -> list[tuple[float, float]]:
    """Corner points of every shape but the circle."""

    def ring(radii: list[float], start: float) -> list[tuple[float, float]]:
        step = 2 * math.pi / len(radii)
        angles = [item.angle + start + k * step for k in range(len(radii))]
        return [
            (item.x + item.radius * r * math.cos(a), item.y + item.radius * r * math.sin(a))
            for r, a in zip(radii, angles, strict=True)
        ]

    if item.shape == "square":
        return ring([1.0] * 4, math.pi / 4)
    if item.shape == "triangle":
        return ring([1.0] * 3, -math.pi / 2)
    if item.shape == "star":
        return ring([1.0, 0.42] * 5, -math.pi / 2)
    arm, reach = 0.32, 0.95
    corners = [(arm, reach), (arm, arm), (reach, arm)]
    points = []
    for quarter in range(4):
        c, s = math.cos(item.angle - quarter * math.pi / 2), math.sin(item.angle - quarter * math.pi / 2)
        for x, y in corners:
            points.append((item.x + item.radius * (c * x - s * y), item.y + item.radius * (s * x + c * y)))
    return points


def ground(rng: random.Random) -> Image.Image:
    """Coarse and fine noise and thin strokes, at double size."""
    dark, light = rng.choice(_GROUNDS)
    coarse, fine = rng.randint(5, 10), rng.randint(40, 84)
    layers = [
        Image.frombytes("L", (n, n), rng.randbytes(n * n)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        for n in (coarse, fine)
    ]
    ground = ImageOps.colorize(Image.blend(layers[0], layers[1], 0.5), dark, light)
    image = ground.resize((2 * SIZE, 2 * SIZE), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(10, 30)):
        x, y, angle = rng.uniform(0, 2 * SIZE), rng.uniform(0, 2 * SIZE), rng.uniform(0, math.pi)
        length = rng.uniform(30, 160)
        shade = tuple(round(d + (b - d) * rng.random()) for d, b in zip(dark, light, strict=True))
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        pen.line([(x, y), end], fill=shade, width=rng.randint(2, 5))
    return image


def _draw(objects: tuple[SceneObject, ...], rng: random.Random) -> Image.Image:
    """The ground, then the objects, drawn at double size for smooth edges."""
    image = ground(rng)
    pen = ImageDraw.Draw(image)
    for item in objects:
        fill = tuple(min(255, max(0, c + rng.randint(-10, 10))) for c in COLORS[item.color])
        if item.shape == "circle":
            r = 0.95 * item.radius
            box = [2 * (item.x - r), 2 * (item.y - r), 2 * (item.x + r), 2 * (item.y + r)]
            pen.ellipse(box, fill=fill)
        else:
            pen.polygon([(2 * x, 2 * y) for x, y in _outline(item)], fill=fill)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def names(objects: tuple[SceneObject, ...]) -> list[tuple[int, str, str]]:
    """(object, phrase, the attribute that the phrase reveals) for every phrase that fits exactly one object."""
    shapes, colors = [o.shape for o in objects], [o.color for o in objects]
    phrases = [(0, "largest object", "size")]
    for i, item in enumerate(objects):
        if shapes.count(item.shape) == 1:
            phrases.append((i, item.shape, "shape"))
        if colors.count(item.color) == 1:
            phrases.append((i, f"{item.color} object", "color"))
    return phrases


def _questions(objects: tuple[SceneObject, ...], rng: random.Random) -> list[SceneQuestion]:
    """Every unambiguous question about attributes and places, plus counts and a balanced set of yes/no ones."""
    questions: list[SceneQuestion] = []

    def ask(text: str, answer: str, kind: Kind, about: list[int]) -> None:
        salient = about[0] == 0 if len(about) == 1 and kind != "count" else None
        questions.append(SceneQuestion(text, answer, kind, tuple(about), salient))

    for i, name, given in names(objects):
        item = objects[i]
        if given != "color":
            ask(f"what color is the {name}?", item.color, "color", [i])
        if given != "shape":
            ask(f"what shape is the {name}?", item.shape, "shape", [i])
        # No questions about objects near a middle line: the answer would depend on a few pixels.
        if abs(item.x - SIZE / 2) > 40:
            side = "left" if item.x < SIZE / 2 else "right"
            ask(f"is the {name} on the left or on the right?", side, "position", [i])
        if abs(item.y - SIZE / 2) > 40:
            side = "top" if item.y < SIZE / 2 else "bottom"
            ask(f"is the {name} at the top or at the bottom?", side, "position", [i])
    ask("how many objects are there?", NUMBERS[len(objects)], "count", list(range(len(objects))))
    for values, attribute, plural in (
        (rng.sample(SHAPES, 3), "shape", "{}s"),
        (rng.sample(list(COLORS), 2), "color", "{} objects"),
    ):
        for value in values:
            found = [i for i, o in enumerate(objects) if getattr(o, attribute) == value]
            noun = "crosses" if value == "cross" else plural.format(value)
            ask(f"how many {noun} are there?", NUMBERS[len(found)], "count", found)
    pairs = {(o.color, o.shape) for o in objects}
    for color, shape in rng.sample(sorted(pairs), 2):
        found = [i for i, o in enumerate(objects) if (o.color, o.shape) == (color, shape)]
        ask(f"is there a {color} {shape}?", "yes", "presence", found)
    absent = sorted({(o.color, s) for o in objects for s in SHAPES} - pairs)
    for color, shape in rng.sample(absent, 2):
        ask(f"is there a {color} {shape}?", "no", "presence", [])
    rest = sorted(set(COLORS) - {o.color for o in objects})
    present = rng.choice(objects).color
    found = [i for i, o in enumerate(objects) if o.color == present]
    ask(f"is there {_article(present)} {present} object?", "yes", "presence", found)
    if rest:
        color = rng.choice(rest)
        ask(f"is there {_article(color)} {color} object?", "no", "presence", [])
    return [_fixed(question) for question in questions]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _fixed(question: SceneQuestion) -> SceneQuestion:
    """ "a orange" → "an orange"."""
    text = question.text.replace(" a orange ", " an orange ")
    return SceneQuestion(text, question.answer, question.kind, question.about, question.salient)
