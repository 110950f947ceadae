"""Pruning methods on the demo model at equal average budgets: what they answer, and what the answer takes.

    python benchmarks/bench_methods.py [--questions 400] [--rounds 5] [--keep 192,128,64]
        [--methods sparsevlm,adafv,…] [--json benchmarks/results/methods.json]

Accuracy: open questions of easy-VQA's test split and of held-out scenes ("small" asks for the colour, form or place of
an object that is not the largest), exact match of a greedy answer, with a 95 % Wilson interval. Every method answers
the same questions; a picture is looked at once for all of them, as pruning comes after the vision tower. Time: the same
pictures in turn, medians over rounds; the time to first token counts from a picture in memory, vision tower included.
Operations are counted (trtprune.bench.flops) for a prompt of 89 text tokens. ``none`` at 576 tokens is the first line;
ratios are against it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from _machine import machine
from count_flops_7b import count
from PIL import Image

import trtprune
from trtprune.demo import scenes
from trtprune.errors import BudgetError
from trtprune.runtime import Vlm

METHODS = ("sparsevlm", "fastv", "pyramiddrop", "adafv", "zspaprune", "fastervlm", "random")
# Where its own layers leave no room for a budget, PyramidDrop prunes from the third layer on.
OPTIONS: dict[str, dict[str, Any]] = {"pyramiddrop": {"first": 2}}
STEPS = 32
SEED = 3
# Below this number are the scenes that the training log looks at.
FIRST_SCENE = 1000
Item = tuple[str, Image.Image, str, str]
"""Set, picture, question, answer."""


def easy_items(count: int) -> list[Item]:
    """A seeded sample of easy-VQA's open test questions."""
    import easy_vqa

    paths = easy_vqa.get_test_image_paths()
    rows = [row for row in zip(*easy_vqa.get_test_questions(), strict=True) if row[1] not in ("yes", "no")]
    chosen = random.Random(SEED).sample(rows, min(count, len(rows)))
    return [("easy", Image.open(paths[image]).convert("RGB"), text, answer) for text, answer, image in chosen]


def scene_items(count: int) -> list[Item]:
    """Open questions of held-out scenes, four a scene, of every kind in turn."""
    items: list[Item] = []
    rng, number = random.Random(SEED), FIRST_SCENE
    while len(items) < count:
        scene = scenes.generate(number, split="test")
        kinds: dict[str, list[scenes.Question]] = defaultdict(list)
        for question in scene.questions:
            if question.answer not in ("yes", "no"):
                name = "count" if question.salient is None else "large" if question.salient else "small"
                kinds[name].append(question)
        # Twice as many about small objects: they are what pruning by saliency loses.
        for name in ("small", "small", "large", "count"):
            if kinds[name]:
                question = kinds[name].pop(rng.randrange(len(kinds[name])))
                items.append((name, scene.image, question.text, question.answer))
        number += 1
    return items[:count]


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    z, p = 1.96, right / total
    centre, spread = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return (centre - spread) / (1 + z * z / total), (centre + spread) / (1 + z * z / total)


class Build:
    """A method's build, which serves all budgets, with the pictures' features taken from a common store."""

    def __init__(self, method: str, folder: Path, features: dict[int, Any]) -> None:
        options = OPTIONS.get(method, {})
        self.name = " ".join([method, *(f"{key}={value}" for key, value in options.items())])
        self.vlm: Vlm = trtprune.load(trtprune.build("demo", folder / method, method=method, options=options).root)
        self._look = self.vlm.features
        self._features = features

    def answer(self, item: Item, keep: int) -> str:
        """The greedy answer, with features computed once for all builds."""
        _, image, question, _ = item
        if id(image) not in self._features:
            self._features[id(image)] = self.vlm.chain.look([self.vlm.preprocessor(image)])[0]
        self.vlm.features = lambda images, clock: [self._features[id(i)] for i in images]  # type: ignore[method-assign]
        return self.vlm.generate(image, question, keep=keep, max_new_tokens=6).text.strip().lower()

    def time(self, image: Image.Image, question: str, keep: int) -> tuple[float, float, int]:
        """Milliseconds to the first token and for each further one, and bytes of KV cache."""
        self.vlm.features = self._look  # type: ignore[method-assign]
        result = self.vlm.generate(image, question, keep=keep, max_new_tokens=STEPS + 1, ignore_eos=True)
        first = sum(result.timings[stage] for stage in ("preprocess", "vision", "prune", "prefill"))
        return first, result.timings["decode"] / STEPS, result.kv_cache_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=400, help="of each of the two sets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", default="192,128,64")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    budgets = [int(part) for part in given.keep.split(",")]
    items = easy_items(given.questions) + scene_items(given.questions)
    features: dict[int, Any] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        builds = {name: Build(name, Path(folder), features) for name in ("none", *given.methods.split(","))}
        plan = [("none", 576), *((name, keep) for keep in budgets for name in builds if name != "none")]
        times: dict[tuple[str, int], list[tuple[float, float, int]]] = defaultdict(list)
        for round_ in range(given.rounds + 1):
            for name, keep in plan:
                try:
                    measured = builds[name].time(items[round_ % len(items)][1], items[0][2], keep)
                except BudgetError as error:
                    print(f"{name} {keep}: {error}")
                    continue
                if round_:  # the first warms up
                    times[name, keep].append(measured)
        for name, keep in (entry for entry in plan if entry in times):
            right: dict[str, list[bool]] = defaultdict(list)
            for item in items:
                right[item[0]].append(builds[name].answer(item, keep) == item[3])
            first, token, cache = (statistics.median(column) for column in zip(*times[name, keep], strict=True))
            found = {kind: (sum(hits), len(hits), *wilson(sum(hits), len(hits))) for kind, hits in right.items()}
            operations = count(builds[name].vlm.config, keep)["tera_operations"]["total"]
            row = {
                "method": builds[name].name, "keep": keep, "first_token_ms": first, "ms_per_token": token,
                "kv_cache_bytes": cache, "giga_operations": 1000 * operations,
                "accuracy": {k: dict(zip(("right", "of", "low", "high"), v, strict=True)) for k, v in found.items()},
            }  # fmt: skip
            rows.append(row)
            share = "  ".join(f"{kind} {100 * v[0] / v[1]:5.1f} % of {v[1]}" for kind, v in found.items())
            ratio = rows[0]["first_token_ms"] / first
            print(
                f"{row['method']:<20}{keep:>4}  {share}  {first:7.1f} ms ({ratio:.2f} x)  {token:5.2f} ms/token"
                f"  KV {cache / 1e6:5.1f} MB  {row['giga_operations']:6.1f} GFLOP",
                flush=True,
            )
    if given.json:
        result = {"command": "python benchmarks/bench_methods.py", "machine": machine(), "seed": SEED, "rows": rows}
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
