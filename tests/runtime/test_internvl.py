"""InternVL from an image to an answer: the runtime against transformers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture, record
from tests.runtime.test_tiles import images_of, rows_left
from trtprune import BudgetError, InputError, Request, pruning
from trtprune.pruning.inputs import FROM_LAYER

TOKENS, LONG = 32, 64
TOLERANCE = 1e-4
# (width, height) of the images of a prompt: of one tile, of all twelve, one pixel, thin ones.
PROMPTS: list[tuple[str, list[tuple[int, int]]]] = [
    ("Why?", [(90, 70)]),
    ("Which?", [(1, 1)]),
    ("Same?", [(400, 380), (7, 500)]),
    ("Which of these three?", [(50, 50), (300, 31), (113, 57)]),
]
CASES = {
    "qwen2": tiny.Tiny(decoder="qwen2", layers=6, vision={"use_qk_norm": True}),
    "llama": tiny.Tiny(decoder="llama", seed=1, tied=True, vision={"use_mean_pooling": False, "norm_type": "rms_norm"}),
}


def internvl(t: tiny.Tiny) -> tiny.Tiny:
    """The checkpoint as one of InternVL: tiles of 56 × 56 pixels and 4 × 4 patches, which are 2 × 2 visual tokens."""
    return replace(t, family="internvl", tower="internvl", feature_layer=-1, max_positions=2048)


@pytest.fixture(scope="module", params=CASES)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("internvl") / "model", internvl(CASES[request.param]))


def pruned_inputs(kit: Kit, inputs: Any, kept: Sequence[Sequence[int]], totals: Sequence[int], rule: str) -> Any:
    """transformers' inputs of the rows that are left, numbered by the rule."""
    rows = rows_left(inputs["input_ids"][0].numpy(), kept, totals)
    embeds = kit.embeds(inputs)[:, rows]
    extra = {"position_ids": torch.from_numpy(rows)[None]} if rule == "original" else {}
    return {"inputs_embeds": embeds, "attention_mask": torch.ones(embeds.shape[:2], dtype=torch.long), **extra}


def test_unpruned(kit: Kit) -> None:
    """Ids and logits of 32 greedy tokens."""
    vlm = kit.load("none", method="none")
    recorder = record(vlm)
    for question, sizes in PROMPTS:
        images = images_of(sizes)
        inputs = kit.inputs(images, question)
        expected, logits = kit.generate(TOKENS, **inputs)
        recorder.logits.clear()
        result = vlm.generate(images, question, max_new_tokens=TOKENS)
        assert result.prompt_tokens == inputs["input_ids"].shape[1]
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=TOLERANCE)
        assert result.token_ids == expected


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_pruned(kit: Kit, positions: str) -> None:
    """transformers continues from the rows that the pruner left, numbered as the build says."""
    vlm = kit.load(positions, method="random", keep=9, positions=positions)
    recorder = record(vlm)
    for question, sizes in PROMPTS:
        images = images_of(sizes)
        plans = [vlm.pipeline.processor.plan(h, w) for w, h in sizes]
        recorder.logits.clear()
        result = vlm.generate(images, question, max_new_tokens=LONG, seed=3)
        assert [len(kept) for kept in result.kept_indices] == [min(9, plan.tokens) for plan in plans]
        given = pruned_inputs(
            kit, kit.inputs(images, question), result.kept_indices, [plan.tokens for plan in plans], positions
        )
        expected, logits = kit.generate(LONG, **given)
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=TOLERANCE)
        assert result.token_ids == expected


def test_a_batch_answers_as_one_by_one(kit: Kit) -> None:
    """Images of different crop counts in one batch."""
    vlm = kit.load("batch", method="fastervlm", keep=12)
    requests = [Request(images_of(sizes), question) for question, sizes in PROMPTS]
    together = vlm.generate_batch(requests, max_new_tokens=8)
    for request, (question, sizes), result in zip(requests, PROMPTS, together, strict=True):
        alone = vlm.generate(request.images, question, max_new_tokens=8)
        assert (result.token_ids, result.kept_indices) == (alone.token_ids, alone.kept_indices), sizes


def test_turns(kit: Kit) -> None:
    """A later turn is transformers' answer to the whole conversation, with the images' markers in the first one."""
    vlm = kit.load("turns", method="random", keep=5, positions="original")
    images = images_of([(90, 70), (31, 300)])
    chat = vlm.chat(images)
    first = chat.ask("What is it?", seed=1, max_new_tokens=6, stop="~")
    second = chat.ask("Why?", repick=False, max_new_tokens=TOKENS)
    assert second.kept_indices == first.kept_indices
    text = kit.processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is it?"}],
            },
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "Why?"},
        ],
        add_generation_prompt=True,
    )
    inputs = kit.processor(images=[images], text=text, return_tensors="pt")
    totals = [vlm.pipeline.processor.plan(h, w).tokens for w, h in [(90, 70), (31, 300)]]
    given = pruned_inputs(kit, inputs, second.kept_indices, totals, "original")
    assert second.token_ids == kit.generate(TOKENS, **given)[0]


SOME = ("adafv", "hiprune", "trim", "uniform", "visionzip", "vispruner")
EVERY = tuple(method.name for method in pruning.all_methods())


@pytest.mark.parametrize(
    ("kit", "names"),
    [("qwen2", SOME), *(pytest.param(name, EVERY, marks=pytest.mark.slow) for name in CASES)],
    indirect=["kit"],
)
def test_methods_choose_as_their_references(kit: Kit, names: tuple[str, ...]) -> None:
    """Graph and NumPy; what reads CLIP's text tower is refused."""
    question, refused = "What is left of it?", set()
    for method in map(pruning.get, names):
        options: dict[str, Any] = {"object_layer": 1} if method.name == "hiprune" else {}
        options |= {"cls_token": "drop"} if method.name == "visionzip" else {}
        options |= dict(method.without_clip)
        if method.inside or method.name == "none":
            continue
        try:
            vlm = kit.load(method.name, method=method.name, keep=12, options=options)
        except BudgetError:
            refused.add(method.name)
            continue
        view = vlm.look(picture(0, (90, 70)), question)
        if method.needs & {*FROM_LAYER}:
            # What it reads of the decoder is computed in its graph alone.
            assert len(vlm.select(view, keep=12)) == 12
            continue
        plan = view.features.plan
        assert plan.crops == 13
        assert plan.candidates.tolist() == list(range(52))
        inputs = {name: np.asarray(array) for name, array in view.features.extras.items()}
        span = view.prompt.span(method.text_span(options))
        inputs |= {"text_embeds": np.asarray(view.text_embeds)[span], "grid": plan.grid, "seed": 0}
        known = {name: inputs[name] for name in vlm.config.pruning.needs if name in inputs}
        features = np.asarray(view.features.image)
        expected = method.reference(features, keep=12, **{**known, **vlm.config.pruning.options})
        assert vlm.select(view, keep=12).tolist() == expected.tolist(), method.name
    assert refused == {"trim"}


@pytest.mark.parametrize("kit", ["qwen2"], indirect=True)
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "sparsevlm"])
def test_methods_inside_the_decoder(kit: Kit, name: str) -> None:
    """The image's markers are no visual tokens: each of several images keeps its budget."""
    options = {"fastv": {"k": 1}, "pyramiddrop": {"first": 1}, "sparsevlm": {"schedule": "2:20"}}[name]
    vlm = kit.load(name, method=name, keep=None if name == "sparsevlm" else 20, options=options)
    whole = kit.load("none", method="none")
    images = images_of([(90, 70), (1, 1)])
    result = vlm.generate(images, "Why?", max_new_tokens=8)
    assert [len(kept) for kept in result.kept_indices] == [result.kept_tokens - 4, 4]
    assert result.prompt_tokens == whole.generate(images, "Why?", max_new_tokens=1).prompt_tokens
    small = images_of([(1, 1), (5, 5)])
    assert (
        vlm.generate(small, "Why?", max_new_tokens=8).token_ids
        == whole.generate(small, "Why?", max_new_tokens=8).token_ids
    )


@pytest.mark.parametrize("kit", ["qwen2"], indirect=True)
def test_what_is_refused(kit: Kit) -> None:
    with pytest.raises(BudgetError, match="needs the projected CLS token; the projector of this model takes 4") as e:
        kit.load("zip", method="visionzip", keep=9)
    assert e.value.hint is not None
    assert e.value.hint.startswith("options={'cls_token': 'drop'}; or method with one of: none, random, ")
    assert "visionzip" not in e.value.hint.partition("one of")[2]
    with pytest.raises(BudgetError, match="the vision tower of this model is internvl_vision, not CLIP's"):
        kit.load("clip", method="trim", keep=9)
    vlm = kit.load("none", method="none")
    with pytest.raises(InputError, match="the user text contains '<IMG_CONTEXT>'"):
        vlm.generate(picture(0), "What is <IMG_CONTEXT>?")
    with pytest.raises(InputError, match="the user text contains '<video>', which stands for a video"):
        vlm.generate(picture(0), "What is <video>?")


def test_budgets(kit: Kit) -> None:
    """An image with no more tokens than the budget stays whole; a share is one of each image's own."""
    vlm = kit.load("share", method="random", keep=9)
    whole = kit.load("none", method="none")
    image = picture(1, (5, 5))
    one = vlm.generate(image, "Why?", max_new_tokens=8)
    assert one.kept_tokens == one.visual_tokens == 4
    assert one.token_ids == whole.generate(image, "Why?", max_new_tokens=8).token_ids
    result = vlm.generate(images_of([(90, 70), (60, 60)]), "Same?", keep_ratio=0.25, max_new_tokens=2)
    assert [len(kept) for kept in result.kept_indices] == [13, 1]
    assert vlm.config.vision.tokens == (4, 52)
    assert vlm.config.vision.crops == (1, 13)


def draw(seed: int) -> tiny.Tiny:
    """A random checkpoint: decoder, tower, ties, shards, dtype, layers, tiles."""
    r = random.Random(f"internvl {seed}")
    side = r.choice([1, 2, 2, 2, 4])
    patch = r.choice([6, 8, 14])
    return tiny.Tiny(
        family="internvl",
        tower="internvl",
        decoder=r.choice(["qwen2", "qwen3", "llama"]),
        seed=seed,
        layers=r.choice([2, 3]),
        image_size=patch * side * r.choice([1, 2, 3]),
        patch_size=patch,
        tied=r.random() < 0.3,
        dtype=r.choice(["float32", "float32", "bfloat16"]),
        shards=r.random() < 0.3,
        old_names=r.random() < 0.5,
        feature_layer=r.choice([-1, -1, -2, 1]),
        projector_act=r.choice(["gelu", "gelu_pytorch_tanh"]),
        max_positions=4096,
        vision={
            "use_qk_norm": r.random() < 0.5,
            "attention_bias": r.random() < 0.5,
            "use_mean_pooling": r.random() < 0.5,
            "norm_type": r.choice(["layer_norm", "rms_norm"]),
        },
        more={"downsample_ratio": 1 / side},
    )


SIZES = [(1, 1), (4000, 3000), (1000, 10), (10, 1000), (56, 56), (113, 57), (640, 480), (31, 300), (3, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_random_checkpoints(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    kit = Kit.make(tmp_path_factory.mktemp("random") / "model", draw(seed))
    r = random.Random(seed)
    rule = r.choice(["compact", "original"])
    whole = kit.load("none", method="none")
    pruned = kit.load("random", method="random", keep=r.randint(1, 12), positions=rule)
    recorder = record(pruned)
    for count in (1, 2, 3):
        sizes = [r.choice(SIZES) for _ in range(count)]
        images = [picture(r.randrange(99), size) for size in sizes]
        inputs = kit.inputs(images, "Which?")
        assert whole.generate(images, "Which?", max_new_tokens=TOKENS).token_ids == kit.generate(TOKENS, **inputs)[0]
        recorder.logits.clear()
        result = pruned.generate(images, "Which?", max_new_tokens=TOKENS, seed=seed)
        totals = [pruned.pipeline.processor.plan(h, w).tokens for w, h in sizes]
        expected, logits = kit.generate(TOKENS, **pruned_inputs(kit, inputs, result.kept_indices, totals, rule))
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=TOLERANCE)
        assert result.token_ids == expected, sizes
