"""The conformance vectors of images: this runtime reproduces them, and they are what transformers gives today."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.conformance import write_images
from trtprune.runtime.images import processor_from_settings

CASES = json.loads(write_images.PATH.read_text(encoding="utf-8"))["cases"]


def name(case: dict[str, Any]) -> str:
    return f"{case['processor']}-{case['height']}x{case['width']}-{case['images']}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_this_runtime(case: dict[str, Any]) -> None:
    processor = processor_from_settings(case["processor"], case["settings"], "config.json")
    prepared = processor.prepare(write_images.picture(case["height"], case["width"]), case["images"])
    plan = prepared.plan
    assert (plan.crops, plan.tokens) == (case["crops"], case["tokens"])
    assert write_images.digest(prepared.pixel_values, "float32") == case["pixel_values"]
    if "grid" in case:
        assert write_images.digest(plan.grid, "int32") == case["grid"]
        assert write_images.digest(plan.pack_index[:, 0], "int32") == case["pack_index"]
    rows = np.append(write_images.features(plan.crops, processor.shape.features).ravel(), np.float32(-1))
    tokens = (rows[plan.pack_index] * plan.pack_weight).sum(axis=1)
    for token, value in case.get("packed", {}).items():
        assert tokens[int(token)] == pytest.approx(value, abs=1e-6)


def test_the_vectors_cover_what_differs() -> None:
    kinds = {(case["processor"], case["images"] > 1, "grid" in case) for case in CASES}
    assert {("single", False, True), ("llava_next", False, True)} <= kinds
    assert {
        ("llava_onevision", False, False),
        ("llava_onevision", False, True),
        ("llava_onevision", True, True),
    } <= kinds
    assert any(case["tokens"] == 576 for case in CASES)


def test_the_file_is_what_the_script_writes() -> None:
    """Weighted sums to 1e-6, for their last bit is the machine's."""
    again = json.loads(write_images.text())["cases"]
    for mine, case in zip(again, CASES, strict=True):
        assert mine.pop("packed", {}) == pytest.approx(case.get("packed", {}), abs=1e-6)
        assert mine == {key: value for key, value in case.items() if key != "packed"}
