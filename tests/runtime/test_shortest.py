"""Answers of at least so many tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kit.runtime_kit import Kit, picture
from trtprune.errors import InputError
from trtprune.runtime import Request, Vlm

QUESTION = "What is this?"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("shortest") / "model")


@pytest.fixture(scope="module")
def vlm(kit: Kit) -> Vlm:
    """A model that ends its answer of QUESTION about the first picture with the fourth token."""
    free = kit.load("free", method="none").generate(picture(1), QUESTION, max_new_tokens=12, ignore_eos=True)
    end = free.token_ids[3]
    assert end not in free.token_ids[:3]
    for name in ("config.json", "generation_config.json"):
        set_end(kit.path / name, end)
    kit.model.generation_config.eos_token_id = end
    return kit.load("ends", method="none")


def set_end(path: Path, token: int) -> None:
    """Makes ``token`` the file's end of the sequence."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    content["eos_token_id"] = token
    if "text_config" in content:
        content["text_config"]["eos_token_id"] = token
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("shortest", [0, 3, 4, 5, 9, 14])
def test_ids_of_transformers(kit: Kit, vlm: Vlm, shortest: int) -> None:
    found = vlm.generate(picture(1), QUESTION, max_new_tokens=14, min_new_tokens=shortest)
    inputs = kit.inputs([picture(1)], QUESTION)
    with torch.no_grad():
        wanted = kit.model.generate(**inputs, max_new_tokens=14, min_new_tokens=shortest, do_sample=False)
    assert found.token_ids == wanted[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(found.token_ids) >= max(shortest, 4)


def test_stop_texts_within_it_do_not_end_it(vlm: Vlm) -> None:
    free = vlm.generate(picture(1), QUESTION, max_new_tokens=14, ignore_eos=True).text
    found = vlm.generate(picture(1), QUESTION, max_new_tokens=14, min_new_tokens=14, ignore_eos=True, stop=[free[2:4]])
    assert (found.text, found.finish_reason) == (free, "length")
    ended = vlm.generate(picture(1), QUESTION, max_new_tokens=14, min_new_tokens=1, ignore_eos=True, stop=[free[-2:]])
    assert (ended.text, ended.finish_reason) == (free[: free.index(free[-2:])], "stop")


@pytest.mark.parametrize("shortest", [-1, 1.5, True, "2"])
def test_values_that_are_none(vlm: Vlm, shortest: Any) -> None:
    with pytest.raises(InputError, match="min_new_tokens"):
        vlm.generate(picture(1), QUESTION, min_new_tokens=shortest)


def test_longer_than_the_longest(vlm: Vlm) -> None:
    """The call's longest answer, a row's own, or the default."""
    with pytest.raises(InputError, match="min_new_tokens=9: above 8, the longest answer"):
        vlm.generate(picture(1), QUESTION, max_new_tokens=8, min_new_tokens=9)
    with pytest.raises(InputError, match="min_new_tokens=9: above 8, the longest answer"):
        vlm.generate_batch([Request(picture(1), QUESTION, max_new_tokens=8)], min_new_tokens=9)
    with pytest.raises(InputError, match="min_new_tokens=65: above 64, the longest answer"):
        vlm.generate(picture(1), QUESTION, min_new_tokens=65)
