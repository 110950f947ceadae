"""Places and budgets of visual tokens in C++: the conformance vectors."""

from __future__ import annotations

import json
from typing import Any

from tests.conformance import write_chain, write_spans

FILE = json.loads(write_chain.PATH.read_text(encoding="utf-8"))


def test_layouts(driver: Any) -> None:
    for case, made in zip(FILE["layouts"], driver("layouts")(FILE["layouts"]), strict=True):
        expected = {name: case[name] for name in ("ids", "positions", "next_position")}
        assert {name: made[name] for name in expected} == expected, case
        assert made["rows"] == len(case["ids"])


def test_budgets(driver: Any) -> None:
    assert driver("layouts")(FILE["budgets"]) == [case["keep"] for case in FILE["budgets"]]


def test_spans(driver: Any) -> None:
    """Images of several spans, with text around and between them."""
    cases = json.loads(write_spans.PATH.read_text(encoding="utf-8"))["layouts"]
    for case, made in zip(cases, driver("layouts")([{"axes": 1, **case} for case in cases]), strict=True):
        expected = {name: case[name] for name in ("ids", "next_position", "places", "marker_rows")}
        assert made == expected | {"positions": [case["positions"]], "rows": len(case["ids"])}, case
