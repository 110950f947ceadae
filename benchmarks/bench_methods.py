"""Pruning methods on the demo model at equal average budgets: what they answer, and what the answer takes.

    python benchmarks/bench_methods.py --accuracy-only [--questions 400] [--max-minutes 60] --json FILE
    python benchmarks/bench_methods.py --timing-only [--rounds 5] --json FILE      (nothing else on the machine)
        [--keep 192,128,64] [--methods sparsevlm,adafv,…]

The two parts can run at different times and write into one file; accuracy goes on where the file's last run stopped.

Accuracy: three sets of questions, all with one-word answers that are not yes or no, exact match of the greedy answer:
``easy``, open questions of easy-VQA's test split; of held-out scenes ``large``, asking for the colour, form or place of
the largest object, and ``small``, of another one. Every method answers the same questions, question by question in
turns over the sets, so that a run that is stopped has compared like with like; a picture is looked at once for all of
them, as pruning comes after the vision tower. Beside each figure: the 95 % Wilson interval, what pruning broke and
repaired against no pruning, and McNemar's exact p. The blind control answers about the picture of another question.

Time: pictures in turn, medians over rounds; the time to first token counts from a picture in memory, vision tower
included. Operations are counted (trtprune.bench.flops) for a prompt of 89 text tokens. ``none`` at 576 tokens is the
first line; ratios are against it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _machine import machine, write_json
from count_flops_7b import count
from PIL import Image

import trtprune
from trtprune.demo import scenes
from trtprune.errors import BudgetError
from trtprune.reports.statistics import mcnemar_exact, wilson
from trtprune.runtime import Vlm

METHODS = ("sparsevlm", "fastv", "pyramiddrop", "adafv", "zspaprune", "fastervlm", "random")
# Where its own layers leave no room for a budget, PyramidDrop prunes from the third layer on.
OPTIONS: dict[str, dict[str, Any]] = {"pyramiddrop": {"first": 2}}
SETS = ("easy", "large", "small")
ALL, BLIND = 576, "none, wrong picture"
STEPS = 32
SEED = 3
# Below this number are the scenes that the training log and the README look at.
FIRST_SCENE = 1000
SAVE_EVERY = 15


@dataclass(frozen=True)
class Item:
    """A question of a set about a picture."""

    set: str
    image: Image.Image
    question: str
    answer: str


def easy_items(count: int) -> list[Item]:
    """A seeded sample of easy-VQA's open test questions."""
    import easy_vqa

    paths = easy_vqa.get_test_image_paths()
    rows = [row for row in zip(*easy_vqa.get_test_questions(), strict=True) if row[1] not in ("yes", "no")]
    chosen = random.Random(SEED).sample(rows, min(count, len(rows)))
    return [Item("easy", Image.open(paths[image]).convert("RGB"), text, answer) for text, answer, image in chosen]


def scene_items(count: int) -> list[Item]:
    """``count`` questions about the largest object and as many about another one: one of each a held-out scene."""
    found: dict[str, list[Item]] = {"large": [], "small": []}
    number = FIRST_SCENE
    while min(map(len, found.values())) < count:
        scene = scenes.generate(number, split="test")
        for name, items in found.items():
            kinds: dict[str, list[scenes.SceneQuestion]] = defaultdict(list)
            for question in scene.questions:
                if question.salient is (name == "large") and question.kind in ("color", "shape", "position"):
                    kinds[question.kind].append(question)
            if kinds and len(items) < count:
                rng = random.Random(f"{SEED} {number} {name}")
                # The kind is drawn first: there are twice as many questions about places.
                asked = rng.choice(kinds[rng.choice(sorted(kinds))])
                items.append(Item(name, scene.image, asked.text, asked.answer))
        number += 1
    return found["large"] + found["small"]


def in_turns(items: Sequence[Item]) -> list[Item]:
    """One of each set after the other, and what is left of longer sets behind."""
    sets: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        sets[item.set].append(item)
    longest = max(map(len, sets.values()))
    return [sets[name][i] for i in range(longest) for name in SETS if i < len(sets[name])]


class Build:
    """A method's build, which serves all budgets."""

    def __init__(self, method: str, folder: Path) -> None:
        options = OPTIONS.get(method, {})
        self.name = " ".join([method, *(f"{key}={value}" for key, value in options.items())])
        self.vlm: Vlm = trtprune.load(trtprune.build("demo", folder / method, method=method, options=options).root)
        # Builds with the same vision graph see the same.
        self.vision = self.vlm.config.files["onnx/vision.onnx"]

    def look(self, image: Image.Image) -> Any:
        """Features of a picture."""
        return self.vlm.features([image])[0]

    def answer(self, features: Any, item: Item, keep: int) -> str:
        """The greedy answer, from features that were computed before."""
        return self.vlm.generate(features, item.question, keep=keep, max_new_tokens=6).text.strip().lower()

    def time(self, image: Image.Image, question: str, keep: int) -> tuple[float, float, int]:
        """Milliseconds to the first token and for each further one, and bytes of KV cache."""
        result = self.vlm.generate(image, question, keep=keep, max_new_tokens=STEPS + 1, ignore_eos=True)
        first = sum(result.timings[stage] for stage in ("preprocess", "vision", "prune", "prefill"))
        return first, result.timings["decode"] / STEPS, result.kv_cache_bytes

    def operations(self, keep: int) -> float:
        """10^9 operations to the first token."""
        return 1000.0 * count(self.vlm.config, keep)["tera_operations"]["total"]


Plan = list[tuple[str, int]]


def accuracy(
    builds: dict[str, Build], plan: Plan, items: list[Item], result: dict[str, Any], save: Any, until: float
) -> None:
    """Adds marks ("1" right, "0" wrong, a character a question in order) to ``result``, by method and budget."""
    marks = result["marks"]
    held = min((len(marks.get(key(*entry), "")) for entry in plan), default=0)
    for name, keep in plan:  # a run that was killed between two methods
        marks[key(name, keep)] = marks.get(key(name, keep), "")[:held]
    for number in range(held, len(items)):
        if time.monotonic() > until:
            break
        item = items[number]
        # The control's picture: that of the next question of this set with another answer.
        later = [*items[number + 1 :], *items[:number]]
        other = next((i for i in later if i.set == item.set and i.answer != item.answer), items[number - 1])
        seen: dict[Any, Any] = {}
        row = {}
        for name, keep in plan:
            build = builds["none" if name == BLIND else name]
            shown = other.image if name == BLIND else item.image
            where = (build.vision, name == BLIND)
            if where not in seen:
                seen[where] = build.look(shown)
            row[key(name, keep)] = build.answer(seen[where], item, keep) == item.answer
        for entry, hit in row.items():
            marks[entry] += "01"[hit]
        if (number + 1) % SAVE_EVERY == 0:
            save()
            print(f"{number + 1} of {len(items)} questions", flush=True)
    save()


def key(name: str, keep: int) -> str:
    return f"{name} {keep}"


def summarise(marks: dict[str, str], items: list[Item], entry: str, whole: str) -> dict[str, Any]:
    """By set: right, of, the interval, and what differs from the answers without pruning."""
    found: dict[str, Any] = {}
    for name in SETS:
        pairs = [
            (a == "1", b == "1") for a, b, i in zip(marks[entry], marks[whole], items, strict=False) if i.set == name
        ]
        if not pairs:
            continue
        right = sum(a for a, _ in pairs)
        low, high = wilson(right, len(pairs))
        found[name] = {"right": right, "of": len(pairs), "low": round(low, 4), "high": round(high, 4)}
        if entry != whole:
            broken, repaired = sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs)
            found[name] |= {"broken": broken, "repaired": repaired, "mcnemar_p": mcnemar_exact(broken, repaired)}
    return found


def timing(builds: dict[str, Build], plan: Plan, items: list[Item], rounds: int, result: dict[str, Any]) -> None:
    """Measures every method in every round; the first round warms up."""
    times: dict[tuple[str, int], list[tuple[float, float, int]]] = defaultdict(list)
    for number in range(rounds + 1):
        for name, keep in plan:
            measured = builds[name].time(items[number % len(items)].image, items[0].question, keep)
            if number:
                times[name, keep].append(measured)
    for (name, keep), measured in times.items():
        first, token, cache = (statistics.median(column) for column in zip(*measured, strict=True))
        result["times"][key(name, keep)] = {
            "first_token_ms": round(first, 2), "first_token_ms_all": [round(m[0], 2) for m in measured],
            "ms_per_token": round(token, 3), "kv_cache_bytes": cache, "giga_operations": builds[name].operations(keep),
        }  # fmt: skip


def servable(builds: dict[str, Build], methods: Sequence[str], budgets: Sequence[int]) -> Plan:
    """The entries whose build serves the budget; says which do not."""
    plan: Plan = [("none", ALL)]
    for keep in budgets:
        for name in methods:
            try:
                builds[name].vlm.check_keep(keep)
                plan.append((name, keep))
            except BudgetError as error:
                print(f"{name} {keep}: left out: {error}")
    return plan


def rows(result: dict[str, Any], plan: Plan, names: dict[str, str], items: list[Item]) -> list[dict[str, Any]]:
    """The table: what is known of each entry."""
    whole, table = key("none", ALL), []
    for name, keep in [*plan[:1], (BLIND, ALL), *plan[1:]]:
        row: dict[str, Any] = {
            "method": names.get(name, name),
            "keep": keep,
            **result["times"].get(key(name, keep), {}),
        }
        if result["marks"].get(key(name, keep)):
            row["accuracy"] = summarise(result["marks"], items, key(name, keep), whole)
        if len(row) > 2:
            table.append(row)
    return table


def show(table: list[dict[str, Any]]) -> None:
    """Prints the table."""
    base = table[0].get("first_token_ms") if table else None
    for row in table:
        line = f"{row['method']:<20}{row['keep']:>4}"
        for name, of in row.get("accuracy", {}).items():
            share = f"{100 * of['right'] / of['of']:5.1f} % [{100 * of['low']:.0f}, {100 * of['high']:.0f}]"
            line += f"  {name} {share} of {of['of']}"
        if base and "first_token_ms" in row:
            line += (
                f"  {row['first_token_ms']:7.1f} ms ({base / row['first_token_ms']:.2f} x)  "
                f"{row['ms_per_token']:5.2f} ms/token  KV {row['kv_cache_bytes'] / 1e6:5.1f} MB  "
                f"{row['giga_operations']:6.1f} GFLOP"
            )
        print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--accuracy-only", action="store_true")
    part.add_argument("--timing-only", action="store_true")
    parser.add_argument("--questions", type=int, default=400, help="of each of the three sets")
    parser.add_argument("--max-minutes", type=float, default=1e6, help="stop the accuracy part after so long")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", default="192,128,64")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--json", type=Path, help="what it holds already is gone on with")
    given = parser.parse_args(argv)
    methods, budgets = given.methods.split(","), [int(budget) for budget in given.keep.split(",")]
    result: dict[str, Any] = {"marks": {}, "times": {}}
    if given.json and given.json.exists():
        result |= json.loads(given.json.read_text())
    items = in_turns(easy_items(given.questions) + scene_items(given.questions))
    with tempfile.TemporaryDirectory() as folder:
        builds = {name: Build(name, Path(folder)) for name in ("none", *methods)}
        model = builds["none"].vlm.config.model.digest
        about = {"questions": given.questions, "keep": budgets, "methods": methods, "seed": SEED, "model": model}
        if result.get("about", about) != about:
            raise SystemExit(f"{given.json} is of {result['about']}, not of {about}: another --json, or delete it")
        result["about"] = about
        plan = servable(builds, methods, budgets)
        names = {name: build.name for name, build in builds.items()}

        def save() -> None:
            result["rows"] = rows(result, plan, names, items)
            if given.json:
                write_json(given.json, result)

        if not given.timing_only:
            command = f"python benchmarks/bench_methods.py --accuracy-only --questions {given.questions}"
            result["accuracy_command"] = f"{command} --keep {given.keep} --methods {given.methods}"
            until = time.monotonic() + 60 * given.max_minutes
            accuracy(builds, [*plan, (BLIND, ALL)], items, result, save, until)
        if not given.accuracy_only:
            command = f"python benchmarks/bench_methods.py --timing-only --rounds {given.rounds}"
            result["timing_command"] = f"{command} --keep {given.keep} --methods {given.methods}"
            timing(builds, plan, items, given.rounds, result)
            result["machine"] = machine()
        save()
    show(result["rows"])


if __name__ == "__main__":
    main()
