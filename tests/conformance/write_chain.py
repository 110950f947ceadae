"""Writes ``chain.json``: what a run decides between the graphs, retold from docs/engine-directory.md.

    python -m tests.conformance.write_chain

``README.md`` beside it says what the members mean.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from tests.kit import schedule_oracle
from trtprune import pruning

PATH = Path(__file__).with_name("chain.json")
IMAGE = 99

# -- prompts


def grid(rows: int, columns: int, newlines: bool = False) -> list[list[int]]:
    """Crop, row and column of an image of one crop, with a newline token behind each row or without."""
    found = []
    for row in range(rows):
        found += [[0, row, column] for column in range(columns)]
        found += [[-1, -1, -1]] if newlines else []
    return found


def layout(rule: str, axes: int, prompt: list[int], images: list[tuple[list[int], list[list[int]]]]) -> dict[str, Any]:
    """Ids and positions of a prompt; ``images`` are each image's kept indices and grid."""
    ids: list[int] = []
    places: list[list[int]] = []
    p = 0
    remaining = iter(images)
    for number in prompt:
        if number != IMAGE:
            ids.append(number)
            places.append([p] * axes)
            p += 1
            continue
        kept, of_tokens = next(remaining)
        ids += [IMAGE] * len(kept)
        if axes == 3:
            places += [[p + axis for axis in of_tokens[index]] for index in kept]
            counted = [of_tokens[index] for index in kept] if rule == "compact" else of_tokens
            p += max((max(cell) for cell in counted), default=-1) + 1
        elif rule == "compact":
            places += [[p + i] for i in range(len(kept))]
            p += len(kept)
        else:
            places += [[p + index] for index in kept]
            p += len(of_tokens)
    return {
        "rule": rule,
        "axes": axes,
        "prompt": prompt,
        "image_positions": [i for i, number in enumerate(prompt) if number == IMAGE],
        "images": [{"kept": kept, "grid": of_tokens} for kept, of_tokens in images],
        "ids": ids,
        "positions": [[place[axis] for place in places] for axis in range(axes)],
        "next_position": p,
    }


def layouts() -> Iterator[dict[str, Any]]:
    """Prompts with no image, one and several."""
    small, lines, wide = grid(2, 3), grid(3, 2, True), grid(1, 8)
    cases: list[tuple[list[int], list[tuple[list[int], list[list[int]]]]]] = [
        ([1, 2, 3], []),
        ([1, IMAGE, 2, 3], [([1, 4], small)]),
        ([IMAGE, 5], [([0, 1, 2, 3, 4, 5], small)]),
        ([1, IMAGE], [([5], small)]),
        ([1, IMAGE, IMAGE, 7, 8, IMAGE, 9], [([0, 5], small), ([7], wide), ([2], small)]),
    ]
    of_lines = [([1, IMAGE, 2], [([1, 2, 4], lines)]), ([IMAGE, 3, IMAGE], [([0, 7], lines), ([3], small)])]
    for rule in ("compact", "original"):
        for prompt, images in [*cases, *of_lines]:
            yield layout(rule, 1, prompt, images)
        for prompt, images in cases:
            yield layout(rule, 3, prompt, images)


# -- budgets, and images that leave no choice


def budgets() -> Iterator[dict[str, Any]]:
    """A share of an image's visual tokens as a number: the float64 product, halves to the even number, at least 1."""
    for ratio in (1e-9, 0.1, 0.25, 1 / 3, 0.5, 0.55, 0.7, 0.999, 1.0):
        for tokens in (1, 2, 5, 10, 50, 576, 729, 2340, 2928, 7269):
            product = Fraction(ratio * tokens)
            whole = product.numerator // product.denominator
            rest = product - whole
            rounded = whole + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1))
            yield {"keep_ratio": ratio, "tokens": tokens, "keep": max(1, rounded)}


def plan(newline: list[int], padding: list[int]) -> dict[str, Any]:
    """An image: for each token the place of its line's newline token or -1, and the tokens that show padding alone."""
    return {"newline": newline, "padding": padding}


PLANS = [
    plan([-1] * 6, []),
    plan([-1] * 6, [0, 5]),
    plan([2, 2, 2, 5, 5, 5, -1, -1], []),
    plan([3, 3, 3, 3, 7, 7, 7, 7, -1, -1], [0, 4, 5]),
    plan([1, 1, 3, 3], []),
]


def without_choice(image: dict[str, Any], keep: int, rule: str) -> list[int] | None:
    """The kept tokens where there is nothing to choose, else None."""
    newline, padding = image["newline"], image["padding"]
    ends = [i for i, end in enumerate(newline) if end == i and rule != "candidates"]
    candidates = [i for i in range(len(newline)) if i not in ends and i not in padding]
    if keep < len(candidates) or (keep == len(candidates) and len(candidates) == len(newline)):
        return None
    if keep >= len(candidates) + len(padding):
        return list(range(len(newline)))
    return sorted([*candidates, *padding[: keep - len(candidates)]])


def choices() -> Iterator[dict[str, Any]]:
    """Every budget of every image; newline tokens are candidates or, with both other rules, not."""
    for rule in ("drop", "keep", "candidates"):
        for image in PLANS:
            for keep in range(1, len(image["newline"]) + 2):
                yield {"newlines": rule, **image, "keep": keep, "kept": without_choice(image, keep, rule)}


def newlines() -> Iterator[dict[str, Any]]:
    """The newline tokens that stay beside kept tokens; -1 is a token of the tower's own."""
    cases = ((2, [0, 3]), (2, [6, 7]), (2, [4]), (3, [-1, 1, 2, 9]), (0, [1]))
    for image, kept in ((PLANS[number], kept) for number, kept in cases):
        for rule in ("keep", "drop", "candidates"):
            ends = {image["newline"][i] for i in kept if i >= 0} - {-1}
            after = sorted({*kept, *ends}) if rule == "keep" else kept
            yield {"newlines": rule, "newline": image["newline"], "selected": kept, "kept": after}
    # Where newline tokens are candidates, one can be selected itself.
    yield {"newlines": "candidates", "newline": PLANS[4]["newline"], "selected": [0, 1], "kept": [0, 1]}


# -- schedules

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("sparsevlm", {}),
    ("sparsevlm", {"version": "2.0"}),
    ("sparsevlm", {"layers": "published"}),
    ("sparsevlm", {"recycle": 0.0}),
    ("sparsevlm", {"recycle": 0.55}),
    ("fastv", {}),
    ("fastv", {"k": 3}),
    ("pyramiddrop", {}),
    ("pyramiddrop", {"first": 2}),
    ("pyramiddrop", {"first": 1}),
]


def stored(method: str, depth: int, options: dict[str, Any]) -> dict[str, Any]:
    """``pruning.schedule`` as a build writes it."""
    chosen: Any = pruning.get(method)
    return dataclasses.asdict(chosen.plan(depth, chosen.validate_options(options)))


SIZES = (
    (32, 576, (64, 96, 128, 192, 300, 570)),
    (28, 729, (100, 365)),
    (24, 2340, (160, 640)),
    (24, 40, (1, 12, 39, 40, 50)),
)
"""Layers of the decoder, visual tokens of an image, and budgets."""
OWN = ("sparsevlm", 24, {"schedule": "3:30,8:20,15:11"})
RANKED = {
    "budget": ("sparsevlm", 32, {"ratio": "rank"}),
    "scale": ("sparsevlm", 32, {"ratio": "rank", "scale": 2, "bias": -3.5}),
}


def schedules() -> Iterator[dict[str, Any]]:
    """Counts by every level tried out; None where the budget is out of reach."""
    for method, options in METHODS:
        for depth, tokens, keeps in SIZES:
            cases = []
            for keep in keeps:
                many = len(schedule_oracle.points_of(method, depth, options))
                found = ([tokens] * many, [tokens] * many)
                if keep < tokens:
                    found = schedule_oracle.schedule(method, keep, tokens, depth, options, at_most=True) or (None, None)
                cases.append({"keep": keep, "tokens": tokens, "kept": found[0], "behind": found[1]})
            yield {"schedule": stored(method, depth, options), "cases": cases}
    counts, info = [30, 20, 11], stored(*OWN)
    behind = schedule_oracle.follow(counts, 60, *OWN[::2])[1]
    own = round(schedule_oracle.average(behind, 60, 24, (3, 8, 15), "sparsevlm"))
    cases = [{"keep": own, "tokens": 60, "kept": counts, "behind": behind}]
    # A smaller image of the same prompt has fewer tokens than the schedule keeps.
    kept, behind = schedule_oracle.follow(counts, own + 1, *OWN[::2])
    yield {"schedule": info, "cases": [*cases, {"keep": own, "tokens": own + 1, "kept": kept, "behind": behind}]}


def ranked() -> Iterator[dict[str, Any]]:
    """Counts from ranks: by the budget, every level tried out, and by a scale."""
    info = stored(*RANKED["budget"])
    cases = [(576, 192, [30, 20, 12, 5]), (576, 64, [7]), (576, 64, [7, 9]), (40, 12, [0, 3, 1]), (40, 60, [3, 2])]
    cases += [(100, 99, [1, 1, 1, 1]), (300, 100, [9, 9, 3, 1])]
    found = [
        {"keep": keep, "tokens": n, "ranks": ranks, "kept": by_rank(info, keep, n, ranks)} for n, keep, ranks in cases
    ]
    yield {"schedule": info, "cases": found}
    found = []
    for tokens, ranks in ((576, [10, 2, 1]), (576, [400, 30, 576, 3]), (40, [40, 40, 40, 40]), (40, [39, 12, 11, 0])):
        before, kept = tokens, []
        for rank in ranks:
            kept.append(before if rank >= before else max(1, min(int(rank * 2 - 3.5), before - 1)))
            before = kept[-1] + schedule_oracle.vectors_of(before - kept[-1], "sparsevlm", {})
        found.append({"keep": 77, "tokens": tokens, "ranks": ranks, "kept": kept})
    yield {"schedule": stored(*RANKED["scale"]), "cases": found}


def by_rank(info: dict[str, Any], keep: int, tokens: int, ranks: list[int]) -> list[int]:
    """max(1, ⌊f·k_i/k⌋) for the f whose average is nearest, points to come with the rank of the last one."""
    if keep >= tokens:
        return [tokens] * len(ranks)
    known = [max(1, rank) for rank in ranks]
    known += known[-1:] * (len(info["points"]) - len(known))
    ways = [
        schedule_oracle.follow([max(1, f * rank // max(known)) for rank in known], tokens, "sparsevlm", {})
        for f in range(1, tokens * max(known))
    ]
    far = [schedule_oracle.average(left, tokens, info["depth"], info["points"], "sparsevlm") - keep for _, left in ways]
    return ways[schedule_oracle.nearest(far)][0][: len(ranks)]


def merges() -> Iterator[dict[str, Any]]:
    """Removed tokens → merged tokens and their vectors."""
    for share in (Fraction(0), Fraction(3, 10), Fraction(11, 20), Fraction(1)):
        for removed in (0, 1, 2, 9, 10, 33, 500):
            merged = min(removed, int(removed * share) + 1) if share and removed else 0
            vectors = schedule_oracle.vectors_of(removed, "sparsevlm", {"recycle": float(share)})
            recycled = [share.numerator, share.denominator]
            case = {"recycled": recycled, "per_vector": 10, "removed": removed}
            yield {**case, "merged": merged, "vectors": vectors}


PARTS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "layouts": layouts,
    "budgets": budgets,
    "without_choice": choices,
    "newlines": newlines,
    "merges": merges,
    "schedules": schedules,
    "ranked": ranked,
}


def text() -> str:
    """The file's content, a case a line."""
    members = ['"version": 1']
    members += [f'"{name}": [\n' + ",\n".join(map(json.dumps, make())) + "\n]" for name, make in PARTS.items()]
    return "{" + ",\n".join(members) + "}\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
