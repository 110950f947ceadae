"""What pruning inside the decoder leaves of the object that a question is about, and whether the question decides it.

    python benchmarks/in_llm_survival.py OUT [--scenes 60] [--keep 128] [--json FILE]

``OUT`` is an engine directory of the demo model. Each held-out scene is asked two questions, about its largest object
and about another one. Printed for each variant: right answers to both; of the largest object's tokens, how many the
last segment holds when it is asked about and when another object is, and how many a draw of as many tokens would hold;
and how alike the kept sets of the two questions are (Jaccard). The scenes are not those of the other tables.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from pathlib import Path

import numpy as np
from _machine import machine, write_json

from trtprune.backends.running import Running
from trtprune.demo import scenes
from trtprune.variants import Variant, Variants

FIRST_SCENE = 20_000
GRID, PATCH = 24, 14
VARIANTS = (
    "sparsevlm",
    "sparsevlm:version=2.0",
    "sparsevlm:recycle=0",
    "sparsevlm:recycle=0:schedule=2:119,6:91",
    "fastv",
    "pyramiddrop:first=2",
    "random",
)
KINDS = ("color", "shape")


def covered(thing: scenes.SceneObject) -> np.ndarray:
    """Indices of the patches whose centre lies within the object's radius."""
    centres = (np.arange(GRID) + 0.5) * PATCH
    away = (centres[None, :] - thing.x) ** 2 + (centres[:, None] - thing.y) ** 2
    return np.flatnonzero(away.ravel() <= thing.radius**2)


def pairs(count: int) -> list[tuple[scenes.Scene, scenes.SceneQuestion, scenes.SceneQuestion]]:
    """Scenes with a question about the largest object and one of the same kind about another."""
    found: list[tuple[scenes.Scene, scenes.SceneQuestion, scenes.SceneQuestion]] = []
    number = FIRST_SCENE
    while len(found) < count:
        scene = scenes.generate(number, split="test")
        rng = random.Random(number)
        kind = rng.choice(KINDS)
        asked = [[q for q in scene.questions if q.kind == kind and q.salient is salient] for salient in (True, False)]
        if all(asked):
            found.append((scene, rng.choice(asked[0]), rng.choice(asked[1])))
        number += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--keep", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    asked, rows = pairs(given.scenes), []
    with Variants(given.out, Running(threads=given.threads)) as variants:
        for text in VARIANTS:
            variant = Variant.parse(text)
            vlm = variants.open(variant)
            low, high = vlm.config.pruning.keep_range
            keep = min(max(given.keep, low), high)  # a schedule by hand serves one budget
            right, left, others, drawn, whole, alike = [0, 0], [], [], [], [], []
            for seed, (scene, *questions) in enumerate(asked):
                picture = vlm.features([scene.image])[0]
                largest = covered(scene.objects[0])
                kept = []
                for i, question in enumerate(questions):
                    # A draw for each question, so that the baseline has two kept sets as well.
                    found = vlm.generate(
                        picture, question.text, keep=keep, max_new_tokens=6, seed=2 * seed + i
                    )  # fmt: skip
                    right[i] += found.text.strip().lower() == question.answer
                    kept.append(set(found.kept_indices[0]))
                whole.append(len(largest))
                left.append(len(kept[0] & set(largest.tolist())))
                others.append(len(kept[1] & set(largest.tolist())))
                drawn.append(len(largest) * len(kept[0]) / found.visual_tokens)
                alike.append(len(kept[0] & kept[1]) / len(kept[0] | kept[1]))
            variants.release(variant)
            row = {
                "variant": variant.label,
                "keep": keep,
                "scenes": len(asked),
                "right_largest": right[0],
                "right_other": right[1],
                "tokens": statistics.mean(whole),
                "left_asked": statistics.mean(left),
                "left_not_asked": statistics.mean(others),
                "left_if_drawn": statistics.mean(drawn),
                "jaccard": statistics.mean(alike),
            }
            rows.append(row)
            print(
                f"{row['variant']:36} right {right[0]:3} and {right[1]:3} of {len(asked)}; largest object "
                f"{row['tokens']:.1f} tokens: {row['left_asked']:.1f} left when asked about, "
                f"{row['left_not_asked']:.1f} when another is, {row['left_if_drawn']:.1f} of a draw; "
                f"Jaccard {row['jaccard']:.2f}",
                flush=True,
            )
    if given.json:
        command = f"python benchmarks/in_llm_survival.py OUT --scenes {given.scenes} --keep {given.keep}"
        write_json(given.json, {"command": command, "machine": machine(), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
