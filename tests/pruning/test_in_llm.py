"""One prune point inside the decoder three ways: NumPy, graph, and the published steps in torch."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.components.test_segments import draw, states
from tests.kit import in_llm_torch, tiny
from tests.kit.runner import link_weights, session
from trtprune.checkpoint import open_checkpoint
from trtprune.errors import BudgetError, InputError
from trtprune.graph import Graph, Lowering
from trtprune.models import open_model
from trtprune.pruning import recycling
from trtprune.pruning.base import BuildContext
from trtprune.pruning.in_llm import InLlmMethod
from trtprune.pruning.methods.fastv import FastV
from trtprune.pruning.methods.pyramiddrop import PyramidDrop
from trtprune.pruning.methods.sparsevlm import SparseVlm
from trtprune.pruning.point_graph import build_point, build_raters
from trtprune.pruning.rank import build_rank
from trtprune.runtime.rank import matrix_rank
from trtprune.schedules import Schedule

SPARSE, FASTV, PYRAMID = SparseVlm(), FastV(), PyramidDrop()
LENGTH, START, VISUAL = 61, 4, 40
CASES = {
    "llama": tiny.Tiny(seed=51, layers=4),
    "qwen3": tiny.Tiny(seed=53, decoder="qwen3", layers=4),
    "mistral": tiny.Tiny(seed=52, decoder="mistral", layers=4, text={"sliding_window": 58}),
    "qwen2": tiny.Tiny(seed=53, decoder="qwen2", kv_heads=4, layers=4),
}


class Model:
    """A tiny random decoder in transformers, with the attention maps and states of one prompt."""

    def __init__(self, path: Path, t: tiny.Tiny) -> None:
        self.path, self.model = path, tiny.make(path, t)
        checkpoint = open_checkpoint(path)
        link_weights(checkpoint, path / "engine")
        self.parsed = open_model(checkpoint)
        self.embeds = draw(1, LENGTH, 64, seed=t.seed)
        found = states(self.model, self.embeds)
        self.attention = [a[0] for a in found.attentions]
        language = self.model.model.language_model
        with torch.no_grad():
            hidden = language(
                inputs_embeds=torch.from_numpy(self.embeds), output_hidden_states=True, use_cache=False
            ).hidden_states
            cos, sin = language.rotary_emb(hidden[0], torch.arange(LENGTH)[None])
        self.hidden = [h[0] for h in hidden]
        self.cos, self.sin = cos[0, :, : cos.shape[2] // 2], sin[0, :, : sin.shape[2] // 2]

    def angles(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.cos.numpy()[positions], self.sin.numpy()[positions]

    def point(self, method: InLlmMethod, layer: int, options: dict[str, Any], **inputs: Any) -> tuple[Any, Any]:
        """Runs the graph behind ``layer`` on the states and attention of this prompt."""

        def make(name: str) -> Graph:
            return Graph(name, lowering=Lowering.for_backend("onnxruntime"), tensors=self.parsed.weight_tensors())

        place = self.parsed.layer_access(layer)
        run = session(build_point(method, make, f"pruner.{layer}", place, options), self.path / "engine")
        wanted = {i.name for i in run.get_inputs()}
        removed = inputs["visual_index"].shape[1] - int(inputs["keep"][0])
        counts = zip(("recycled", "merged"), method.plan(32, options).merged_counts(removed), strict=True)
        inputs |= {name: np.array([n]) for name, n in counts}
        kept, *vectors = run.run(None, {name: value for name, value in inputs.items() if name in wanted})
        return kept, np.concatenate(vectors, axis=1)


@pytest.fixture(scope="module", params=list(CASES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp(request.param), CASES[request.param])


def inputs(model: Model, layer: int, raters: np.ndarray, keep: int, heads: bool) -> dict[str, np.ndarray]:
    attention = model.attention[layer][:, raters].numpy()
    return {
        "hidden_states": model.hidden[layer + 1].numpy()[None],
        "visual_index": np.arange(START, START + VISUAL)[None],
        "rater_attention": (attention if heads else attention.mean(0))[None],
        "rater_weights": np.ones((1, len(raters)), np.float32),
        "rater_index": raters[None],
        "position_ids": np.arange(LENGTH)[None, None],
        "keep": np.array([keep]),
    }


@pytest.mark.parametrize("rater", ["gt", "ge"])
def test_raters(rater: str) -> None:
    options = SPARSE.validate_options({"rater": rater})
    graph = build_raters(SPARSE, BuildContext(Graph, 24), options)
    assert graph is not None
    run = session(graph)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        visual = rng.standard_normal((rng.integers(1, 70), 24)).astype(np.float32)
        text = rng.standard_normal((rng.integers(1, 30), 24)).astype(np.float32)
        wanted = in_llm_torch.raters(torch.from_numpy(visual), torch.from_numpy(text), strict=rater == "gt").tolist()
        wanted = wanted or list(range(len(text)))  # ours: alike tokens all rate; the published code fails
        found = SPARSE.raters(visual, text, **options)
        assert np.flatnonzero(found).tolist() == wanted
        (ours,) = run.run(None, {"image_features": visual[None], "text_embeds": text[None]})
        np.testing.assert_array_equal(ours[0], found)


@pytest.mark.parametrize("keep", [1, 7, 20, 39])
@pytest.mark.parametrize("layer", [0, 2])
def test_sparsevlm(model: Model, layer: int, keep: int) -> None:
    options = SPARSE.validate_options({})
    rater = in_llm_torch.raters(*(torch.from_numpy(model.embeds[0, p]) for p in (_IMAGE, _TEXT))) + START + VISUAL
    kept, states_ = in_llm_torch.sparse_point(
        model.hidden[layer + 1], model.attention[layer], rater, START, VISUAL, keep
    )
    vectors = states_[START : len(states_) - (LENGTH - START - VISUAL)]
    given = inputs(model, layer, rater.numpy(), keep, heads=False)
    ours, pruned = model.point(SPARSE, layer, options, **given)
    np.testing.assert_array_equal(ours[0], kept)
    np.testing.assert_allclose(pruned[0], vectors, rtol=0, atol=1e-4)
    block = given["rater_attention"][0, :, START : START + VISUAL]
    index, merged = SPARSE.point(model.hidden[layer + 1][_IMAGE].numpy(), block, keep=keep, **options)
    np.testing.assert_array_equal(index, kept)
    np.testing.assert_allclose(merged, vectors[keep:], rtol=0, atol=1e-4)
    assert len(pruned[0]) == keep + recycling.merged_counts(VISUAL - keep, 0.3)[1]


@pytest.mark.parametrize("heads", [1, 3, 14])
def test_sparsevlm_2(model: Model, heads: int) -> None:
    options = SPARSE.validate_options({"version": "2.0", "heads": heads})
    rater = torch.tensor([46, 47, 53, 60])
    for layer, keep in ((0, 9), (1, 30)):
        wanted = in_llm_torch.sparse_plus_point(
            model.attention[layer], model.cos, model.sin, rater, START, VISUAL, keep, heads
        )
        given = inputs(model, layer, rater.numpy(), keep, heads=True)
        ours, pruned = model.point(SPARSE, layer, options, **given)
        np.testing.assert_array_equal(ours[0], wanted)
        np.testing.assert_array_equal(pruned[0], model.hidden[layer + 1][_IMAGE][wanted])
        index = SPARSE.reference(
            model.hidden[layer + 1][_IMAGE].numpy(),
            keep=keep,
            attention=given["rater_attention"][0, :, :, _IMAGE],
            angles=model.angles,
            rater_positions=rater.numpy(),
            visual_positions=np.arange(LENGTH)[_IMAGE],
            **options,
        )
        np.testing.assert_array_equal(index, wanted)


@pytest.mark.parametrize("keep", [1, 12, 39])
def test_fastv(model: Model, keep: int) -> None:
    wanted = in_llm_torch.last_token_point(model.attention[1], START, VISUAL, keep)
    given = inputs(model, 1, np.array([LENGTH - 1]), keep, heads=False)
    ours, pruned = model.point(FASTV, 1, FASTV.validate_options({}), **given)
    np.testing.assert_array_equal(ours[0], wanted)
    np.testing.assert_array_equal(pruned[0], model.hidden[2][_IMAGE][wanted])
    block = given["rater_attention"][0, :, _IMAGE]
    np.testing.assert_array_equal(FASTV.reference(model.hidden[2][_IMAGE].numpy(), keep=keep, attention=block), wanted)


@pytest.mark.parametrize("keep", [1, 12, 39])
def test_pyramiddrop(model: Model, keep: int) -> None:
    """The attention is that of the layer behind the cut, over the states that enter it."""
    wanted = in_llm_torch.last_token_point(model.attention[2], START, VISUAL, keep)
    given = inputs(model, 1, np.array([LENGTH - 1]), keep, heads=False)
    del given["rater_attention"]
    ours, pruned = model.point(PYRAMID, 1, PYRAMID.validate_options({}), **given)
    np.testing.assert_array_equal(ours[0], wanted)
    np.testing.assert_array_equal(pruned[0], model.hidden[2][_IMAGE][wanted])
    block = model.attention[2][:, -1:, _IMAGE].numpy()
    np.testing.assert_array_equal(
        PYRAMID.reference(model.hidden[2][_IMAGE].numpy(), keep=keep, attention=block), wanted
    )


def test_raters_of_another_image_do_not_count(model: Model) -> None:
    """Weights choose among the rows of a prompt with several images."""
    options = SPARSE.validate_options({})
    given = inputs(model, 0, np.array([45, 50, 52, 60]), 10, heads=False)
    some = inputs(model, 0, np.array([50, 60]), 10, heads=False)
    given["rater_weights"] = np.array([[0, 1, 0, 1]], np.float32)
    for ours, wanted in zip(
        model.point(SPARSE, 0, options, **given), model.point(SPARSE, 0, options, **some), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6)


_IMAGE, _TEXT = slice(START, START + VISUAL), slice(START + VISUAL, LENGTH)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 40),
    st.sampled_from(recycling.ASSIGN),
    st.sampled_from(recycling.REDUCE),
    st.integers(0, 2**32 - 1),
    st.floats(0.05, 20),
)
def test_merging(many: int, width: int, assign: str, reduce: str, seed: int, spread: float) -> None:
    """Clusters and their vectors: NumPy and torch on random vectors; the graph is held against both below."""
    rng = np.random.default_rng(seed)
    x = (spread * rng.standard_normal((many, width)) + 5 * rng.standard_normal(width)).astype(np.float32)
    count = many // 10 + 1
    wanted = in_llm_torch.merge(torch.from_numpy(x), count, cosine=assign == "cosine", total=reduce == "sum").numpy()
    found = recycling.merge(x, count, assign, reduce)
    # Nearly equal densities may swap by rounding; equal ones (each other's nearest, underflow) may not.
    distance = torch.cdist(torch.from_numpy(x).double(), torch.from_numpy(x).double()) / width**0.5
    density = (-(distance.topk(count, largest=False).values ** 2).mean(1)).exp().sort().values
    apart = density.diff() / density[1:].clamp(min=1e-300)
    assume(float(density[0]) > 1e-30)
    assume(not bool(((apart > 1e-12) & (apart < 1e-4)).any()))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * spread)


@pytest.mark.parametrize("reduce", recycling.REDUCE)
@pytest.mark.parametrize("assign", recycling.ASSIGN)
def test_merging_as_a_graph(assign: str, reduce: str) -> None:
    g = Graph("merge")
    x, count = g.input("x", "float32", [1, "m", "d"]), g.input("count", "int64", [1])
    g.output(recycling.write_merge(g, x, count, assign, reduce), "y", "float32", [1, "c", "d"])
    run, rng = session(g), np.random.default_rng(3)
    for many in (1, 2, 3, 9, 10, 11, 60, 150):
        vectors = rng.standard_normal((many, 16)).astype(np.float32)
        if many == 60:
            vectors[30:] = vectors[:30]  # every vector twice: ties in every step
        (y,) = run.run(None, {"x": vectors[None], "count": np.array([many // 10 + 1])})
        np.testing.assert_allclose(y[0], recycling.merge(vectors, many // 10 + 1, assign, reduce), rtol=0, atol=1e-5)


def test_merged_counts_are_those_of_the_published_arithmetic() -> None:
    for removed in range(1, 3000):
        many = int(removed * 0.3) + 1
        assert recycling.merged_counts(removed, 0.3) == (many, int(many / 10) + 1)


# -- rank ---------------------------------------------------------------------------------------------------------


def test_rank_of_random_blocks() -> None:
    run, rng = session(build_rank()), np.random.default_rng(0)
    for case in range(200):
        rows, columns = int(rng.integers(1, 60)), int(rng.integers(1, 600))
        logits = rng.standard_normal((rows, columns)) * rng.uniform(0.01, 6)
        if case % 3 == 1:
            inner = int(rng.integers(1, 5))
            logits = rng.standard_normal((rows, inner)) @ rng.standard_normal((inner, columns))
        block = np.exp(logits - logits.max(1, keepdims=True))
        block = (block / block.sum(1, keepdims=True)).astype(np.float32)
        if case % 3 == 2:
            block[rows // 2 :] = block[: rows - rows // 2]
        wanted = int(torch.linalg.matrix_rank(torch.from_numpy(block)))
        assert matrix_rank(block) == wanted
        assert run.run(None, {"attention": block})[0].tolist() == [wanted]


def test_rank_of_attention(model: Model) -> None:
    run = session(build_rank())
    for attention in model.attention:
        for rows in (slice(44, 61), slice(50, 51), slice(0, 61)):
            block = attention.mean(0)[rows, _IMAGE].numpy()
            wanted = int(torch.linalg.matrix_rank(torch.from_numpy(block)))
            assert matrix_rank(block) == wanted
            assert run.run(None, {"attention": np.ascontiguousarray(block)})[0].tolist() == [wanted]


@pytest.mark.parametrize("block", [np.zeros((3, 7)), np.ones((5, 9)), np.eye(6), np.zeros((1, 1))], ids=str)
def test_rank_of_plain_blocks(block: np.ndarray) -> None:
    wanted = np.linalg.matrix_rank(block)
    block = block.astype(np.float32)
    assert matrix_rank(block) == wanted
    assert session(build_rank()).run(None, {"attention": block})[0].tolist() == [wanted]


# -- schedules ----------------------------------------------------------------------------------------------------

PUBLISHED = {
    ("1.0", 192): ((309, 204, 113), 192.03, 206.50),
    ("1.0", 128): ((312, 117, 39), 128.62, 145.41),
    ("1.0", 96): ((249, 55, 27), 96.94, 114.09),
    ("1.0", 64): ((82, 32, 18), 64.81, 82.25),
    ("2.0", 192): ((300, 200, 118), 192.44, 206.75),
    ("2.0", 128): ((238, 108, 60), 128.00, 144.12),
    ("2.0", 96): ((246, 54, 28), 96.81, 113.94),
    ("2.0", 64): ((66, 34, 20), 64.44, 81.81),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_schedules(case: tuple[str, int]) -> None:
    version, keep = case
    schedule = SPARSE.schedule(keep, 576, 32, SPARSE.validate_options({"version": version}))
    after, nominal, processed = PUBLISHED[case]
    assert schedule.after == after
    assert schedule.nominal == pytest.approx(nominal, abs=0.0051)
    assert schedule.processed == pytest.approx(processed, abs=0.0051)
    assert schedule.per_layer[:4] == (576, 576, 576, after[0])
    assert schedule.per_layer[6:8] == (after[0], after[1])
    assert schedule.per_layer[15:17] == (after[1], after[2])


@settings(max_examples=150, deadline=None)
@given(
    st.integers(16, 2880),
    st.integers(6, 80),
    st.data(),
    st.sampled_from(["1.0", "2.0", "fastv", "pyramiddrop", "rank", "published"]),
)
def test_any_budget_is_met_or_refused(tokens: int, depth: int, data: st.DataObject, kind: str) -> None:
    keep = data.draw(st.integers(1, tokens))
    method: InLlmMethod = {"fastv": FASTV, "pyramiddrop": PYRAMID}.get(kind, SPARSE)
    own = {"rank": {"ratio": "rank"}, "published": {"layers": "published"}}
    try:
        options = method.validate_options(own.get(kind, {"version": kind}) if method is SPARSE else {})
        schedule = method.schedule(keep, tokens, depth, options)
    except BudgetError as caught:
        error = caught
    else:
        error = None
    if error is not None:
        assert f"keep={keep}" in error.message or f"the decoder has {depth}" in error.message
        assert "options" in (error.hint or "")
        return
    assert abs(schedule.nominal - keep) <= max(2.0, 0.03 * tokens), schedule
    counts = (tokens, *schedule.after)
    assert all(a >= b >= 1 for a, b in zip(counts, counts[1:], strict=False))  # noqa: RUF007
    assert all(1 <= kept <= before for kept, before in zip(schedule.kept, counts, strict=False))
    assert len(schedule.per_layer) == depth
    assert schedule.points[-1] < depth - 1


def test_own_schedule() -> None:
    options = SPARSE.validate_options({"schedule": "0:20,2:9"})
    assert SPARSE.points(4, options) == (0, 2)
    assert SPARSE.schedule(16, 40, 4, options) == Schedule(40, 4, (0, 2), (20, 9), (21, 10), 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2:66,6", "LAYER:TOKENS"),
        ("2:66,6:90", "must fall"),
        ("2:66,6:0", "must fall"),
        ("2:576", "must fall"),
        ("2:66,2:30", "cannot prune behind layers 2, 2"),
        ("2:66,31:30", "cannot prune behind layers 2, 31"),
    ],
)
def test_schedules_that_do_not_fit(text: str, words: str) -> None:
    with pytest.raises(BudgetError, match=words):
        SPARSE.schedule(64, 576, 32, SPARSE.validate_options({"schedule": text}))


@pytest.mark.parametrize("method", [SPARSE, FASTV, PYRAMID], ids=lambda m: m.name)
def test_a_decoder_that_is_too_shallow(method: InLlmMethod) -> None:
    with pytest.raises(BudgetError, match=r"the decoder has 2") as caught:
        method.points(2, method.validate_options({}))
    assert "options" in str(caught.value.hint)


def test_published_rank_scales() -> None:
    """``rank · scale + bias``, at most all but one; all where the rank is full."""
    options = SPARSE.validate_options({"ratio": "rank", "scale": "published"})
    assert SPARSE.points(32, options) == (2, 6, 15, 19)

    def first(rank: int, keep: int) -> int:
        return SPARSE.plan(32, options).rank_counts([rank], keep, 576)[0]

    assert first(17, 192) == int(17 * 13.5) == 229
    assert first(17, 128) == 17 * 9 + 6
    assert first(50, 192) == 575
    assert first(1, 64) == 1
    # Behind the first point 13 are left and two that 563 were merged into: int(0.3 · 563) + 1 = 169, // 10 + 1 = 17.
    assert SPARSE.plan(32, options).rank_counts([1, 30], 192, 576) == (13, 30 - 1 if 13 + 17 > 30 else 30)
    assert SPARSE.plan(32, options).served(576) == [64, 128, 192]
    for text in ("published", "0", "0.0"):
        with pytest.raises(BudgetError, match="keep=100") as caught:
            SPARSE.schedule(100, 576, 32, SPARSE.validate_options({"ratio": "rank", "scale": text}))
        assert "--option scale=budget" in str(caught.value.flag_hint)
    own = SPARSE.validate_options({"ratio": "rank", "scale": 2, "bias": "3"})
    assert SPARSE.plan(32, own).rank_counts([10], 100, 576) == (23,)
    assert not SPARSE.plan(32, own).meets_keep
    with pytest.raises(BudgetError, match="fast"):
        SPARSE.validate_options({"ratio": "rank", "scale": "fast"})


RANKS = st.lists(st.integers(0, 40), min_size=4, max_size=4)


@settings(max_examples=150, deadline=None)
@given(RANKS, st.integers(60, 500), st.sampled_from([28, 30, 32, 40]), st.sampled_from([0.3, 0.0]))
def test_ranks_share_out_the_budget(ranks: list[int], keep: int, depth: int, recycle: float) -> None:
    """Whatever the ranks: the average over the layers is ``keep``, and what a point keeps goes with its rank."""
    options = SPARSE.validate_options({"ratio": "rank", "recycle": recycle})
    points = SPARSE.points(depth, options)
    counts = SPARSE.plan(depth, options).rank_counts(ranks, keep, 576)
    tokens, layers = [576] * points[0], []
    for point, count, end in zip(points, counts, (*points[1:], depth), strict=True):
        before = layers[-1] if layers else 576
        assert 1 <= count < before or count == before == 1
        removed = before - count
        recycled = int(recycle * removed) + 1 if recycle and removed else 0
        layers.append(count + (recycled // 10 + 1 if recycled else 0))
        tokens += [layers[-1]] * (end - point)
    assert len(tokens) == depth
    assert sum(tokens) / depth == pytest.approx(keep, abs=1.0)
    # Where nothing bounds them, counts are to each other as the ranks are.
    free = [k for k in range(4) if counts[k] > 1 and counts[k] < ([576, *layers][k]) - 1 and ranks[k]]
    for a, b in itertools.pairwise(free):
        assert counts[a] / counts[b] == pytest.approx(ranks[a] / ranks[b], rel=0.02 + 1.5 / min(counts[a], counts[b]))


def test_ranks_to_come_are_taken_to_stay() -> None:
    options = SPARSE.validate_options({"ratio": "rank"})
    flat = SPARSE.schedule(100, 576, 30, options)
    for ranks in ([7], [7, 7], [3, 3, 3, 3]):
        assert SPARSE.plan(30, options).rank_counts(ranks, 100, 576) == flat.kept[: len(ranks)]
    low, high = SPARSE.budgets(576, 30, options)
    assert SPARSE.plan(30, options).served(576) == list(range(low, high + 1))


@pytest.mark.parametrize(("depth", "scaled", "own"), [(40, (2, 8, 19), (2, 6, 15)), (30, (2, 6, 14), (2, 6, 15))])
def test_published_layers(depth: int, scaled: tuple[int, ...], own: tuple[int, ...]) -> None:
    """``score.py`` of the code cuts behind 2, 6 and 15 whatever the decoder."""
    assert SPARSE.points(depth, SPARSE.validate_options({})) == scaled
    options = SPARSE.validate_options({"layers": "published"})
    assert SPARSE.points(depth, options) == own
    assert SPARSE.schedule(192, 576, depth, options).nominal == pytest.approx(192, abs=0.5)
    with pytest.raises(BudgetError, match="the decoder has 16"):
        SPARSE.points(16, options)
    with pytest.raises(BudgetError, match="names its layers"):
        SPARSE.validate_options({"layers": "published", "schedule": "2:66,6:30"})


@pytest.mark.parametrize("method", [SPARSE, FASTV, PYRAMID], ids=lambda m: m.name)
def test_references_refuse_what_does_not_fit(method: InLlmMethod) -> None:
    features, block = np.zeros((9, 4), np.float32), np.ones((2, 9), np.float32)
    with pytest.raises(InputError, match="needs attention"):
        method.reference(features, keep=3)
    with pytest.raises(InputError, match="attention has shape"):
        method.reference(features, keep=3, attention=block[:, :8])
    for keep in (0, 10):
        with pytest.raises(BudgetError, match=f"keep={keep}"):
            method.reference(features, keep=keep, attention=block)
    assert method.reference(features, keep=9, attention=block).tolist() == list(range(9))
