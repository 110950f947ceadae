"""Places and budgets of visual tokens in C++: the conformance vectors."""

from __future__ import annotations

import json
from typing import Any

from tests.conformance import write_chain

FILE = json.loads(write_chain.PATH.read_text(encoding="utf-8"))


def test_layouts(driver: Any) -> None:
    for case, made in zip(FILE["layouts"], driver("layouts")(FILE["layouts"]), strict=True):
        expected = {name: case[name] for name in ("ids", "positions", "next_position")}
        assert made == expected | {"rows": len(case["ids"])}, case


def test_budgets(driver: Any) -> None:
    assert driver("layouts")(FILE["budgets"]) == [case["keep"] for case in FILE["budgets"]]
