"""Training sequences: one image prefix, then several questions that see the image and themselves only."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from tokenizers import Tokenizer
from torch import Tensor

from trtprune.demo import scenes

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
HOLD_OUT = 200  # easy-VQA training images kept back for the log's running accuracy


@dataclass(frozen=True)
class Example:
    """One picture and its (question, answer) pairs."""

    image: Image.Image
    questions: list[tuple[str, str]]


def pixels(image: Image.Image, size: int) -> Tensor:
    """What the checkpoint's image processor does: bicubic to a square, ImageNet statistics → ``[3, size, size]``."""
    resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    array = (np.asarray(resized, np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


class Prompts:
    """Token ids of the pieces of the chat template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = self.ids("<|im_end|>")
        self.newline = self.ids("\n")
        self.open = self.ids("<|im_start|>user\n")
        self.answer = self.ids("<|im_end|>\n<|im_start|>assistant\n")

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


def load_easy_vqa(split: str) -> dict[int, tuple[str, list[tuple[str, str]]]]:
    """Image id → (path, questions) of easy-VQA's ``train`` or ``test`` split."""
    import easy_vqa

    train = split == "train"
    questions = easy_vqa.get_train_questions() if train else easy_vqa.get_test_questions()
    paths = easy_vqa.get_train_image_paths() if train else easy_vqa.get_test_image_paths()
    table: dict[int, tuple[str, list[tuple[str, str]]]] = {}
    for text, answer, image in zip(*questions, strict=True):
        table.setdefault(image, (paths[image], []))[1].append((text, answer))
    return table


def pick(questions: list[tuple[str, str]], count: int, rng: random.Random) -> list[tuple[str, str]]:
    """All open questions first, then yes and no in equal shares, up to ``count``, in random order."""
    groups = [[q for q in questions if (q[1] in ("yes", "no")) == closed] for closed in (False, True)]
    for group in groups:
        rng.shuffle(group)
    yes = [q for q in groups[1] if q[1] == "yes"]
    no = [q for q in groups[1] if q[1] == "no"]
    closed = [q for pair in zip(yes, no, strict=False) for q in pair]
    chosen = (groups[0] + closed)[:count]
    rng.shuffle(chosen)
    return chosen


def descriptions(scene: scenes.Scene) -> list[tuple[str, str]]:
    """ "describe the star." → "red star top left", for every phrase that fits one object.

    Four words to look up where a question has one: the decoder learns to look things up from these much sooner.
    """
    pairs = []
    for index, name, _ in scenes.names(scene.objects):
        item = scene.objects[index]
        pairs.append((f"describe the {name}.", " ".join((item.color, item.shape, *place(item)))))
    return pairs


def place(item: scenes.SceneObject) -> tuple[str, str]:
    """("top", "left") and so on: the quarter of the scene the object's centre lies in."""
    return "top" if item.y < scenes.SIZE / 2 else "bottom", "left" if item.x < scenes.SIZE / 2 else "right"


class Source:
    """Seeded endless stream of training examples: easy-VQA's training split and generated scenes."""

    def __init__(self, seed: int) -> None:
        table = load_easy_vqa("train")
        self.easy = [table[key] for key in sorted(table)]
        self.train, self.held = self.easy[:-HOLD_OUT], self.easy[-HOLD_OUT:]
        self.rng = random.Random(seed)
        self.next_scene = seed * 10_000_000

    def easy_example(self, count: int) -> Example:
        path, questions = self.rng.choice(self.train)
        image = Image.open(path).convert("RGB")
        if self.rng.random() < 0.5:  # no question of easy-VQA is about left or right
            image = ImageOps.mirror(image)
        return Example(image, pick(list(questions), count, self.rng))

    def scene_seed(self) -> int:
        self.next_scene += 1
        return self.next_scene

    def scene_example(self, count: int, described: float = 0.0) -> Example:
        """A new scene and ``count`` questions, a share of them requests to describe one object in four words."""
        scene = scenes.generate(self.scene_seed(), split="train")
        chosen = descriptions(scene)
        self.rng.shuffle(chosen)
        del chosen[round(described * count) :]
        kinds: dict[str, list[tuple[str, str]]] = {}
        for question in scene.questions:
            kinds.setdefault(question.kind, []).append((question.text, question.answer))
        for group in kinds.values():
            self.rng.shuffle(group)
        # Kinds in turn (colours and shapes twice): a scene has three times as many places as colours to ask for.
        order = ["color", "shape", "position", "count", "color", "shape", "presence", "position"]
        self.rng.shuffle(order)
        for kind in order * 3:
            if kinds.get(kind) and len(chosen) < count:
                chosen.append(kinds[kind].pop())
        self.rng.shuffle(chosen)
        return Example(scene.image, chosen)

    def draw(self, scene_share: float, count: int, described: float) -> Example:
        if self.rng.random() < scene_share:
            return self.scene_example(count, described)
        return self.easy_example(count)

    def vary(self, text: str) -> str:
        """Plain most of the time; sometimes capitalised, sometimes with the usual request for one word."""
        if self.rng.random() < 0.4:
            text = text[0].upper() + text[1:]
        if self.rng.random() < 0.15:
            text += " Answer with one word."
        return text


@dataclass
class Batch:
    """One micro-batch: every row has the same images-per-row and resolution.

    ids ``[b, l]`` (image slots hold 0), image ``[b, l]`` bool, positions ``[b, l]``, mask ``[b, 1, l, l]`` bool,
    pixels ``[b * images, 3, s, s]``; rows/columns/targets index the tokens that predict an answer token, and
    question numbers the (row, question) pair of each.
    """

    ids: Tensor
    image: Tensor
    positions: Tensor
    mask: Tensor
    pixels: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    question: Tensor


def collate(prompts: Prompts, rows: list[tuple[list[Image.Image], list[tuple[str, str]]]], size: int) -> Batch:
    """Pack rows of (images, questions) into one batch; see :class:`Batch`."""
    tokens_per_image = (size // 14) ** 2
    encoded = []
    for images, questions in rows:
        prefix, visual = list(prompts.open), [False] * len(prompts.open)
        for _ in images:
            prefix += [0] * tokens_per_image + prompts.newline
            visual += [True] * tokens_per_image + [False] * len(prompts.newline)
        blocks = [(prompts.ids(q) + prompts.answer, prompts.ids(a) + prompts.end) for q, a in questions]
        encoded.append((prefix, visual, blocks))
    length = max(len(p) + sum(len(q) + len(a) for q, a in blocks) for p, _, blocks in encoded)
    shape = (len(rows), length)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    image, mask = np.zeros(shape, bool), np.zeros((*shape, length), bool)
    picks: list[tuple[int, int, int, int]] = []
    number = 0
    for row, (prefix, visual, blocks) in enumerate(encoded):
        start = len(prefix)
        ids[row, :start], image[row, :start], positions[row, :start] = prefix, visual, np.arange(start)
        mask[row, :start, :start] = np.tri(start, dtype=bool)
        at = start
        for question, answer in blocks:
            block = question + answer
            stop = at + len(block)
            ids[row, at:stop], positions[row, at:stop] = block, start + np.arange(len(block))
            mask[row, at:stop, :start] = True
            mask[row, at:stop, at:stop] = np.tri(len(block), dtype=bool)
            first = at + len(question) - 1
            picks += [(row, first + i, token, number) for i, token in enumerate(answer)]
            number += 1
            at = stop
        mask[row, range(at, length), range(at, length)] = True  # padding sees itself: no empty softmax
    flat = [pixels(i, size) for images, _ in rows for i in images]
    pixel = torch.stack(flat) if flat else torch.zeros(0, 3, size, size)
    row_ids, columns, targets, question_ids = (torch.tensor(x) for x in zip(*picks, strict=True))
    as_tensor = torch.from_numpy
    return Batch(
        as_tensor(ids), as_tensor(image), as_tensor(positions), as_tensor(mask)[:, None], pixel,
        row_ids, columns, targets, question_ids,
    )  # fmt: skip
