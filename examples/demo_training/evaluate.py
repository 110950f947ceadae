"""Accuracy of an assembled demo checkpoint through transformers, beside its blind controls.

    python examples/demo_training/evaluate.py --images 400 --scenes 150 --json benchmarks/results/demo_accuracy.json

Every picture is encoded once at 336 pixels (576 visual tokens, nothing pruned); its own questions and, as the
wrong-image control, those of another picture follow it in one sequence, each seeing the picture and itself only.
A question counts as right if the arg max is the right token at every position of the answer and of its end-of-turn
token, which is the same as greedy generation giving exactly that word; ``--generate N`` checks N of them that way.

Questions about scenes are counted by what they ask about: ``large``, colour, form or place of the largest object;
``small``, of another one; ``count``; ``presence``. Intervals are Wilson's, 95 %; questions about one picture are not
independent, so that they are somewhat too narrow. With ``--max-minutes`` the pictures that were reached are counted.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import check_packages  # noqa: F401  before torch
import torch
from data import Prompts, collate, load_easy_vqa
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from trtprune.demo import assemble, scenes
from trtprune.eval.statistics import wilson

FIRST_SCENE = 1000  # below: what the training log's running accuracy and the README look at

# (question, answer, labels it is counted under)
Item = tuple[str, str, tuple[str, ...]]
Row = tuple[Image.Image, list[Item]]


def easy_rows(count: int, seed: int) -> tuple[list[Row], int]:
    """A seeded sample of test pictures with all their questions, and how many test pictures there are."""
    table = load_easy_vqa("test")
    keys = random.Random(seed).sample(sorted(table), min(count, len(table)))
    rows = []
    for key in keys:
        path, questions = table[key]
        items = [(q, a, ("yes_no",) if a in ("yes", "no") else ("open", open_kind(a))) for q, a in questions]
        rows.append((Image.open(path).convert("RGB"), items))
    return rows, len(table)


def open_kind(answer: str) -> str:
    return "open_shape" if answer in ("circle", "rectangle", "triangle") else "open_color"


def scene_rows(count: int, seed: int, per_scene: int) -> list[Row]:
    """Held-out scenes; of each, a seeded choice of questions that spreads over the kinds."""
    rng = random.Random(seed)
    rows = []
    for number in range(FIRST_SCENE, FIRST_SCENE + count):
        scene = scenes.generate(number, split="test")
        kinds: dict[str, list[scenes.SceneQuestion]] = defaultdict(list)
        for question in scene.questions:
            kinds[question.kind].append(question)
        for group in kinds.values():
            rng.shuffle(group)
        chosen: list[scenes.SceneQuestion] = []
        while len(chosen) < per_scene and any(kinds.values()):
            chosen += [group.pop() for group in kinds.values() if group]
        items: list[Item] = []
        for q in chosen[:per_scene]:
            items.append((q.text, q.answer, scene_labels(q)))
        rows.append((scene.image, items))
    return rows


def scene_labels(question: scenes.SceneQuestion) -> tuple[str, ...]:
    """What a question of a scene is counted under."""
    form = "yes_no" if question.answer in ("yes", "no") else "open"
    if question.kind in ("count", "presence"):
        return form, question.kind
    group = "large" if question.salient else "small"
    return form, question.kind, group, f"{group}_{question.kind}"


class Model:
    """The checkpoint with many questions a picture."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(directory, dtype=dtype).eval()
        self.processor = AutoProcessor.from_pretrained(directory)
        self.prompts = Prompts(Tokenizer.from_file(str(directory / "tokenizer.json")))

    @torch.inference_mode()
    def right(self, image: Image.Image | None, questions: list[tuple[str, str]]) -> list[bool]:
        """Whether each question's answer comes out word for word; without an image, from its text alone."""
        size = self.model.config.vision_config.image_size
        batch = collate(self.prompts, [([image] if image else [], questions)], size)
        embeds = self.model.get_input_embeddings()(batch.ids)
        if image is not None:
            pixels = self.processor.image_processor(image, return_tensors="pt")["pixel_values"].to(embeds.dtype)
            visual = self.model.get_image_features(pixel_values=pixels).pooler_output[0]
            embeds = embeds.masked_scatter(batch.image[..., None], visual.to(embeds.dtype))
        decoder: Any = self.model.model.language_model
        hidden: Tensor = decoder(
            inputs_embeds=embeds, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        hit = self.model.lm_head(hidden[batch.rows, batch.columns]).argmax(-1) == batch.targets
        return [bool(hit[batch.question == number].all()) for number in range(len(questions))]

    @torch.inference_mode()
    def generate(self, image: Image.Image, question: str) -> str:
        """The plain way: chat template, processor, greedy ``generate``."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(images=image, text=text, return_tensors="pt").to(self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        return str(self.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def evaluate(model: Model, rows: list[Row], name: str, deadline: float) -> dict[str, Any]:
    """Rates per label: with the image, with another row's image, with the question alone."""
    right: dict[str, Counter[str]] = {way: Counter() for way in ("image", "wrong_image", "no_image")}
    total: Counter[str] = Counter()
    done = 0
    for index, (image, items) in enumerate(rows):
        if time.time() > deadline:
            break
        # The neighbour's questions, with the neighbour's answers: the seeded sample is in random order already.
        other = rows[(index + 1) % len(rows)][1]
        asked = [*items, *other]
        with_image = model.right(image, [(q, a) for q, a, _ in asked])
        alone = model.right(None, [(q, a) for q, a, _ in items])
        for (_, _, labels), hit, blind in zip(items, with_image, alone, strict=False):
            for label in ("all", *labels):
                total[label] += 1
                right["image"][label] += hit
                right["no_image"][label] += blind
        for (_, _, labels), hit in zip(other, with_image[len(items) :], strict=True):
            for label in ("all", *labels):
                total[f"wrong:{label}"] += 1
                right["wrong_image"][label] += hit
        done += 1
        if done % 20 == 0:
            so_far = right["image"]["open"] / max(1, total["open"])
            print(f"{name} {done}/{len(rows)}: open {so_far:.3f}", flush=True)
    labels = sorted(label for label in total if not label.startswith("wrong:"))
    return {
        "images": done,
        "accuracy": {
            label: {
                "questions": total[label],
                **rate("image", right["image"][label], total[label]),
                **rate("wrong_image", right["wrong_image"][label], total[f"wrong:{label}"]),
                **rate("no_image", right["no_image"][label], total[label]),
            }
            for label in labels
        },
    }


def rate(way: str, right: int, total: int) -> dict[str, Any]:
    """The share that is right, and its 95 % interval."""
    low, high = wilson(right, total)
    return {way: round(right / max(1, total), 4), f"{way}_95": [round(low, 4), round(high, 4)]}


def question_table(rows: list[Row]) -> dict[str, float]:
    """easy-VQA's own prior: the most frequent training answer of each question text."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for _, questions in load_easy_vqa("train").values():
        for text, answer in questions:
            seen[text][answer] += 1
    total: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for _, items in rows:
        for text, answer, labels in items:
            guess = seen[text].most_common(1)[0][0] if text in seen else ""
            for label in ("all", labels[0]):
                total[label] += 1
                right[label] += guess == answer
    return {label: round(right[label] / total[label], 4) for label in sorted(total)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: assemble it")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--per-scene", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--generate", type=int, default=0)
    parser.add_argument("--max-minutes", type=float, default=1e6)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    checkpoint = args.checkpoint or assemble(progress=print)
    model = Model(checkpoint, getattr(torch, args.dtype))
    started = time.time()
    easy, available = easy_rows(args.images, args.seed)
    held_out = scene_rows(args.scenes, args.seed, args.per_scene)
    share = len(easy) / max(1, len(easy) + len(held_out))
    deadline = started + 60 * args.max_minutes
    report: dict[str, Any] = {
        "command": " ".join(["python examples/demo_training/evaluate.py", *sys.argv[1:]]),
        "what": "exact-match accuracy of the demo model, unpruned, 576 visual tokens (336 px), greedy",
        "checkpoint": checkpoint.name,
        "dtype": args.dtype,
        "seed": args.seed,
        "scene_seeds": [FIRST_SCENE, FIRST_SCENE + args.scenes - 1],
        "easy_vqa_test_images_available": available,
        "easy_vqa_test": evaluate(model, easy, "easy-VQA", started + 60 * args.max_minutes * share),
        "question_table_on_easy_vqa": question_table(easy),
        "held_out_scenes": evaluate(model, held_out, "scenes", deadline),
    }
    if args.generate:
        rng = random.Random(args.seed)
        agree = 0
        for _ in range(args.generate):
            image, items = rng.choice(easy + held_out)
            text, answer, _ = rng.choice(items)
            agree += (model.generate(image, text) == answer) == model.right(image, [(text, answer)])[0]
        report["generate_agrees"] = f"{agree}/{args.generate}"
    report["minutes"] = round((time.time() - started) / 60, 1)
    text = json.dumps(report, indent=2)
    print(text)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
