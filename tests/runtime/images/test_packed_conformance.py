"""The conformance vectors of packed towers: reproduced by this runtime, and what transformers gives today."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.conformance import write_packed_images as writer
from tests.conformance.write_images import digest, picture
from trtprune.runtime.images import processor_from_settings

VECTORS = json.loads(writer.PATH.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['height']}x{case['width']}")
def test_this_runtime(case: dict[str, Any]) -> None:
    processor = processor_from_settings(case["processor"], case["settings"], "config.json")
    prepared = processor.prepare(picture(case["height"], case["width"]))
    plan = prepared.plan
    assert (plan.tokens, *(plan.grid[-1, 1:] + 1)) == (case["tokens"], case["rows"], case["columns"])
    assert digest(prepared.pixel_values, "float32") == case["pixel_values"]
    assert digest(plan.grid, "int32") == case["grid"]
    np.testing.assert_array_equal(plan.pack_index[:, 0], np.arange(plan.tokens))
    found = {
        name: {"shape": list(array.shape), "sha256": digest(array, "int64")} for name, array in prepared.arrays.items()
    }
    assert found == case["arrays"]


def test_the_file_is_what_the_script_writes() -> None:
    assert writer.PATH.read_text(encoding="utf-8") == writer.text()
