"""The conformance vectors of an answer's text while it grows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance import write_generation
from tests.conformance.write_turns import Directory

FILE = json.loads(write_generation.PATH.read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", range(len(FILE["directories"])))
def test_this_runtime(number: int) -> None:
    member: dict[str, Any] = FILE["directories"][number]
    encoder = Directory(*write_generation.DIRECTORIES[number]).ours
    for case in member["cases"]:
        made, pieces, reason = encoder.detokenizer(case["stop"]), [], "length"
        for used, token in enumerate(case["ids"], 1):
            pieces.append(made.add(token))
            if token in case["eos"] or made.stopped:
                reason = "stop"
            if reason == "stop" or used == case["max_new_tokens"]:
                break
        found = {"pieces": pieces, "rest": made.finish(), "text": made.text, "finish_reason": reason}
        assert found == {name: case[name] for name in found}, case


def test_the_vectors_cover_what_differs() -> None:
    cases = [case for member in FILE["directories"] for case in member["cases"]]
    assert {case["finish_reason"] for case in cases} == {"stop", "length"}
    assert all("".join(case["pieces"]) + case["rest"] == case["text"] for case in cases)
    assert any(not piece for case in cases for piece in case["pieces"])
    assert any(case["rest"] for case in cases)
    # An answer that a stop string ended, and one that only begins with it.
    assert any(len(case["pieces"]) < len(case["ids"]) and case["stop"] for case in cases)
    assert any("\ufffd" in case["text"] for case in cases)


def test_the_file_is_what_the_script_writes() -> None:
    assert json.loads(write_generation.text()) == FILE
