"""Writes ``positions.json``: the positions of prompts with images, by each rule and for each number of axes.

    python -m tests.conformance.write_positions

A member of ``cases``:

* ``rule``, ``axes``: as ``config.positions`` has them.
* ``pieces``: the prompt in order: a number is that many text tokens; an object is an image, with its ``sides``, the
  numbers of crops, rows and columns of its grid (tokens crop by crop and row by row), and ``kept``, the indices of the
  tokens that enter the decoder.
* ``positions``: for each axis, the position of each token that enters.
* ``next``: the position of the answer's first token.

Positions of whole images with three axes are those of ``get_rope_index`` of transformers' Qwen2.5-VL and Qwen3-VL; the
others those of a walk over every token.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

PATH = Path(__file__).with_name("positions.json")
FAMILIES = (Qwen2_5_VLModel, Qwen3VLModel)
MERGE = 2
"""Patches of a side of a visual token."""

Piece = int | dict[str, list[int]]


def whole(sides: list[int]) -> list[int]:
    """The tokens of an image that keeps all."""
    return list(range(sides[0] * sides[1] * sides[2]))


def walk(rule: str, axes: int, pieces: list[Piece]) -> tuple[list[list[int]], int]:
    """Positions [axes, S] and the next one: every token in turn, dropped ones included."""
    rows: list[list[int]] = []
    p = 0
    for piece in pieces:
        if isinstance(piece, int):
            for _ in range(piece):
                rows.append([p] * axes)
                p += 1
            continue
        kept, start, top = set(piece["kept"]), p, p - 1
        for token, place in enumerate(itertools.product(*map(range, piece["sides"]))):
            stays = token in kept
            mine = [start + number for number in place] if axes == 3 else [p]
            if stays:
                rows.append(mine)
            if axes == 1:
                p += stays or rule == "original"
            elif stays or rule == "original":
                top = max(top, *mine)
        if axes == 3:
            p = top + 1
    return [[row[axis] for row in rows] for axis in range(axes)], p


def transformers_places(family: Any, pieces: list[Piece]) -> tuple[list[list[int]], int]:
    """Positions [3, S] and the next one of a prompt with whole images of one crop."""
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=MERGE, tokens_per_second=2))
    model = SimpleNamespace(config=config)
    model.get_vision_position_ids = lambda *a, **k: family.get_vision_position_ids(model, *a, **k)
    types = [kind for p in pieces for kind in ([0] * p if isinstance(p, int) else [1] * len(whole(p["sides"])))]
    grids = [[1, MERGE * p["sides"][1], MERGE * p["sides"][2]] for p in pieces if not isinstance(p, int)]
    found, delta = family.get_rope_index(
        model,
        input_ids=torch.zeros(1, len(types), dtype=torch.long),
        mm_token_type_ids=torch.tensor([types]),
        image_grid_thw=torch.tensor(grids),
    )
    return found[:, 0].tolist(), int(delta) + len(types)


def prompts() -> list[list[Piece]]:
    """Random prompts: whole images and pruned ones, one and several, thin ones, several crops."""
    draw = random.Random(0)
    made: list[list[Piece]] = [[3], [0, {"sides": [1, 1, 1], "kept": [0]}, 1]]
    for number in range(16):
        pieces: list[Piece] = [draw.randrange(5)]
        for _ in range(draw.randint(1, 3)):
            sides = [draw.randint(2, 5) if number % 4 == 3 else 1, draw.randint(1, 6), draw.randint(1, 6)]
            kept = whole(sides)
            if number % 2:
                kept = sorted(draw.sample(kept, draw.randint(1, len(kept))))
            pieces += [{"sides": sides, "kept": kept}, draw.randint(1, 6)]
        made.append(pieces)
    return made


def cases() -> list[dict[str, Any]]:
    """All cases, in the file's order."""
    result = []
    for pieces in prompts():
        images = [piece for piece in pieces if not isinstance(piece, int)]
        for rule, axes in itertools.product(("compact", "original"), (1, 3)):
            positions, following = walk(rule, axes, pieces)
            if axes == 3 and images and all(p["kept"] == whole(p["sides"]) and p["sides"][0] == 1 for p in images):
                for family in FAMILIES:
                    assert (positions, following) == transformers_places(family, pieces)
            case = {"rule": rule, "axes": axes, "pieces": pieces, "positions": positions, "next": following}
            result.append(case)
    return result


def text() -> str:
    """The file's content, a case a line."""
    lines = ",\n".join(json.dumps(case) for case in cases())
    return f'{{"version": 1, "cases": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
