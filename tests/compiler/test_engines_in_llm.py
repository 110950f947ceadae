"""Pruning inside the decoder on TensorRT: engines of segments and points are built, and run on a made-up GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trtprune
from tests.kit import tiny, trt_kit
from tests.kit.runtime_kit import Kit, picture, same
from tests.runtime.test_in_llm import BUILDS, expected
from trtprune.backends.tensorrt.profiles import Limits
from trtprune.backends.tensorrt.shapes import cache_bytes, cache_capacity
from trtprune.compiler.engine_options import EngineOptions
from trtprune.compiler.engine_stages import find_stages
from trtprune.engine_dir import PruningInfo
from trtprune.errors import BudgetError, InputError
from trtprune.pruning import InLlmMethod, get
from trtprune.runtime import Request

TOKENS = 8


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("trt_in_llm") / "model", tiny.Tiny(seed=61, layers=6, image_size=112))


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("name", BUILDS)
def test_like_the_published_steps(kit: Kit, name: str, backend: str) -> None:
    """Ids and cache lengths as in transformers; no states cross to the host."""
    path = trt_kit.make_dir(kit, name, backend=backend, max_images=2, max_input_len=60, **BUILDS[name])
    vlm, fake = trt_kit.load(path)
    for count, question in ((1, "What is on the table?"), (2, "Are they the same?")):
        images = [picture(3 * count + i) for i in range(count)]
        wanted = expected(kit, vlm, images, question, TOKENS)
        fake.driver.d2h.clear()
        result = vlm.generate(images, question, max_new_tokens=TOKENS, ignore_eos=True)
        assert result.token_ids == wanted.ids
        tokens = [sum(image[s] for image in result.segment_tokens) for s in range(len(result.segment_tokens[0]))]
        layers = [n for n, k in zip(tokens, vlm.config.kv.segment_layers, strict=True) for _ in range(k)]
        text = wanted.cached[0] - layers[0]
        assert [text + n for n in layers] == wanted.cached
        # What comes back is logits, raters, indices and, for a rank, rows of attention; states are 64 numbers a token.
        assert max(fake.driver.d2h) < (12_000 if name == "sparsevlm-rank" else 1000) < 64 * 4 * wanted.cached[0]


@pytest.mark.parametrize("name", ["sparsevlm-auto", "fastv"])
def test_batch_and_turns(kit: Kit, name: str) -> None:
    path = trt_kit.make_dir(kit, f"{name}-2", max_images=2, max_batch_size=2, max_input_len=160, **BUILDS[name])
    vlm, _ = trt_kit.load(path)
    host = kit.load(f"{name}-host", **BUILDS[name])
    requests = [Request([picture(1)], "What?"), Request([picture(2), picture(3)], "What is on the left?", keep=35)]
    for ours, wanted in zip(*(v.generate_batch(requests, max_new_tokens=5) for v in (vlm, host)), strict=True):
        assert same(ours, wanted)
        assert ours.segment_tokens == wanted.segment_tokens
    chats = [v.chat(picture(4)) for v in (vlm, host)]
    for question, repick in (("What is this?", True), ("And there?", False), ("Why?", True)):
        ours, wanted = (chat.ask(question, repick=repick, max_new_tokens=4) for chat in chats)
        assert same(ours, wanted)


@pytest.mark.parametrize("name", BUILDS)
def test_engines_are_built(kit: Kit, name: str) -> None:
    """Each segment and each point, for SM89, by TensorRT-RTX."""
    pytest.importorskip("tensorrt_rtx")
    made = trtprune.build(
        str(kit.path),
        kit.path.parent / f"engines-{name}",
        backend="tensorrt-rtx",
        engine=EngineOptions(compute_capability=("sm89",), max_input_len=60),
        **BUILDS[name],
    )
    segments = made.segments
    assert len(segments) == len(made.by_role("pruner")) + 1
    for component in made.components:
        assert component.engine is not None
        assert made.path(component.engine).stat().st_size > 1000
    held = [cache_capacity(component) for component in segments]
    assert held[0] == made.kv.capacity
    assert held == sorted(held, reverse=True)
    # A narrower --keep-range is what makes later caches short: of all budgets, the largest hardly prunes.
    whole = made.kv.capacity * made.kv.bytes_per_token
    assert cache_bytes(made) < whole if name in ("sparsevlm", "sparsevlm-2") else cache_bytes(made) <= whole


@pytest.mark.parametrize("tokens", [64, 576])
@pytest.mark.parametrize("name", BUILDS)
def test_ranges_cover_every_budget(name: str, tokens: int) -> None:
    """What any budget of the range does at any point lies within the ranges the engines are built for."""
    build, depth = BUILDS[name], 6 if tokens == 64 else 32
    method = get(build["method"])
    assert isinstance(method, InLlmMethod)
    options = method.validate_options(build.get("options"))
    low, high = method.budgets(tokens, depth, options)
    keep = min(max(low, 64), high)
    plan = method.plan(depth, options)
    info = PruningInfo(method.name, keep, (low, high), options, (), "after_image", plan)
    stages = find_stages(info, tokens, tokens)
    assert stages[0].tokens == (tokens, tokens, tokens)
    assert not stages[-1].counts
    limits = Limits(tokens, keep, (low, high), 4096, stages=stages)
    assert [limits.capacity_of(k) for k in range(len(stages))] == [4096 - tokens + stage.tokens[2] for stage in stages]
    if options.get("ratio") == "rank":
        ways = [(count,) for count in range(1, tokens)]
    else:
        ways = [method.schedule(budget, tokens, depth, options).kept for budget in range(low, high + 1)]
    for kept in ways:
        before = tokens
        for stage, count in zip(stages, kept, strict=False):
            if count >= before:
                continue
            merged = plan.merged_counts(before - count)
            told = {"keep": count, "recycled": merged[0], "merged": merged[1]}
            for what, (least, _, most) in stage.counts.items():
                assert least <= told[what] <= most
            assert stage.tokens[0] <= before <= stage.tokens[2]
            before = count + merged[1]


def test_a_prompt_too_long_for_a_segment(kit: Kit) -> None:
    path = trt_kit.make_dir(kit, "short", max_input_len=40, **BUILDS["sparsevlm"])
    vlm, _ = trt_kit.load(path)
    with pytest.raises(InputError, match="the engines"):
        vlm.generate([picture(0), picture(1)], "What?", max_new_tokens=2)


def test_ranks_on_the_host_are_those_of_the_graph(kit: Kit) -> None:
    build: dict[str, Any] = BUILDS["sparsevlm-rank"]
    vlm, _ = trt_kit.load(trt_kit.make_dir(kit, "rank", max_input_len=60, **build))
    host = kit.load("rank-host", **build)
    assert "rank" in host.config.chain
    assert "rank" not in vlm.config.chain
    for seed in range(4):
        ours, wanted = (v.generate([picture(seed)], "What is it?", max_new_tokens=1) for v in (vlm, host))
        assert ours.segment_tokens == wanted.segment_tokens
        assert np.array_equal(ours.kept_indices, wanted.kept_indices)


@pytest.mark.parametrize("high", [20, 90, None])
@pytest.mark.parametrize("name", BUILDS)
def test_ranges_cover_every_image(name: str, high: int | None) -> None:
    """The same of images of any number of tokens, those that are no larger than the budget among them."""
    build, depth, fewest, most = BUILDS[name], 7, 30, 150
    method = get(build["method"])
    assert isinstance(method, InLlmMethod)
    options = method.validate_options(build.get("options"))
    low, highest = method.budgets(most, depth, options)
    high = max(low, min(high or highest, highest))
    plan = method.plan(depth, options)
    assert plan is not None
    info = PruningInfo(method.name, low, (low, high), options, (), "after_image", plan)
    stages = find_stages(info, fewest, most)
    exact = find_stages(info, most, most)
    assert stages[0].tokens == (fewest, most, most)
    assert [stage.tokens[1] for stage in stages] == [stage.tokens[1] for stage in exact]
    assert all(1 <= a <= b <= c for stage in stages for a, b, c in (stage.tokens, *stage.counts.values()))
    rng = np.random.default_rng(0)
    for tokens in (fewest, *map(int, rng.integers(fewest, most, 30)), most):
        for budget in range(low, high + 1):
            if options.get("ratio") == "rank":
                kept = plan.rank_counts(rng.integers(1, 60, len(plan.points)).tolist(), budget, tokens)
            else:
                try:
                    kept = plan.kept(budget, tokens)
                except BudgetError:  # an image that is just larger than the budget, and pruned early
                    continue
            check_way(stages, plan, kept, tokens)


def check_way(stages: Any, plan: Any, kept: Any, tokens: int) -> None:
    before = tokens
    for number, stage in enumerate(stages):
        assert before <= stage.tokens[2]
        assert tokens - before >= stage.lost, "the cache of the segment is too short"
        if number == len(kept) or kept[number] >= before:
            continue
        assert stage.tokens[0] <= before
        merged = plan.merged_counts(before - kept[number])
        for what, count in zip(("keep", "recycled", "merged"), (kept[number], *merged), strict=True):
            if what in stage.counts:
                least, _, largest = stage.counts[what]
                assert least <= count <= largest, (what, number)
        before = kept[number] + merged[1]
