"""Pruning inside the decoder from picture to answer: our engines against the published steps in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.kit import tiny
from tests.kit.in_llm_generate import Pruned, generate
from tests.kit.runtime_kit import Kit, Recorder, picture
from trtprune.cli.inspect import describe, render
from trtprune.compiler.budget import describe_served
from trtprune.errors import BudgetError, InputError
from trtprune.pruning import InLlmMethod, get
from trtprune.runtime import Request, Vlm
from trtprune.runtime.cut_decoder import CutDecoder
from trtprune.runtime.pipeline import turns_of
from trtprune.schedules import ScheduleInfo
from trtprune.text.template import Turn

CASES = {
    "clip-llama": tiny.Tiny(seed=61, layers=6, image_size=112),
    "dinov2-qwen2": tiny.Tiny(seed=62, tower="dinov2", decoder="qwen2", kv_heads=4, layers=5, image_size=112),
    "siglip-mistral": tiny.Tiny(
        seed=63, tower="siglip", decoder="mistral", layers=6, image_size=112, text={"sliding_window": 150}
    ),
}
BUILDS: dict[str, dict[str, Any]] = {
    "sparsevlm": {"method": "sparsevlm", "options": {"schedule": "0:40,2:21,3:9"}},
    "sparsevlm-auto": {"method": "sparsevlm", "keep": 30, "options": {"schedule": "auto"}},
    "sparsevlm-2": {"method": "sparsevlm", "options": {"version": "2.0", "heads": 3, "schedule": "0:40,2:21,3:9"}},
    "sparsevlm-rank": {"method": "sparsevlm", "keep": 30, "options": {"ratio": "rank", "scale": 1.7, "bias": 2}},
    "fastv": {"method": "fastv", "keep": 30},
    "pyramiddrop": {"method": "pyramiddrop", "keep": 30, "options": {"first": 1}},
}
BUDGET = {"sparsevlm-rank-budget": {"method": "sparsevlm", "keep": 30, "options": {"ratio": "rank"}}}
TOKENS = 12


@pytest.fixture(scope="module", params=CASES)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("in_llm") / request.param, CASES[request.param])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("in_llm") / "one", CASES["clip-llama"])


def load(kit: Kit, name: str) -> Vlm:
    return kit.load(name, **(BUILDS | BUDGET)[name])


def record(vlm: Vlm) -> Recorder:
    last = vlm.config.segments[-1].part
    recorder = Recorder(vlm.chain.session(last.role, last.segment))
    vlm.chain._sessions[last] = recorder
    return recorder


def expected(
    kit: Kit, vlm: Vlm, images: list[Any], question: str, tokens: int = TOKENS, forced: Sequence[int] = ()
) -> Pruned:
    """The same question in transformers, with ``forced`` ids behind it."""
    inputs = kit.inputs(images, question)
    ids = inputs["input_ids"][0].numpy()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ids == tiny.IMAGE_TOKEN_ID, [0]])))
    spans = [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    method, info = get(vlm.config.pruning.method), vlm.config.pruning
    assert isinstance(method, InLlmMethod)
    options = method.validate_options(info.options)
    depth = vlm.config.kv.num_layers
    keeps: Any = list(method.schedule(info.keep, vlm.config.model.visual_tokens, depth, options).kept)
    if options.get("scale", "budget") != "budget":
        keeps = lambda rank, count: min(int(rank * 1.7 + 2), count - 1)  # noqa: E731
    return generate(
        kit.model,
        kit.embeds(inputs)[0],
        spans,
        tokens,
        method.name,
        list(method.points(depth, options)),
        keeps,
        version=options.get("version", "1.0"),
        heads=options.get("heads", 0),
        forced=forced,
    )


@pytest.mark.parametrize("name", BUILDS | BUDGET)
def test_like_the_published_steps(kit: Kit, name: str) -> None:
    """Ids, logits, kept tokens and cache lengths, for one picture and for two in one prompt."""
    vlm = load(kit, name)
    recorder = record(vlm)
    points = len(vlm.config.kv.segment_layers) - 1
    for count, question in ((1, "What is on the table?"), (1, "Why?"), (2, "Are they the same?")):
        images = [picture(3 * count + i) for i in range(count)]
        wanted = expected(kit, vlm, images, question)
        recorder.logits.clear()
        result = vlm.generate(images, question, max_new_tokens=TOKENS, ignore_eos=True)
        logits = torch.stack(wanted.logits).numpy()
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=2e-4)
        assert result.token_ids == wanted.ids
        # Every layer's cache has the length it has there.
        text = len(kit.inputs(images, question)["input_ids"][0]) - count * vlm.config.model.visual_tokens
        layers = [
            text + sum(counts[s] for counts in result.segment_tokens)
            for s, n in enumerate(vlm.config.kv.segment_layers)
            for _ in range(n)
        ]
        assert layers == wanted.cached
        # What is left in the last segment is what the points let through.
        for image in range(count):
            left = np.arange(vlm.config.model.visual_tokens)
            for point in range(points):
                indices = wanted.kept[point][image].numpy()
                left = np.append(left, np.full(10_000, -1))[indices]  # merged ones lie behind the kept
            assert result.kept_indices[image] == [int(i) for i in left if i >= 0]
        assert result.tokens_per_layer == pytest.approx(
            sum(n * sum(c[s] for c in result.segment_tokens) for s, n in enumerate(vlm.config.kv.segment_layers))
            / vlm.config.kv.num_layers,
            abs=1e-3,
        )


@pytest.mark.parametrize("name", BUILDS)
def test_a_batch_answers_like_single_rows(one: Kit, name: str) -> None:
    """Rows of different length, number of images and budget."""
    vlm = load(one, name)
    budgets = [None, None, 35] if name in ("sparsevlm-auto", "fastv", "pyramiddrop") else [None] * 3
    requests = [
        Request([picture(1)], "What?", keep=budgets[0]),
        Request([picture(2), picture(3)], "What is on the left table?", keep=budgets[1]),
        Request([picture(4)], "Is there a somewhat longer question?", keep=budgets[2]),
    ]
    together = vlm.generate_batch(requests, max_new_tokens=6, ignore_eos=True)
    for request, result in zip(requests, together, strict=True):
        alone = vlm.generate_batch([request], max_new_tokens=6, ignore_eos=True)[0]
        assert (result.token_ids, result.kept_indices, result.segment_tokens) == (
            alone.token_ids,
            alone.kept_indices,
            alone.segment_tokens,
        )


@pytest.mark.parametrize("name", ["sparsevlm", "fastv"])
def test_turns(one: Kit, name: str) -> None:
    """Selected anew, a turn is a prompt of the whole conversation; without, its tokens go through the pruned caches."""
    vlm = load(one, name)
    chat = vlm.chat(picture(5))
    first = chat.ask("What is this?", max_new_tokens=5, ignore_eos=True)
    prefills = []
    session = vlm.chain.session("decoder", 0)
    run = session.run
    session.run = lambda inputs, cache=None: (  # type: ignore[method-assign]
        prefills.append(inputs["position_ids"].shape[2]),
        run(inputs, cache),
    )[1]
    second = chat.ask("And there?", repick=False, max_new_tokens=5, ignore_eos=True)
    assert max(prefills) < 64, "the second turn computed the image again"
    assert second.segment_tokens == first.segment_tokens
    assert second.kept_indices == first.kept_indices
    third = chat.ask("Why?", repick=True, max_new_tokens=5, ignore_eos=True)
    assert max(prefills) > 64
    assert len(third.token_ids) == 5
    # A fresh conversation that is told the same history computes the same third answer.
    again = vlm.chat(picture(5))
    again._turns = list(chat._turns[:4])
    assert again.ask("Why?", max_new_tokens=5, ignore_eos=True).token_ids == third.token_ids


@pytest.mark.parametrize("name", ["sparsevlm", "sparsevlm-2", "fastv", "pyramiddrop"])
def test_turns_without_selecting_anew_are_one_long_prompt(one: Kit, name: str) -> None:
    """The second turn goes through the caches of the first, which grow, as if each of its tokens were fed by itself."""
    vlm = load(one, name)
    recorder = record(vlm)
    chat = vlm.chat(picture(5))
    chat.ask("What is this?", max_new_tokens=4, ignore_eos=True)
    held = [part.capacity for part in chat._cache.parts]
    question = "And now a question that makes the caches grow well beyond?"
    first = vlm.encoder.encode(turns_of("What is this?", 1, None)).ids
    whole = vlm.encoder.encode([*chat.turns, Turn("user", question)]).ids
    assert whole[: len(first)].tolist() == first.tolist()
    recorder.logits.clear()
    result = chat.ask(question, repick=False, max_new_tokens=40, ignore_eos=True)
    grown = [part.capacity for part in chat._cache.parts]
    assert all(b > a for a, b in zip(held, grown, strict=True))
    wanted = expected(one, vlm, [picture(5)], "What is this?", 40, whole[len(first) :].tolist())
    assert result.token_ids == wanted.ids
    np.testing.assert_allclose(np.concatenate(recorder.logits), torch.stack(wanted.logits).numpy(), rtol=0, atol=2e-4)


def test_kv_bytes_are_those_of_the_segments(one: Kit) -> None:
    vlm, plain = load(one, "sparsevlm"), one.load("plain", method="none")
    pruned = vlm.generate(picture(0), "What?", max_new_tokens=4)
    whole = plain.generate(picture(0), "What?", max_new_tokens=4)
    assert pruned.kv_cache_bytes < whole.kv_cache_bytes
    assert pruned.to_json()["segment_tokens"] == pruned.segment_tokens
    assert "segment_tokens" not in whole.to_json()


INSPECTED: dict[str, dict[str, Any]] = {
    **{name: build for name, build in (BUILDS | BUDGET).items() if name != "sparsevlm-rank"},
    "adafv": {"method": "adafv", "keep": 30},
    "adafv-original": {"method": "adafv", "keep": 30, "positions": "original"},
    "none": {"method": "none"},
}


@pytest.mark.parametrize("name", INSPECTED)
def test_inspect_says_what_a_run_caches_and_accepts(one: Kit, name: str) -> None:
    vlm = one.load(f"inspected-{name}", **INSPECTED[name], max_seq_len=300)
    kv = describe(vlm.config)["kv"]
    result = vlm.generate(picture(0), "What?", max_new_tokens=1)
    assert [kv["tokens_by_segment"]] == (result.segment_tokens or [[result.kept_tokens]])
    assert kv["tokens_per_layer"] == result.tokens_per_layer
    a_token = vlm.config.kv.bytes_per_token
    assert kv["bytes_per_image"] == pytest.approx(result.tokens_per_layer * a_token, abs=a_token / 1000)
    # What was taken is that and the text, each segment's share rounded up to 16 tokens (64 from 256 on).
    visual = 64 if result.segment_tokens else result.kept_tokens
    text = (result.prompt_tokens - visual) * a_token
    assert 0 <= result.kv_cache_bytes - kv["bytes_per_image"] - text < 16 * a_token
    # As many pictures as it says are accepted, if the prompt has only as much text as it says is left; and no more.
    most, left = kv["images_at_capacity"], kv["text_at_capacity"]
    images = [picture(i) for i in range(most + 1)]

    def prompt(count: int, words: int) -> str:
        return "<image>" * count + " a" * words

    def text_of(words: int) -> int:
        return len(vlm.encoder.encode(turns_of(prompt(1, words), 1, None), raw=True).ids) - 1

    words = next(n for n in range(300) if text_of(n) > left)
    accepted = vlm.generate(images[:most], prompt(most, words - 1), raw_prompt=True, max_new_tokens=1)
    assert len(accepted.kept_indices) == most
    for count, many in ((most, words), (most + 1, 1)):
        with pytest.raises(InputError, match=r"the KV cache was built for 300|the model's positions end at") as caught:
            vlm.generate(images[:count], prompt(count, many), raw_prompt=True, max_new_tokens=1)
        inside = isinstance(get(vlm.config.pruning.method), InLlmMethod)
        assert not inside or ("fewer images" in str(caught.value.hint) and "--keep" not in str(caught.value.flag_hint))


def test_inspect_of_a_rank_that_nobody_knows(one: Kit) -> None:
    facts = describe(load(one, "sparsevlm-rank").config)
    assert facts["kv"]["tokens_by_segment"] is None
    assert facts["kv"]["bytes_per_image"] is None
    assert "a picture takes at most" in render(facts)
    assert "to what the rank of the attention says" in render(facts)


def test_no_text_behind_the_image(one: Kit) -> None:
    vlm = load(one, "sparsevlm")
    with pytest.raises(InputError, match="no text behind an image") as caught:
        vlm.generate(picture(0), "What is this? <image>", raw_prompt=True)
    assert "--method" in str(caught.value.flag_hint)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ({"keep": 2, "method": "fastv"}, "at least 22 of 64"),
        ({"keep": 64, "method": "pyramiddrop", "options": {"first": 3}}, "at most"),
        ({"options": {"schedule": "0:40,9:20"}}, "the decoder has 6"),
        ({"keep": 30, "options": {"schedule": "0:40,2:20"}}, "averages"),
        ({"keep": 30, "positions": "original"}, "numbers its tokens itself"),
        ({"keep": 30, "options": {"ratio": "rank", "scale": "published"}}, "no scale is published"),
    ],
    ids=str,
)
def test_builds_that_cannot_be(one: Kit, build: dict[str, Any], words: str) -> None:
    with pytest.raises(BudgetError, match=words) as caught:
        one.load("refused", **{"method": "sparsevlm", **build})
    assert caught.value.flag_hint is None or "--" in caught.value.flag_hint


def test_a_budget_the_build_does_not_serve(one: Kit) -> None:
    vlm = load(one, "sparsevlm-auto")
    low, high = vlm.config.pruning.keep_range
    assert 1 < low < 30 < high <= 64
    with pytest.raises(BudgetError, match=f"outside {low} to {high}"):
        vlm.generate(picture(0), "What?", keep=low - 1)


def test_a_schedule_by_hand_serves_one_budget(one: Kit) -> None:
    options = {"schedule": "1:20,2:9"}
    vlm = one.load("by-hand", method="sparsevlm", options=options)
    low, high = vlm.config.pruning.keep_range
    assert low == high
    with pytest.raises(BudgetError, match=f"keep=60: outside {low} to {low}") as caught:
        vlm.generate(picture(0), "What?", keep=60)
    assert caught.value.hint == f"leave out keep; this build's schedule makes it {low}"
    assert vlm.generate(picture(0), "What?", max_new_tokens=2).kept_tokens <= 20


def test_ranks_that_fall_share_out_the_same_budget(one: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ranks turn out to be is what a schedule of those counts computes, from the first token on."""
    vlm = load(one, "sparsevlm-rank-budget")
    recorder, decoder = record(vlm), vlm.pipeline.decoder
    assert isinstance(decoder, CutDecoder)
    ranks, asked = [12, 8, 5, 3], []

    def rank(block: np.ndarray) -> int:
        asked.append(block.shape[1])
        return ranks[len(asked) - 1] if len(asked) <= len(ranks) else 12 if block.shape[1] == 64 else 7

    monkeypatch.setattr(decoder, "_rank", rank)
    result = vlm.generate(picture(0), "What is on the table?", max_new_tokens=TOKENS, ignore_eos=True)
    assert len(asked) == len(ranks), "a rank that is known was computed again"
    method, info = get("sparsevlm"), vlm.config.pruning
    assert isinstance(method, InLlmMethod)
    options, depth = method.validate_options(info.options), vlm.config.kv.num_layers
    counts = method.plan(depth, options).rank_counts(ranks, 30, 64)
    points = method.points(depth, options)
    by_hand = one.load(
        "rank-by-hand",
        method="sparsevlm",
        options={"schedule": ",".join(f"{p}:{n}" for p, n in zip(points, counts, strict=True))},
    )
    assert by_hand.config.pruning.keep == pytest.approx(30, abs=1)
    wanted = record(by_hand)
    same = by_hand.generate(picture(0), "What is on the table?", max_new_tokens=TOKENS, ignore_eos=True)
    assert (result.segment_tokens, result.kept_indices) == (same.segment_tokens, same.kept_indices)
    np.testing.assert_array_equal(recorder.logits[-TOKENS:], wanted.logits[-TOKENS:])
    # Rows of a batch and pictures of a prompt have budgets of their own.
    both = vlm.generate_batch(
        [Request(picture(0), "What is on the table?"), Request([picture(1), picture(2)], "Alike?", keep=40)],
        max_new_tokens=2,
    )
    counted = [(30, both[0].segment_tokens[0]), *((40, tokens) for tokens in both[1].segment_tokens)]
    for keep, tokens in counted:
        ends = (*points[1:], depth)
        nominal = 64 * points[0] + sum(c * (e - p) for c, p, e in zip(tokens[1:], points, ends, strict=True))
        assert nominal / depth == pytest.approx(keep, abs=1)


def _rank_schedule(scale: str) -> ScheduleInfo | None:
    method = get("sparsevlm")
    return method.plan(32, method.validate_options({"ratio": "rank", "scale": scale}))


def test_published_scales_serve_some_budgets(one: Kit) -> None:
    vlm = one.load("rank-published", method="sparsevlm", keep=64, options={"ratio": "rank", "scale": "published"})
    # The tiny model has 64 tokens: of the budgets with a scale only that one is left.
    assert vlm.config.pruning.keep_range == (64, 64)
    assert describe_served(vlm.config) == ""
    # What a build of LLaVA-1.5's sizes says.
    config = vlm.config
    large = replace(
        config,
        model=replace(config.model, visual_tokens=576),
        kv=replace(config.kv, num_layers=32),
        pruning=replace(config.pruning, keep_range=(64, 192), schedule=_rank_schedule("published")),
    )
    assert describe_served(large) == "budgets 64, 128, 192"
    budget = replace(large, pruning=replace(large.pruning, schedule=_rank_schedule("budget")))
    assert describe_served(budget) == "any budget from 64 to 192"


def test_a_budget_without_a_scale_is_refused_before_anything_runs(one: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = one.load("rank-published", method="sparsevlm", keep=64, options={"ratio": "rank", "scale": "published"})
    vlm.pipeline.config = replace(vlm.config, pruning=replace(vlm.config.pruning, keep_range=(1, 64)))
    monkeypatch.setattr(vlm.chain, "look", lambda *_: pytest.fail("the picture was looked at"))
    with pytest.raises(BudgetError, match="keep=60"):
        vlm.generate(picture(0), "What?", keep=60)
