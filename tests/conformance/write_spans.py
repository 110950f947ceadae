"""Writes ``spans.json``: images of several spans with text around and between them, and prompts with such images.

    python -m tests.conformance.write_spans

``README.md`` beside it says what the members mean.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import GotOcr2ImageProcessorPil, InternVLProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from tests.conformance.write_images import digest, picture
from tests.conformance.write_turns import Directory, rendered, tokenizer_json
from trtprune.runtime.images import CropShape, processor_from_settings
from trtprune.text.template import Turn

PATH = Path(__file__).with_name("spans.json")
AROUND, WHOLE, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"

# -- images

SMALL = CropShape(28, 28, (14, 14))
PUBLISHED = CropShape(384, 384, (42, 42))
SMALL_SIZES = [(1, 1), (28, 28), (40, 60), (97, 41), (10, 300), (300, 10), (123, 456), (113, 112)]
IMAGES: list[tuple[Any, CropShape, dict[str, Any], list[tuple[int, int]]]] = [
    (SmolVLMImageProcessorPil, SMALL, {"size": {"longest_edge": 112}}, SMALL_SIZES),
    (Idefics3ImageProcessorPil, SMALL, {"size": {"longest_edge": 111}, "resample": 3}, SMALL_SIZES),
    (SmolVLMImageProcessorPil, SMALL, {"size": {"longest_edge": 28}}, SMALL_SIZES),
    (SmolVLMImageProcessorPil, SMALL, {"size": {"longest_edge": 112}, "do_image_splitting": False}, SMALL_SIZES[:4]),
    (Idefics3ImageProcessorPil, PUBLISHED, {"size": {"longest_edge": 1536}}, [(480, 640), (700, 333)]),
]


def image_case(kind: Any, shape: CropShape, values: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """An image by transformers' processor, and its text with a placeholder for each visual token."""
    values = {**values, "max_image_size": {"longest_edge": shape.height}}
    found = kind(**values)(picture(height, width), return_tensors=None, return_row_col_info=True)
    pixels = np.asarray(found["pixel_values"], np.float32)[0]
    rows, columns = found["rows"][0][0], found["cols"][0][0]
    text = get_image_prompt_string(rows, columns, 1, AROUND, IMAGE, WHOLE)
    settings = processor_from_settings("smolvlm", {**values, **shape.settings()}, "preprocessor_config.json").settings()
    return {
        "processor": "smolvlm",
        "settings": settings,
        "height": height,
        "width": width,
        **crops_of(pixels, shape, (rows, columns)),
        "spans": [shape.patches] * (text.count(IMAGE)),
        "markers": text.split(IMAGE),
    }


def crops_of(pixels: np.ndarray, shape: CropShape, tiles: tuple[int, int]) -> dict[str, Any]:
    """Digests of the crops of an image and of the places that they show: tiles (down, across), then the whole image."""
    crop, place = np.divmod(np.arange(len(pixels) * shape.patches), shape.patches)
    tile = np.where(crop < tiles[0] * tiles[1], crop, 0)
    down, right = np.divmod(tile, max(1, tiles[1]))
    grid = (crop, down * shape.rows + place // shape.columns, right * shape.columns + place % shape.columns)
    return {
        "crops": len(pixels),
        "pixel_values": digest(pixels, "float32"),
        "grid": digest(np.stack(grid, axis=1), "int32"),
    }


INTERNVL: list[tuple[CropShape, dict[str, Any], list[tuple[int, int]]]] = [
    (SMALL, {"max_patches": 12}, SMALL_SIZES),
    (
        CropShape(30, 30, (7, 7)),
        {"min_patches": 2, "max_patches": 5, "resample": 2, "do_normalize": False},
        SMALL_SIZES,
    ),
    (SMALL, {"max_patches": 1}, SMALL_SIZES[:2]),
    (CropShape(448, 448, (28, 28)), {}, [(480, 640), (448, 448), (1080, 1920)]),
]


def internvl_case(shape: CropShape, values: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """An image by transformers' processor of InternVL, which stands in a single span."""
    values = {"size": {"height": shape.height, "width": shape.width}, **values}
    kind = GotOcr2ImageProcessorPil(**values)
    found = kind(picture(height, width), return_tensors=None, **InternVLProcessor.images_kwargs)
    pixels = np.stack([np.asarray(array, np.float32) for array in found["pixel_values"]])
    across, down = get_optimal_tiled_canvas(
        (height, width), (shape.height, shape.width), kind.min_patches, kind.max_patches
    )
    markers = ["<img>", "</img>"]
    given = {**values, "markers": markers, **shape.settings()}
    return {
        "processor": "internvl",
        "settings": processor_from_settings("internvl", given, "preprocessor_config.json").settings(),
        "height": height,
        "width": width,
        **crops_of(pixels, shape, (down, across)),
        "spans": [shape.patches * len(pixels)],
        "markers": markers,
    }


def images() -> Iterator[dict[str, Any]]:
    """All images."""
    for kind, shape, values, sizes in IMAGES:
        for size in sizes:
            yield image_case(kind, shape, values, *size)
    for shape, values, sizes in INTERNVL:
        for size in sizes:
            yield internvl_case(shape, values, *size)


# -- prompts

SPECIAL = {"additional_special_tokens": [AROUND, WHOLE, "<row_1_col_1>", "<row_1_col_2>", "<img>", "</img>"]}
DIRECTORIES: list[tuple[str, str, str | None, dict[str, Any]]] = [
    ("smolvlm", "smollm2", "smolvlm", SPECIAL),
    ("llava-llama2", "llama2", "llava", SPECIAL),
    ("no-template-metaspace", "metaspace", None, SPECIAL),
    ("chatml", "qwen2", "chatml", SPECIAL),
    ("no-tokens-of-their-own", "gpt2", "own", {}),
]


def tiles(rows: int, columns: int) -> list[str]:
    """SmolVLM's markers."""
    return get_image_prompt_string(rows, columns, 1, AROUND, IMAGE, WHOLE).split(IMAGE)


PROMPTS: list[tuple[list[Turn], bool, list[list[str]]]] = [
    ([Turn("user", "What is on the table?", 1)], False, [tiles(2, 2)]),
    ([Turn("user", "Why?", 1)], False, [tiles(0, 0)]),
    ([Turn("user", " Two \n", 2)], False, [tiles(1, 3), ["<img>", "</img>"]]),
    (
        [Turn("user", "<row_1_col_1> a", 3), Turn("assistant", "So."), Turn("user", "<row_1_col_1> And?")],
        False,
        [["", ""], tiles(3, 1), ["a ", " b", "", "\n"]],
    ),
    ([Turn("system", "Be brief."), Turn("user", "a b", 1)], False, [[" x", "y "]]),
    ([Turn("user", "", 1)], False, [tiles(1, 2)]),
    ([Turn("user", f"<s>{IMAGE} and {IMAGE}?", 2)], True, [tiles(1, 2), ["<img>", "</img>"]]),
    ([Turn("user", f"{IMAGE}{IMAGE}", 2)], True, [["", "", ""], ["", ""]]),
]


class Marked(Directory):
    """A directory whose prompts have markers."""

    def marked(self, turns: list[Turn], raw: bool, markers: list[list[str]]) -> dict[str, Any] | None:
        """A prompt by transformers' tokenizer on the whole string; None where the template takes other images."""
        plain = turns[-1].text if raw else rendered(turns, self.template)
        if plain.count(IMAGE) != len(markers):
            return None
        start, end = (0, len(plain)) if raw else self.question(turns, plain)
        # For each character of the text, whether it is a marker's or a placeholder's, and whether the question's.
        text, own, asked = "", [], []
        for number, piece in enumerate(plain.split(IMAGE)):
            place = sum(map(len, plain.split(IMAGE)[:number])) + number * len(IMAGE)
            if number:
                written = IMAGE.join(markers[number - 1])
                of_marker = [
                    flag for part in markers[number - 1] for flag in [*[True] * len(part), *[False] * len(IMAGE)]
                ]
                text, own = text + written, own + of_marker[: len(written)]
                asked += [False] * len(written)
            text += piece
            own += [False] * len(piece)
            asked += [start <= place + i < end for i in range(len(piece))]
        encoding = self.tokenizer(
            text, add_special_tokens=raw or not text.startswith("<s>"), return_offsets_mapping=True
        )
        ids, places = encoding["input_ids"], encoding["offset_mapping"]
        of_markers = [i for i, (first, last) in enumerate(places) if any(own[first:last]) and ids[i] != self.image]
        return {
            "turns": [[turn.role, turn.text, turn.images] for turn in turns],
            "raw": raw,
            "markers": markers,
            "rendered": text,
            "ids": ids,
            "image_positions": [i for i, number in enumerate(ids) if number == self.image],
            "marker_positions": of_markers,
            "question": [
                i
                for i, (first, last) in enumerate(places)
                if any(asked[first:last]) and ids[i] != self.image and i not in of_markers
            ],
        }

    def data(self) -> dict[str, Any]:
        """The directory's member of the file."""
        found = [self.marked(*prompt) for prompt in PROMPTS]
        return {
            "name": self.name,
            "tokenizer": self.style,
            "image_token": IMAGE,
            "image_token_id": self.image,
            "text": dataclasses.asdict(self.ours.describe()),
            "cases": [case for case in found if case is not None],
        }


# -- layouts


def layout(
    rule: str, prompt: list[int], markers: list[int], given: list[tuple[list[int], list[int]]]
) -> dict[str, Any]:
    """Ids, positions and places of a prompt; ``given`` are each image's spans and kept indices, 99 is a placeholder."""
    ids: list[int] = []
    numbers: list[int] = []
    places: list[list[list[int]]] = [[] for _ in given]
    waiting = [
        (image, sum(spans[:i]), length) for image, (spans, _) in enumerate(given) for i, length in enumerate(spans)
    ]
    position, moved = 0, {}
    for place, number in enumerate(prompt):
        moved[place] = len(ids)
        if number != 99:
            ids.append(number)
            numbers.append(position)
            position += 1
            continue
        image, first, length = waiting.pop(0)
        kept = [index - first for index in given[image][1] if first <= index < first + length]
        places[image].append([len(ids), len(ids) + len(kept)])
        numbers += [position + (i if rule == "compact" else index) for i, index in enumerate(kept)]
        ids += [99] * len(kept)
        position += len(kept) if rule == "compact" else length
    return {
        "rule": rule,
        "prompt": prompt,
        "image_positions": [i for i, number in enumerate(prompt) if number == 99],
        "markers": markers,
        "images": [{"spans": spans, "kept": kept} for spans, kept in given],
        "ids": ids,
        "positions": numbers,
        "next_position": position,
        "places": places,
        "marker_rows": [moved[place] for place in markers],
    }


def layouts() -> Iterator[dict[str, Any]]:
    """Prompts with images of one span and several, some of them left empty."""
    cases: list[tuple[list[int], list[int], list[tuple[list[int], list[int]]]]] = [
        ([1, 2, 99, 3, 99, 4, 5, 6], [1, 3, 5], [([4, 4], [0, 3, 5])]),
        ([1, 2, 99, 3, 99, 4, 99, 5, 6], [1, 3, 5, 7], [([2, 3, 4], [0, 1, 8])]),
        ([99, 3, 99, 99, 7, 99], [1], [([2, 2], [2]), ([3], [0, 1, 2]), ([1], [0])]),
        ([1, 99, 99, 99, 2], [], [([1, 0, 5], [0, 1, 5])]),
        ([8, 99, 9, 1, 8, 99, 9, 2], [0, 2, 4, 6], [([6], [5]), ([6], [0, 4])]),
    ]
    for rule in ("compact", "original"):
        for case in cases:
            yield layout(rule, *case)


@functools.cache
def text() -> str:
    """The file's content, a case a line."""

    def listed(cases: Iterator[dict[str, Any]]) -> str:
        return "[\n" + ",\n".join(map(json.dumps, cases)) + "\n]"

    directories = [Marked(*values).data() for values in DIRECTORIES]
    styles = dict.fromkeys(directory["tokenizer"] for directory in directories)
    members = [
        '"version": 1',
        '"images": ' + listed(images()),
        '"tokenizers": {' + ",\n".join(f"{json.dumps(style)}: {tokenizer_json(style)}" for style in styles) + "}",
        '"directories": ' + listed(iter(directories)),
        '"layouts": ' + listed(layouts()),
    ]
    return "{" + ",\n".join(members) + "}\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
