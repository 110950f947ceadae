"""Whole answers with packed towers against transformers: images of unlike sizes, pruned under both position rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture, record
from trtprune.errors import BudgetError, InputError
from trtprune.runtime import Request, Vlm
from trtprune.text.template import Turn

TOKENS = 32
BASE = tiny.Tiny(family="qwen2.5-vl", seed=11, max_positions=1024)
FAST = [
    BASE,
    pytest.param(replace(BASE, family="qwen2-vl", seed=12, tied=True), marks=pytest.mark.slow),
    replace(BASE, family="qwen3-vl", seed=13, layers=4),
]
SLOW = [
    replace(
        BASE,
        family=family,
        seed=100 + seed,
        layers=2 + seed % 4,
        tied=seed % 3 == 0,
        old_names=seed % 2 == 0,
        kv_heads=(1, 2, 4)[seed % 3],
        vision_layers=3 + seed % 3,
        dtype=("float32", "bfloat16")[seed % 5 == 4],
        vision={"window_size": 56 + 28 * (seed % 3)} if family == "qwen2.5-vl" else {},
    )
    for family in ("qwen2-vl", "qwen2.5-vl")
    for seed in range(9)
]
SLOW += [
    replace(
        BASE,
        family="qwen3-vl",
        seed=200 + seed,
        patch_size=(16, 14, 8)[seed % 3],
        layers=3 + seed % 3,
        tied=seed % 3 == 1,
        old_names=seed % 2 == 0,
        shards=seed % 4 == 1,
        kv_heads=(1, 2, 4)[seed % 3],
        vision_layers=3 + seed % 4,
        dtype=("float32", "bfloat16")[seed % 5 == 4],
        vision={
            "num_position_embeddings": (1, 16, 49, 100)[seed % 4],
            "deepstack_visual_indexes": [[0, 1, 2], [2, 0], [1], [0, 2]][seed // 2 % 4],
        },
        text={"attention_bias": seed % 7 == 3, "head_dim": (24, 16)[seed % 2]},
    )
    for seed in range(16)
]
SIZES = [(200, 130), (60, 333), (56, 56), (330, 40), (20, 20)]
IMAGES = [picture(i, size) for i, size in enumerate(SIZES)]


@pytest.fixture(scope="module", params=FAST, ids=lambda t: t.family)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    made = Kit.make(tmp_path_factory.mktemp("packed") / request.param.family, request.param)
    made.model.generation_config.eos_token_id = None
    return made


def rows_of(kit: Kit, inputs: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """[S, D], text embeddings with all visual tokens in place; the DeepStack levels [S, D], zeros at text."""
    with torch.no_grad():
        rows = kit.model.get_input_embeddings()(inputs["input_ids"])[0]
        found = kit.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        visual = inputs["input_ids"][0] == tiny.IMAGE_TOKEN_ID
        rows[visual] = torch.cat(list(found.pooler_output)).to(rows.dtype)
        levels = []
        for level in getattr(found, "deepstack_features", None) or []:
            levels.append(torch.zeros_like(rows))
            levels[-1][visual] = torch.cat(list(level)).to(rows.dtype)
    return rows, levels


def whole_positions(kit: Kit, inputs: Any) -> tuple[np.ndarray, int]:
    """transformers' positions [3, S] of the unpruned prompt, and the next one."""
    ids = inputs["input_ids"]
    kinds = (ids == tiny.IMAGE_TOKEN_ID).int()
    places, delta = kit.model.model.get_rope_index(ids, kinds, image_grid_thw=inputs["image_grid_thw"])
    return places[:, 0].numpy(), int(delta[0, 0]) + ids.shape[1]


def compact(whole: np.ndarray, image: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """The positions of the remaining ``rows`` if text goes on behind the largest kept row or column, one by one.

    ``image`` has the number of the image of each row of the prompt, −1 for text.
    """
    found, p, shift, top, inside = [], 0, 0, -1, -1
    first = {n: int(whole[0, image == n][0]) for n in {*image.tolist()} - {-1}}
    for row in rows:
        number = int(image[row])
        if number != inside:
            p = top + 1
            inside, shift = number, 0 if number < 0 else p - first[number]
        place = whole[:, row] + shift if number >= 0 else np.full(3, top + 1)
        top = max(top, int(place.max()))
        found.append(place)
    return np.array(found).T, top + 1


def greedy(
    kit: Kit, embeds: torch.Tensor, levels: list[torch.Tensor], places: np.ndarray, following: int, tokens: int
) -> tuple[list[int], Any]:
    """Ids and logits of transformers, over its own cache; ``levels`` as of :func:`rows_of`."""
    ids, logits, cache, position = [], [], None, torch.from_numpy(places)[:, None]
    # Every row counts as visual: those of text have zeros to add.
    more = {"visual_pos_masks": torch.ones(1, len(embeds), dtype=bool), "deepstack_visual_embeds": levels}
    with torch.no_grad():
        for step in range(tokens):
            out = kit.model.model.language_model(
                inputs_embeds=embeds[None],
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                **(more if levels and step == 0 else {}),
            )
            cache = out.past_key_values
            logits.append(kit.model.lm_head(out.last_hidden_state[0, -1]))
            ids.append(int(logits[-1].argmax()))
            embeds = kit.model.get_input_embeddings()(torch.tensor([ids[-1]]))
            position = torch.full((3, 1, 1), following + step)
    return ids, torch.stack(logits).numpy()


def expected(
    kit: Kit, images: Sequence[Any], question: str, kept: Sequence[Sequence[int]], rule: str, tokens: int = TOKENS
) -> tuple[list[int], np.ndarray]:
    """The answer of transformers with these visual tokens left of each image."""
    inputs = kit.inputs(images, question)
    embeds, levels = rows_of(kit, inputs)
    whole, following = whole_positions(kit, inputs)
    counts = (inputs["image_grid_thw"].prod(1) // 4).tolist()
    image = np.full(len(embeds), -1)
    image[inputs["input_ids"][0].numpy() == tiny.IMAGE_TOKEN_ID] = np.repeat(np.arange(len(counts)), counts)
    stay = image < 0
    for number, tokens_of in enumerate(kept):
        stay[np.flatnonzero(image == number)[list(tokens_of)]] = True
    rows = np.flatnonzero(stay)
    places = whole[:, rows]
    if rule == "compact":
        places, following = compact(whole, image, rows)
    return greedy(kit, embeds[rows], [level[rows] for level in levels], places, following, tokens)


def check(kit: Kit, vlm: Vlm, images: Sequence[Any], question: str, rule: str, keep: int | None, **more: Any) -> None:
    tokens = more.get("tokens", TOKENS)
    recorder = record(vlm)
    result = vlm.generate(list(images), question, keep=keep, max_new_tokens=tokens, ignore_eos=True)
    ids, logits = expected(kit, images, question, result.kept_indices, rule, tokens)
    assert result.token_ids == ids
    np.testing.assert_allclose(np.concatenate(recorder.logits)[:tokens], logits, rtol=0, atol=1e-4)


def test_unpruned(kit: Kit) -> None:
    """transformers' own generate, with one, two and three images of unlike sizes."""
    vlm = kit.load("none", method="none")
    for count in (1, 2, 3):
        images = IMAGES[:count]
        recorder = record(vlm)
        result = vlm.generate(images, "What is on the table?", max_new_tokens=TOKENS, ignore_eos=True)
        inputs = kit.inputs(images, "What is on the table?")
        ids, logits = kit.generate(TOKENS, **inputs)
        assert result.token_ids == ids
        assert result.prompt_tokens == inputs["input_ids"].shape[1]
        np.testing.assert_allclose(np.concatenate(recorder.logits)[:TOKENS], logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rule", ["compact", "original"])
def test_pruned(kit: Kit, rule: str) -> None:
    """Fewer tokens than an image has, and more than some have; 64 steps behind a pruned prompt."""
    vlm = kit.load(f"divprune-{rule}", method="divprune", keep=9, positions=rule)
    assert vlm.config.positions.axes == 3
    check(kit, vlm, IMAGES[:1], "What is on the table?", rule, 9, tokens=64)
    check(kit, vlm, IMAGES[1:3], "Are they alike?", rule, 5)
    check(kit, vlm, IMAGES[2:5], "Why?", rule, 3)


def test_batches_and_turns(kit: Kit) -> None:
    """Rows of unlike images beside each other, and a later question about the first one's tokens."""
    vlm = kit.load("divprune-original", method="divprune", keep=9, positions="original")
    requests = [
        Request(IMAGES[:1], "What is on the table?", keep=5),
        Request(IMAGES[1:3], "Alike?", keep=9),
        Request(IMAGES[4:], "Is there a somewhat longer question?", keep=2),
    ]
    for request, result in zip(
        requests, vlm.generate_batch(requests, max_new_tokens=TOKENS, ignore_eos=True), strict=True
    ):
        wanted = expected(kit, request.images, request.prompt, result.kept_indices, "original")[0]
        assert result.token_ids == wanted
    chat = vlm.chat(IMAGES[:2])
    chat.ask("What is this?", keep=4, max_new_tokens=5, ignore_eos=True)
    first, features = chat.ask("And there?", repick=False, max_new_tokens=6, ignore_eos=True), vlm.features(IMAGES[:2])
    again = vlm.chat(features)
    again.ask("What is this?", keep=4, max_new_tokens=5, ignore_eos=True)
    assert again.ask("And there?", repick=False, max_new_tokens=6, ignore_eos=True).token_ids == first.token_ids


METHODS: dict[str, dict[str, Any]] = {
    "hiprune": {"options": {"object_layer": 2}},
    "visionzip": {},
    "vispruner": {},
    "fastervlm": {"options": {"received": "all"}},
    "scope": {},
    "mmtok": {},
    "uniform": {},
    "fastv": {"keep": 33, "options": {"k": 1}, "max_image_pixels": 784 * 40},
}


@pytest.mark.parametrize("name", METHODS)
def test_methods(kit: Kit, name: str) -> None:
    """Methods that read the tower's attention, its keys, its features, the grid or the decoder run and keep their
    budget."""
    settings = {"keep": 7, **METHODS[name]}
    if kit.tiny.family == "qwen3-vl" and name == "visionzip":
        with pytest.raises(BudgetError, match="visionzip' merges visual tokens"):
            kit.load(name, method=name, **settings)
        return
    vlm = kit.load(name, method=name, **settings)
    result = vlm.generate(IMAGES[:1], "What is on the table?", max_new_tokens=3)
    total = vlm.features(IMAGES[:1])[0].visual_tokens
    assert total == 35
    kept = result.kept_indices[0]
    assert len(kept) <= settings["keep"] if name != "fastv" else len(kept) < total
    assert len({*kept}) == len(kept)


def test_what_is_refused(kit: Kit) -> None:
    vlm = kit.load("none", method="none")
    with pytest.raises(InputError, match=r"'<\|video_pad\|>', which stands for a video"):
        vlm.generate(IMAGES[:1], "What is in <|video_pad|>?")
    with pytest.raises(InputError, match="video"):
        vlm.generate(IMAGES[:1], "<|image_pad|><|video_pad|>", raw_prompt=True)
    with pytest.raises(InputError, match="up to 200 to 1"):
        vlm.generate([picture(0, (2, 402))], "What?")
    with pytest.raises(InputError, match=r"stands for an image"):
        vlm.chat(IMAGES[:1]).ask("<|image_pad|>")
    assert vlm.encoder.encode([Turn("user", "Is <|video| a word?", 1)]).ids.size


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=lambda t: f"{t.family}-{t.seed}")
def test_random_checkpoints(tmp_path: Any, case: tiny.Tiny) -> None:
    kit = Kit.make(tmp_path / "model", case)
    kit.model.generation_config.eos_token_id = None
    test_unpruned(kit)
    for rule in ("compact", "original"):
        vlm = kit.load(f"divprune-{rule}", method="divprune", keep=9, positions=rule)
        check(kit, vlm, IMAGES[:1], "What is on the table?", rule, 9, tokens=64)
        check(kit, vlm, IMAGES[1:3], "Are they alike?", rule, 5)
        check(kit, vlm, IMAGES[2:5], "Why?", rule, 3)


def test_openvino(kit: Kit) -> None:
    """The other lowering, in its own library."""
    pytest.importorskip("openvino")
    for method in ({"method": "divprune"}, {"method": "hiprune", "options": {"object_layer": 1}}):
        vlm = kit.load(f"ov-{method['method']}", keep=9, provider="openvino", **method)
        answer = vlm.generate(IMAGES[:2], "Alike?", max_new_tokens=TOKENS, ignore_eos=True)
        rule = vlm.config.positions.rule
        assert answer.token_ids == expected(kit, IMAGES[:2], "Alike?", answer.kept_indices, rule)[0]


TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in "
    "content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == "
    "'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video "
    "{{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
"""The published chat template of Qwen2-VL and Qwen2.5-VL, in the file ``chat_template.json`` as the hub has it."""


def test_the_published_template(kit: Kit) -> None:
    """It is compiled to pieces, and the prompt's ids are those of transformers with each run of placeholders once."""
    path = kit.path / "chat_template.jinja"
    own = path.read_text()
    try:
        path.unlink()
        (kit.path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
        vlm = kit.load("template", method="none")
    finally:
        path.write_text(own)
        (kit.path / "chat_template.json").unlink(missing_ok=True)
    assert vlm.config.text.template is not None
    kit.processor.chat_template, before = TEMPLATE, kit.processor.chat_template
    try:
        for count in (1, 2):
            inputs = kit.inputs(IMAGES[:count], "What is on the table?")
            found = vlm.encoder.encode([Turn("user", "What is on the table?", count)]).ids
            ids = inputs["input_ids"][0].numpy()
            again = (ids[1:] == tiny.IMAGE_TOKEN_ID) & (ids[:-1] == tiny.IMAGE_TOKEN_ID)
            np.testing.assert_array_equal(found, ids[np.append(True, ~again)])
            result = vlm.generate(IMAGES[:count], "What is on the table?", max_new_tokens=TOKENS, ignore_eos=True)
            assert result.token_ids == kit.generate(TOKENS, **inputs)[0]
    finally:
        kit.processor.chat_template = before
