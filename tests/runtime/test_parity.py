"""From a picture to an answer: the runtime against transformers, on random small checkpoints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.kit.runtime_kit import Kit, kept_rows, picture, record
from tests.models.test_parity import CASES

TOKENS = 32
TOLERANCE = 1e-4
# Prompts of different lengths with one picture, and one with several.
QUESTIONS = [(1, "Why?"), (1, "What is on the table left of it?"), (2, "Same?")]


@pytest.fixture(scope="module", params=CASES)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    t = CASES[request.param]
    # Room for prompt and answer; the scaled rotary forms keep the length they are defined by.
    t = replace(t, max_positions=512) if t.max_positions < 90 else t
    return Kit.make(tmp_path_factory.mktemp("parity") / request.param, t)


def questions(kit: Kit) -> list[tuple[int, str]]:
    return QUESTIONS if kit.tiny.max_positions > 200 else QUESTIONS[:1]


def test_unpruned(kit: Kit) -> None:
    """Ids and logits of 32 greedy tokens."""
    vlm = kit.load("none", method="none")
    recorder = record(vlm)
    for count, question in questions(kit):
        images = [picture(i, (90 + 30 * i, 70)) for i in range(count)]
        inputs = kit.inputs(images, question)
        expected, logits = kit.generate(TOKENS, **inputs)
        recorder.logits.clear()
        result = vlm.generate(images, question, max_new_tokens=TOKENS)
        assert result.token_ids == expected
        assert result.finish_reason == ("length" if len(expected) == TOKENS and expected[-1] != 2 else "stop")
        assert result.prompt_tokens == inputs["input_ids"].shape[1]
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=TOLERANCE)
        assert result.text == kit.processor.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_pruned(kit: Kit, positions: str) -> None:
    """transformers continues from the rows that the pruner left, numbered as the build says."""
    vlm = kit.load(positions, method="random", keep=5, positions=positions)
    recorder = record(vlm)
    for count, question in questions(kit):
        images = [picture(7 + i) for i in range(count)]
        recorder.logits.clear()
        result = vlm.generate(images, question, max_new_tokens=TOKENS, seed=count)
        assert [len(indices) for indices in result.kept_indices] == [5] * count
        inputs = kit.inputs(images, question)
        rows = kept_rows(inputs["input_ids"][0].numpy(), result.kept_indices, vlm.config.model.visual_tokens)
        embeds = kit.embeds(inputs)[:, rows]
        extra = {"position_ids": torch.from_numpy(rows)[None]} if positions == "original" else {}
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        expected, logits = kit.generate(TOKENS, inputs_embeds=embeds, attention_mask=mask, **extra)
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=TOLERANCE)
        assert result.token_ids == expected
