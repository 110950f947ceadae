"""SmolVLM and Idefics3 from an image to an answer: the runtime against transformers, on random small checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.kit import tiny
from tests.kit.runtime_kit import Kit, Recorder, picture, record
from tests.models.test_smolvlm import CASES, case
from trtprune import InputError, Request
from trtprune.runtime import Vlm

TOLERANCE = 1e-4
# (width, height) of the images of a prompt: 3 × 3, 3 × 2 and 1 × 3 tiles, thin ones, one pixel.
PROMPTS: list[tuple[str, list[tuple[int, int]]]] = [
    ("Why?", [(90, 70)]),
    ("What is left of it?", [(31, 300)]),
    ("Which?", [(1, 1)]),
    ("Same?", [(400, 380), (7, 500)]),
    ("Two?\n", [(200, 100), (100, 200), (300, 20)]),
]
RANDOM = {
    f"random-{seed}": case(
        ("smolvlm", "idefics3")[seed % 2],
        side=(1, 2, 4)[seed % 3],
        seed=100 + seed,
        layers=2 + seed % 3,
        heads=(4, 8)[seed % 2],
        kv_heads=(1, 2, 4)[seed % 3],
        vision_layers=1 + seed % 4,
        tied=seed % 4 == 3,
        rope={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 64} if seed % 5 == 0 else None,
    )
    for seed in range(16)
}  # fmt: skip


def fitted(t: tiny.Tiny) -> tiny.Tiny:
    """With room for a prompt of ten crops each of three images."""
    return replace(t, max_positions=2048, feature_layer=t.vision_layers)


@pytest.fixture(scope="module", params=["smolvlm", "thirds"])
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("smolvlm") / request.param, fitted(CASES[request.param]))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("smolvlm") / "one", fitted(case("idefics3", seed=9, layers=6)))


def images_of(sizes: Sequence[tuple[int, int]]) -> list[Any]:
    return [picture(seed, size) for seed, size in enumerate(sizes)]


def rows_left(vlm: Vlm, ids: np.ndarray, images: Sequence[Any], kept: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of an unpruned prompt that remain."""
    totals = [vlm.pipeline.processor.plan(image.height, image.width).tokens for image in images]
    mask = ids != tiny.IMAGE_TOKEN_ID
    for places, indices in zip(np.split(np.flatnonzero(~mask), np.cumsum(totals)[:-1]), kept, strict=True):
        mask[places[list(indices)]] = True
    return np.flatnonzero(mask)


def check_unpruned(kit: Kit, prompts: Sequence[tuple[str, list[tuple[int, int]]]], tokens: int = 32) -> None:
    """Ids and logits of greedy tokens, and the prompt's own ids."""
    vlm = kit.load("none", method="none")
    recorder = record(vlm)
    for question, sizes in prompts:
        images = images_of(sizes)
        inputs = kit.inputs(images, question)
        expected, logits = kit.generate(tokens, **inputs)
        recorder.logits.clear()
        result = vlm.generate(images, question, max_new_tokens=tokens)
        assert result.prompt_tokens == inputs["input_ids"].shape[1]
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=TOLERANCE)
        assert result.token_ids == expected


def check_pruned(
    kit: Kit, positions: str, prompts: Sequence[tuple[str, list[tuple[int, int]]]], tokens: int = 32, keep: int = 9
) -> None:
    """transformers continues from the rows that the pruner left, numbered as the build says."""
    vlm = kit.load(positions, method="random", keep=9, positions=positions)
    recorder = record(vlm)
    for question, sizes in prompts:
        images = images_of(sizes)
        recorder.logits.clear()
        result = vlm.generate(images, question, keep=keep, max_new_tokens=tokens, seed=3)
        inputs = kit.inputs(images, question)
        rows = rows_left(vlm, inputs["input_ids"][0].numpy(), images, result.kept_indices)
        embeds = kit.embeds(inputs)[:, rows]
        extra = {"position_ids": torch.from_numpy(rows)[None]} if positions == "original" else {}
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        expected, logits = kit.generate(tokens, inputs_embeds=embeds, attention_mask=mask, **extra)
        assert result.prompt_tokens == len(rows)
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=TOLERANCE)
        assert result.token_ids == expected


def test_unpruned(kit: Kit) -> None:
    check_unpruned(kit, PROMPTS)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_pruned(kit: Kit, positions: str) -> None:
    check_pruned(kit, positions, PROMPTS[1:4])


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_empty_spans_keep_their_text(kit: Kit, positions: str) -> None:
    """Two tokens of ten crops: eight spans and more are left empty, and 64 tokens follow."""
    check_pruned(kit, positions, [("What?", [(90, 70), (70, 90)])], tokens=64, keep=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_random_checkpoints(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    made = Kit.make(tmp_path_factory.mktemp("smolvlm") / name, fitted(RANDOM[name]))
    check_unpruned(made, PROMPTS)
    for positions in ("compact", "original"):
        check_pruned(made, positions, PROMPTS, tokens=64)


def test_batches_of_different_tile_counts_streams_and_turns(one: Kit) -> None:
    vlm = one.load("uniform", method="uniform", keep=7)
    requests = [Request(images_of(sizes), question) for question, sizes in PROMPTS]
    batch = vlm.generate_batch(requests, max_new_tokens=8)
    for request, result in zip(requests, batch, strict=True):
        assert result.token_ids == vlm.generate(request.images, request.prompt, max_new_tokens=8).token_ids
    assert "".join(vlm.stream(requests[0].images, "Why?", max_new_tokens=8)) == batch[0].text
    chat = vlm.chat(requests[3].images)
    assert chat.ask("Same?", max_new_tokens=8).token_ids == batch[3].token_ids
    again = chat.ask("And now?", repick=False, max_new_tokens=8)
    # The whole conversation in transformers, with all visual tokens of the kept rows.
    content: list[Any] = [*({"type": "image"} for _ in requests[3].images), {"type": "text", "text": "Same?"}]
    turns = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": batch[3].text}]},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
    ]
    text = one.processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = one.processor(images=[list(requests[3].images)], text=text, return_tensors="pt")
    rows = rows_left(vlm, inputs["input_ids"][0].numpy(), requests[3].images, again.kept_indices)
    embeds = one.embeds(inputs)[:, rows]
    expected, _ = one.generate(8, inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long))
    assert again.token_ids == expected


def test_a_video_in_the_prompt_is_refused(kit: Kit, one: Kit) -> None:
    """Of SmolVLM, whose processor puts frames there; to Idefics3's it is a text like any other."""
    vlm = kit.load("none", method="none")
    with pytest.raises(InputError, match=r"the user text contains '<video>', which stands for a video"):
        vlm.generate(picture(1), "What is in <video>?", max_new_tokens=1)
    other = one.load("uniform", method="uniform", keep=7)
    theirs = one.inputs([picture(1)], "What is in <video>?")["input_ids"]
    assert other.generate(picture(1), "What is in <video>?", keep=40, max_new_tokens=1).prompt_tokens == theirs.shape[1]


def test_the_system_prompt_and_ids(one: Kit) -> None:
    """Every id of the prompt is transformers', and the sampler's history, too."""
    vlm = one.load("uniform", method="uniform", keep=7)
    from trtprune.runtime.answer import unpruned_ids
    from trtprune.runtime.layout import Selection
    from trtprune.text.template import Turn

    for question, sizes in PROMPTS:
        images = images_of(sizes)
        features = vlm.features(images)
        prompt = vlm.pipeline.encode([Turn("user", question, len(images))], features)
        plans = [seen.plan for seen in features]
        selection = Selection(
            tuple(np.arange(plan.tokens) for plan in plans),
            tuple(seen.image for seen in features),
            tuple(plan.grid for plan in plans),
            tuple(plan.tokens for plan in plans),
            tuple(plan.spans for plan in plans),
        )
        embeds = vlm.chain.embed(prompt.ids[None])[0]
        layout = vlm.pipeline.lay_out(prompt, embeds, selection)
        theirs = one.inputs(images, question)["input_ids"][0].tolist()
        assert layout.ids.tolist() == unpruned_ids(prompt, layout).tolist() == theirs


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "sparsevlm"])
def test_pruning_between_layers(one: Kit, method: str) -> None:
    """Each image is cut to the budget, all spans together; one that has no more tokens is transformers' own answer."""
    options = {"schedule": "0:20,2:9,3:5"} if method == "sparsevlm" else {}
    vlm = one.load(method, method=method, options=options, **({} if options else {"keep": 20}))
    last = vlm.config.segments[-1].part
    vlm.chain._sessions[last] = recorder = Recorder(vlm.chain.session(last.role, last.segment))
    for question, sizes in PROMPTS[1:4]:
        images = images_of(sizes)
        recorder.logits.clear()
        result = vlm.generate(images, question, max_new_tokens=8)
        totals = [vlm.pipeline.processor.plan(image.height, image.width).tokens for image in images]
        for kept, total in zip(result.kept_indices, totals, strict=True):
            assert 0 < len(kept) < total or len(kept) == total <= vlm.config.pruning.keep
        if all(total <= vlm.config.pruning.keep for total in totals):
            expected, logits = one.generate(8, **one.inputs(images, question))
            assert result.token_ids == expected
            np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=2e-4)
