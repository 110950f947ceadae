"""First stage: give the projector words to start from.

A projector that starts at random leaves the decoder two things to find at once, what a patch shows and how to look
it up, and within an hour on two cores it finds neither. Both data sets know what their pictures show and where, so
the first can be had without the decoder: every patch of an object is trained towards the sum of the decoder's own
embeddings of the object's words (colour, shape, side, height), every patch of ground towards "background". After two
minutes the words of a small object can be read off its patches, and the decoder, which can already look up words in
its context, learns to answer questions in minutes. The decoder's losses train the projector further afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from data import Prompts, Source, pixels, place
from model import DemoVlm
from PIL import Image
from torch import Tensor

from trtprune.demo import scenes

SIZES = (112, 168, 224, 336)
SIDES = ("left", "right", "top", "bottom")
EASY_WORDS = ("rectangle", "brown", "teal", "gray")
GROUND = "background"
GROUND_SHARE = 0.12  # most of a picture is ground: as many patches of it as of objects are enough
NAMES, PLACES = 1.2, 0.8  # weights of what tells objects apart, against the mean that all words share


def word_vectors(model: DemoVlm, prompts: Prompts, words: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
    """Word → its embedding ``[576]`` less the mean of all of them, and that mean.

    The mean of the word with and without a space before it: questions have the one, answers the other. A form that
    the tokenizer splits is left out.
    """
    table = model.table.float()
    raw = {}
    for word in words:
        forms = [prompts.ids(form) for form in (word, f" {word}")]
        whole = [table[form[0]] for form in forms if len(form) == 1]
        raw[word] = torch.stack(whole or [table[forms[1]].mean(0)]).mean(0)
    mean = torch.stack(list(raw.values())).mean(0)
    return {word: vector - mean for word, vector in raw.items()}, mean


def scene_patches(objects: tuple[scenes.SceneObject, ...], size: int) -> npt.NDArray[np.int64]:
    """For every patch the object it shows, -1 for ground, -2 for a patch on an object's border: ``[(size / 14)^2]``."""
    side, scale = size // 14, size / scenes.SIZE
    centre = (np.arange(side) + 0.5) * 14 / scale
    x, y = np.meshgrid(centre, centre)
    shown = np.full((side, side), -1, np.int64)
    for index, item in enumerate(objects):
        distance = np.hypot(x - item.x, y - item.y)
        shown[(distance < item.radius + 9.1 / scale) & (shown == -1)] = -2
        shown[distance < 0.8 * item.radius] = index
        # Every object owns at least the patch its centre lies in.
        shown[int(item.y * scale / 14), int(item.x * scale / 14)] = index
    return shown.reshape(-1)


def easy_patches(image: Image.Image, size: int) -> npt.NDArray[np.int64]:
    """The same for a picture of easy-VQA, one shape on a ground of one colour: 0, -1 or -2."""
    side = size // 14
    array = np.asarray(image.convert("RGB"), np.float32)
    differs = np.abs(array - array[0, 0]).max(-1) > 24
    share = np.asarray(Image.fromarray(differs.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BOX)) / 255
    return np.where(share > 0.6, 0, np.where(share < 0.02, -1, -2)).reshape(-1).astype(np.int64)


def _scene(seed: int) -> tuple[Image.Image, list[list[str]], tuple[scenes.SceneObject, ...]]:
    scene = scenes.generate(seed, split="train")
    return scene.image, [[o.color, o.shape, *place(o)] for o in scene.objects], scene.objects


@torch.no_grad()
def collect(model: DemoVlm, prompts: Prompts, source: Source, pictures: int) -> tuple[Tensor, Tensor]:
    """Patch features ``[n, 384]`` and what the projector shall make of them ``[n, 576]``, of so many scenes a size."""
    vectors, mean = word_vectors(model, prompts, (*scenes.COLORS, *scenes.SHAPES, *SIDES, GROUND, *EASY_WORDS))
    rng = np.random.default_rng(0)
    features: list[Tensor] = []
    targets: list[Tensor] = []

    def add(image: Image.Image, words: list[list[str]], shown: npt.NDArray[np.int64], size: int) -> None:
        keep = np.where((shown >= 0) | ((shown == -1) & (rng.random(len(shown)) < GROUND_SHARE)))[0]
        of = [mean + sum((NAMES if w not in SIDES else PLACES) * vectors[w] for w in group) for group in words]
        of.append(mean + vectors[GROUND])
        features.append(model.features(pixels(image, size)[None])[0][keep].half())
        targets.append(torch.stack(of)[shown[keep]].half())  # ground is -1: the last one

    for number in range(pictures):
        image, words, objects = _scene(source.scene_seed())
        for size in SIZES:
            add(image, words, scene_patches(objects, size), size)
        if number % 3 == 0:
            example = source.easy_example(100)
            answers = {a for _, a in example.questions} - {"yes", "no"}
            for size in SIZES if len(answers) == 2 else ():  # not every picture is asked for colour and shape
                add(example.image, [sorted(answers)], easy_patches(example.image, size), size)
    return torch.cat(features), torch.cat(targets)


def align(model: DemoVlm, prompts: Prompts, source: Source, *, pictures: int = 400, steps: int = 2500) -> float:
    """Train the projector alone, in place, its input statistics first; returns the last share of variance missed."""
    started = time.perf_counter()
    features, targets = collect(model, prompts, source, pictures)
    model.projector.mean.copy_(features.float().mean(0))
    model.projector.std.copy_(features.float().std(0) + 1e-6)
    scale = targets.float().var(0).sum()
    optimizer = torch.optim.AdamW(model.projector.parameters(), lr=2e-3, weight_decay=0.02)
    missed = 1.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps) + 1e-5
        picked = torch.randint(len(features), (1024,))
        error = (model.projector(features[picked]) - targets[picked].float()).square().sum(1).mean() / scale
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        missed = 0.98 * missed + 0.02 * float(error.detach())
    seconds = time.perf_counter() - started
    print(f"projector aligned on {len(features)} patches in {seconds:.0f} s: {missed:.3f} of the variance missed")
    return missed
