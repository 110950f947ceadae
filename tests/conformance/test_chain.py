"""The conformance vectors of what a run decides between the graphs."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.conformance import write_chain
from trtprune.engine_dir.json_dataclasses import decode
from trtprune.errors import BudgetError
from trtprune.runtime.budget import Budget
from trtprune.runtime.images import TokenPlan
from trtprune.runtime.layout import Selection, lay_out
from trtprune.runtime.positions import position_rule
from trtprune.runtime.prompt import Prompt
from trtprune.runtime.pruner import Pruner
from trtprune.schedules import RULES, ScheduleInfo, merged_counts

FILE = json.loads(write_chain.PATH.read_text(encoding="utf-8"))


def token_plan(newline: list[int], padding: list[int]) -> TokenPlan:
    count = len(newline)
    shown = np.zeros(count, bool)
    shown[padding] = True
    return TokenPlan(
        1,
        np.zeros((count, 3), np.int32),
        np.array(newline, np.int32),
        np.zeros((count, 1), np.int32),
        np.ones((count, 1), np.float32),
        np.zeros((count, 4), np.float32),
        shown,
        -1,
    )


def test_layouts() -> None:
    for case in FILE["layouts"]:
        kept = tuple(np.array(image["kept"], np.int64) for image in case["images"])
        grids = tuple(np.array(image["grid"], np.int32).reshape(-1, 3) for image in case["images"])
        selection = Selection(kept, tuple(np.zeros((len(k), 2), np.float32) for k in kept), grids, (1,) * len(kept))
        prompt = Prompt(np.array(case["prompt"], np.int64), tuple(case["image_positions"]), ())
        rule = position_rule(case["rule"], case["axes"])
        made = lay_out(prompt, np.zeros((len(prompt.ids), 2), np.float32), selection, rule)
        assert made.ids.tolist() == case["ids"]
        assert made.positions.tolist() == case["positions"]
        assert made.next_position == case["next_position"]
        assert sum(map(len, made.embeds)) == len(case["ids"])


def test_budgets() -> None:
    for case in FILE["budgets"]:
        assert Budget(1, case["keep_ratio"]).of(case["tokens"]) == case["keep"], case


def test_images_without_a_choice() -> None:
    for case in FILE["without_choice"]:
        found = token_plan(case["newline"], case["padding"]).without_choice(case["keep"], case["newlines"])
        assert (None if found is None else found.tolist()) == case["kept"], case


def test_newlines() -> None:
    for case in FILE["newlines"]:
        plan = token_plan(case["newline"], [])
        memory = SimpleNamespace(concatenate=np.concatenate)
        pruner: Any = SimpleNamespace(_newlines=case["newlines"], _chain=SimpleNamespace(memory=memory))
        features: Any = SimpleNamespace(plan=plan, image=np.arange(plan.tokens)[:, None])
        selected = np.array(case["selected"], np.int64)
        kept, rows = Pruner._laid_out(pruner, features, selected, selected[:, None])
        assert kept.tolist() == case["kept"], case
        assert rows[:, 0].tolist() == case["kept"]


def test_merged_counts() -> None:
    for case in FILE["merges"]:
        found = merged_counts(case["removed"], tuple(case["recycled"]), case["per_vector"])
        assert found == (case["merged"], case["vectors"]), case


@pytest.mark.parametrize("number", range(len(FILE["schedules"])))
def test_schedules(number: int) -> None:
    member = FILE["schedules"][number]
    info = decode(ScheduleInfo, member["schedule"])
    for case in member["cases"]:
        keep, tokens = case["keep"], case["tokens"]
        if case["kept"] is None:
            with pytest.raises(BudgetError):
                info.kept(keep, tokens)
            continue
        kept = info.kept(keep, tokens)
        assert list(kept) == case["kept"], case
        if keep < tokens:
            assert list(info.with_counts(tokens, kept).after) == case["behind"]


def test_schedules_by_rank() -> None:
    for member in FILE["ranked"]:
        info = decode(ScheduleInfo, member["schedule"])
        for case in member["cases"]:
            assert list(info.rank_counts(case["ranks"], case["keep"], case["tokens"])) == case["kept"], case


def test_the_vectors_cover_what_differs() -> None:
    assert {member["schedule"]["rule"] for member in FILE["schedules"]} == set(RULES)
    assert any(case["kept"] is None for member in FILE["schedules"] for case in member["cases"])
    assert {(case["rule"], case["axes"]) for case in FILE["layouts"]} == {
        (rule, axes) for rule in ("compact", "original") for axes in (1, 3)
    }


def test_the_file_is_what_the_script_writes() -> None:
    assert json.loads(write_chain.text()) == FILE
