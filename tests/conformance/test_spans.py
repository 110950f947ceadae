"""The conformance vectors of several spans an image: this runtime reproduces them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance import write_spans
from tests.conformance.write_images import digest, picture
from trtprune.engine_dir.json_dataclasses import decode
from trtprune.runtime.images import processor_from_settings
from trtprune.runtime.layout import Selection, lay_out
from trtprune.runtime.positions import position_rule
from trtprune.runtime.prompt import Prompt, PromptEncoder
from trtprune.text.info import TextInfo
from trtprune.text.template import Turn

FILE = json.loads(Path(write_spans.PATH).read_text(encoding="utf-8"))


def name(case: dict[str, Any]) -> str:
    return f"{case['processor']}-{case['height']}x{case['width']}"


@pytest.mark.parametrize("case", FILE["images"], ids=name)
def test_images(case: dict[str, Any]) -> None:
    processor = processor_from_settings(case["processor"], case["settings"], "config.json")
    prepared = processor.prepare(picture(case["height"], case["width"]))
    plan = prepared.plan
    assert plan.crops == case["crops"]
    assert digest(prepared.pixel_values, "float32") == case["pixel_values"]
    assert digest(plan.grid, "int32") == case["grid"]
    assert plan.pack_index[:, 0].tolist() == list(range(plan.tokens))
    assert (list(plan.spans), list(plan.markers)) == (case["spans"], case["markers"])


@pytest.mark.parametrize("directory", FILE["directories"], ids=lambda directory: directory["name"])
def test_prompts(directory: dict[str, Any]) -> None:
    info = decode(TextInfo, directory["text"])
    tokenizer = FILE["tokenizers"][directory["tokenizer"]]
    style = next(values for values in write_spans.DIRECTORIES if values[0] == directory["name"])
    config = {"bos_token": "<s>", "eos_token": "</s>", **style[3]}
    files = {"tokenizer.json": json.dumps(tokenizer), "tokenizer_config.json": json.dumps(config)}
    encoder = PromptEncoder(files, directory["image_token"], directory["image_token_id"], info.template)
    for case in directory["cases"]:
        turns = [Turn(*turn) for turn in case["turns"]]
        prompt = encoder.encode(turns, raw=case["raw"], markers=case["markers"])
        found = {
            "ids": prompt.ids.tolist(),
            "image_positions": list(prompt.image_positions),
            "marker_positions": list(prompt.markers),
            "question": list(prompt.question),
        }
        assert found == {name: case[name] for name in found}, case["rendered"]


@pytest.mark.parametrize("case", FILE["layouts"])
def test_layouts(case: dict[str, Any]) -> None:
    spans = tuple(tuple(image["spans"]) for image in case["images"])
    kept = tuple(np.array(image["kept"], np.int64) for image in case["images"])
    rows = tuple(np.zeros((len(indices), 2), np.float32) for indices in kept)
    grids = tuple(np.zeros((sum(lengths), 3), np.int32) for lengths in spans)
    prompt = Prompt(np.array(case["prompt"]), tuple(case["image_positions"]), (), markers=tuple(case["markers"]))
    selection = Selection(kept, rows, grids, (1,) * len(kept), spans)
    found = lay_out(prompt, np.zeros((len(prompt.ids), 2), np.float32), selection, position_rule(case["rule"], 1))
    assert found.ids.tolist() == case["ids"]
    assert found.positions.tolist() == [case["positions"]]
    assert found.next_position == case["next_position"]
    assert [[list(place) for place in places] for places in found.places] == case["places"]
    assert found.markers.tolist() == case["marker_rows"]


def test_the_vectors_cover_what_differs() -> None:
    assert {len(case["spans"]) for case in FILE["images"]} > {1, 17}
    prompts = [case for directory in FILE["directories"] for case in directory["cases"]]
    assert {len(case["markers"]) for case in prompts} == {1, 2, 3}
    assert any(first == stop for case in FILE["layouts"] for places in case["places"] for first, stop in places)


def test_the_file_is_what_the_script_writes() -> None:
    assert json.loads(write_spans.text()) == FILE
