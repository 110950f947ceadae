"""Data of ``--data``: a JSON-lines file, a downloaded set, or one of the three sets without a download."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trtprune.errors import InputError
from trtprune.eval.layouts import LAYOUTS
from trtprune.eval.rows import MAX_ROWS, DataSet, Drawn, Row, collect, read_rows
from trtprune.reports.installer import to_install

if TYPE_CHECKING:
    from PIL import Image

    from trtprune.demo import scenes, signs

__all__ = ["DATA_HELP", "ScenePicture", "SignsPicture", "load_data"]

DATA_HELP = f"FILE.jsonl, easy-vqa, scenes, signs, or {', '.join(f'{name}:DIR' for name in LAYOUTS)}"

DRAWN_QUESTIONS = 2000
FIRST_SCENE = 1000
"""First seed of evaluated scenes: the training log used the held-out scenes below it."""
SCENE_TURN = ("non-salient", "salient", "non-salient", "count", "yes/no")
"""Kinds of questions about one scene.  Two are about objects that are not the largest, which saliency overlooks."""
SIGN_TURN = ("non-salient", "salient", "non-salient", "by number")
"""Kinds of questions about one image of signs."""


@dataclass(frozen=True)
class ScenePicture:
    """A held-out scene, drawn on demand.

    Attributes:
        number: Seed of the scene.
        style: Digest of an image by the same drawing code, so that answers about other images are not reused.
    """

    number: int
    style: str

    def draw(self) -> Image.Image:
        from trtprune.demo import scenes

        return scenes.generate(self.number, split="test").image


@dataclass(frozen=True)
class SignsPicture:
    """A held-out image of signs, drawn on demand; the same two attributes."""

    number: int
    style: str

    def draw(self) -> Image.Image:
        from trtprune.demo import signs

        return signs.generate(self.number, split="test").image


def load_data(
    spec: str,
    *,
    metric: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    strict: bool = False,
    suffix: bool = True,
    images: Path | None = None,
) -> DataSet:
    """Reads a set of questions.

    Args:
        spec: A value as in :data:`DATA_HELP`.
        metric: Instead of the set's own; see ``scoring.METRICS``.
        limit: Largest number of questions, drawn with ``seed``; for ``scenes`` and ``signs``, the exact number
            (2,000 if None).
        seed: Seed of the draw; for ``scenes`` and ``signs``, of the questions about each image.
        strict: Whether an unusable row is an error.
        suffix: Whether questions end as in the set's standard evaluation ("Answer the question using a single word …").
        images: Folder of the pictures, where it is not the usual one.

    Raises:
        InputError: for an unknown ``spec``, missing files (with the place of the download), no usable row, or with
            ``strict`` an unusable one.
    """
    if limit is not None and not 1 <= limit <= MAX_ROWS:
        raise InputError(f"--limit {limit}: must be 1 to {MAX_ROWS}")
    name, colon, folder = spec.partition(":")
    if colon and name in LAYOUTS:
        layout = LAYOUTS[name]
        entries = layout.read(Path(folder), layout.suffix if suffix else "", images)
        return collect(
            name, entries, metric=metric or layout.metric, strict=strict, source=spec, hint=f"see {layout.source}"
        ).sample(limit, seed)
    if spec in OWN:
        return OWN[spec](metric or "exact", limit, seed)
    if Path(spec).is_file() or spec.endswith((".jsonl", ".json")):
        return read_rows(Path(spec), metric=metric, strict=strict, images=images).sample(limit, seed)
    if spec in LAYOUTS:
        raise InputError(f"--data {spec}: needs a folder", hint=f"{spec}:DIR; from {LAYOUTS[spec].source}")
    raise InputError(f"--data {spec}: no such file or set", hint=DATA_HELP)


def _easy_vqa(metric: str, limit: int | None, seed: int) -> DataSet:
    """easy-VQA's test split (github.com/vzhou842/easy-VQA, MIT): one shape of one colour; groups "open", "yes/no"."""
    try:
        import easy_vqa
    except ImportError:
        raise InputError(
            "--data easy-vqa: the package easy-vqa is not installed", hint=to_install("easy-vqa")
        ) from None
    paths = easy_vqa.get_test_image_paths()
    rows = (
        Row(
            f"easy-{number}",
            Path(paths[image]),
            text,
            (answer,),
            "yes/no" if answer in ("yes", "no") else "open",
        )
        for number, (text, answer, image) in enumerate(zip(*easy_vqa.get_test_questions(), strict=True))
    )
    return collect("easy-vqa", enumerate(rows, 1), metric=metric).sample(limit, seed)


def _scenes(metric: str, limit: int | None, seed: int) -> DataSet:
    """Held-out scenes of ``trtprune.demo``, with five questions per scene in the order of :data:`SCENE_TURN`."""

    def make(number: int) -> tuple[Image.Image, Iterable[tuple[str, scenes.SceneQuestion]]]:
        from trtprune.demo import scenes

        scene = scenes.generate(number, split="test")
        return scene.image, ((_group(question), question) for question in scene.questions)

    rows = _drawn_rows("scene", limit, f"trtprune eval scenes {seed}", FIRST_SCENE, SCENE_TURN, make, ScenePicture)
    return collect("scenes", enumerate(rows, 1), metric=metric)


def _signs(metric: str, limit: int | None, seed: int) -> DataSet:
    """Held-out signs of ``trtprune.demo``, with four questions per image in the order of :data:`SIGN_TURN`."""

    def make(number: int) -> tuple[Image.Image, Iterable[tuple[str, signs.SignQuestion]]]:
        from trtprune.demo import signs

        found = signs.generate(number, split="test")
        return found.image, ((_sign_group(question), question) for question in found.questions)

    rows = _drawn_rows("signs", limit, f"trtprune eval signs {seed}", 0, SIGN_TURN, make, SignsPicture)
    return collect("signs", enumerate(rows, 1), metric=metric)


class _Question(Protocol):
    @property
    def text(self) -> str: ...

    @property
    def answer(self) -> str: ...


def _drawn_rows(
    name: str,
    limit: int | None,
    seed: str,
    first: int,
    turns: Sequence[str],
    make: Callable[[int], tuple[Image.Image, Iterable[tuple[str, _Question]]]],
    picture: Callable[[int, str], Drawn],
) -> Iterator[Row]:
    """Rows about drawn images, from number ``first``, with one question for each group in ``turns``."""
    rng = random.Random(seed)
    count = DRAWN_QUESTIONS if limit is None else limit
    number, done, style = first, 0, ""
    while done < count:
        image, questions = make(number)
        style = style or hashlib.sha256(image.tobytes()).hexdigest()[:16]
        groups: dict[str, list[_Question]] = defaultdict(list)
        for group, question in questions:
            groups[group].append(question)
        drawn = picture(number, style)
        for turn, group in enumerate(turns):
            if groups[group] and done < count:
                question = groups[group].pop(rng.randrange(len(groups[group])))
                yield Row(f"{name}-{number}-{turn}", drawn, question.text, (question.answer,), group)
                done += 1
        number += 1


def _group(question: scenes.SceneQuestion) -> str:
    answer, salient = question.answer, question.salient
    if answer in ("yes", "no"):
        return "yes/no"
    return "count" if salient is None else "salient" if salient else "non-salient"


def _sign_group(question: signs.SignQuestion) -> str:
    if question.kind == "color":
        return "by number"
    return "salient" if question.salient else "non-salient"


OWN: dict[str, Callable[[str, int | None, int], DataSet]] = {
    "easy-vqa": _easy_vqa,
    "scenes": _scenes,
    "signs": _signs,
}
