"""``crops=each`` of the methods whose crops are apart: beside the authors' code, the rules retold, and as a graph."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.kit import crop_rules, multicrop
from tests.kit import pruning_cases as pc
from tests.pruning.test_grids import images
from trtprune import pruning
from trtprune.graph import Lowering
from trtprune.pruning.crops import Rooms
from trtprune.pruning.graph import build_pruner
from trtprune.pruning.greedy import determinant

RULES: dict[str, Callable[..., list[int]]] = {
    "cdpruner": crop_rules.cdpruner,
    "vispruner": crop_rules.vispruner,
    "hiprune": crop_rules.hiprune,
    "mmtok": crop_rules.mmtok,
}
"""Each takes a case, its arrays and a budget: per crop, or in all for HiPrune."""
VECTORS = [(case, record) for case, record in multicrop.cases() if case.method in RULES]
EACH = {"crops": "each"}
FORMS = {
    "default": Lowering(),
    "lazy": Lowering(coverage="lazy"),
    "count": Lowering(loop_order="count"),
    "sm75": Lowering(products="primitives"),
}
SMALL = {"deadline": None, "derandomize": True, "database": None}


def packed(case: multicrop.Case, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The arrays of a case as a pruner has them, in the authors' layout, and the grid of its tokens."""
    ids = multicrop.raster(case)
    crop, patch = np.divmod(ids, case.patches)
    row, column = np.divmod(patch, case.side)
    down, right = np.divmod(crop - 1, case.grid[1])
    tiles = crop > 0
    grid = np.stack([crop, row + tiles * down * case.side, column + tiles * right * case.side], axis=1)
    per_token = ("cls_attention", "shallow_attention", "deep_attention")
    per_row = ("image_features", "vision_features", "clip_image_embeds")
    return {
        **{name: arrays[name].reshape(-1)[ids] for name in per_token},
        **{name: arrays[name].reshape(-1, arrays[name].shape[-1])[ids] for name in per_row},
        **{name: arrays[name] for name in ("text_embeds", "clip_text_embeds")},
        "grid": grid.astype(np.int64),
    }


@functools.cache
def session(method: str, width: int, form: str) -> onnxruntime.InferenceSession:
    return pc.open_graph(build_pruner(method, width, lowering=FORMS[form], options=EACH))


def graph(method: str, inputs: dict[str, Any], keep: int, form: str = "default") -> list[int]:
    case = {name: array[None] for name, array in inputs.items()}
    case |= {"text_mask": np.ones((1, len(inputs["text_embeds"])), np.int64), "keep": keep}
    return pc.run(session(method, inputs["image_features"].shape[1], form), case)[0][0].tolist()


def budgets(case: multicrop.Case, run: dict[str, Any]) -> tuple[int, int]:
    """The budget as the rule has it, and in all."""
    if "overall" in run:
        return run["overall"], run["overall"] // case.crops * case.crops
    return run["each"], run["each"] * case.crops


@pytest.mark.parametrize(
    ("case", "record"), VECTORS, ids=[f"{c.method}-{c.seed}-{c.kind}-{c.grid}" for c, _ in VECTORS]
)
def test_the_authors_selection(case: multicrop.Case, record: dict[str, Any]) -> None:
    inputs = packed(case, multicrop.inputs(case))
    for run in record["runs"]:
        keep = budgets(case, run)[1]
        assert pruning.get(case.method).reference(keep=keep, **inputs, **EACH).tolist() == run["kept"], run
        assert graph(case.method, inputs, keep) == run["kept"], run


@pytest.mark.parametrize("method", RULES)
@settings(max_examples=40, **SMALL)
@given(data=st.data())
def test_the_rules_retold(method: str, data: st.DataObject) -> None:
    """Where rounding decides nothing: inputs moved by a little give the same."""
    side = data.draw(st.sampled_from([4, 6, 8]))
    tiles = data.draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (3, 1)]))
    kind = data.draw(st.sampled_from(["smooth", "ties"]))
    case = multicrop.Case(method, data.draw(st.integers(0, 9999)), side, tiles, kind)
    each = data.draw(st.integers(1, min(side * side, 12)))
    each = max(4, each // 4 * 4) if method == "vispruner" else each  # the code stops at others
    arrays = multicrop.inputs(case)
    moved = dict(arrays)
    if kind == "smooth":
        noise = np.random.default_rng(case.seed)
        moved = {k: a * (1 + 2e-6 * noise.uniform(-1, 1, a.shape)).astype(np.float32) for k, a in arrays.items()}
    budget = each * case.crops if method == "hiprune" else each
    wanted = RULES[method](case, arrays, budget)
    assume(RULES[method](case, moved, budget) == wanted)
    inputs, keep = packed(case, arrays), each * case.crops
    assert pruning.get(method).reference(keep=keep, **inputs, **EACH).tolist() == wanted
    for form in FORMS:
        assert graph(method, inputs, keep, form) == wanted, form


@pytest.mark.parametrize("method", RULES)
@settings(max_examples=60, **SMALL)
@given(grid=images(), data=st.data())
def test_every_budget_of_every_image(method: str, grid: np.ndarray, data: st.DataObject) -> None:
    """Graph as reference; exactly ``keep`` candidates, of each crop its share, whatever is not finite."""
    real = np.flatnonzero(grid[:, 1] >= 0)
    keep = data.draw(st.one_of(st.just(len(real)), st.integers(1, len(real))))
    kind = data.draw(st.sampled_from(["normal", "integer", "holes", "few rows", "constant"]))
    case = pc.make(data.draw(st.integers(0, 9999)), 1, len(grid), 3, keep, kind)
    inputs = {key: value[0] for key, value in case.items() if isinstance(value, np.ndarray) and value.ndim > 1}
    inputs = {key: value for key, value in inputs.items() if key not in ("text_mask", "cls_feature")} | {"grid": grid}
    inputs["text_embeds"] = inputs["text_embeds"][case["text_mask"][0] > 0]
    kept = pruning.get(method).reference(keep=keep, **inputs, **EACH).tolist()
    results = [kept, *(graph(method, inputs, keep, form) for form in FORMS)]
    for found in results:
        assert found == sorted({*found})
        assert len(found) == keep
        assert {*found} <= {*real.tolist()}
        crops, got = Counter(grid[real, 0].tolist()), Counter(grid[found, 0].tolist())
        share, more = divmod(keep, len(crops))
        for place, crop in enumerate(sorted(crops)):
            quota = share + (place < more)
            assert got[crop] >= min(quota, crops[crop])
            if all(size >= share + 1 for size in crops.values()):
                assert got[crop] == quota
    if kind == "normal" or method in ("hiprune", "vispruner"):
        assert all(found == kept for found in results)


@pytest.mark.parametrize("method", RULES)
def test_one_crop_is_as_joint(method: str) -> None:
    for number in range(10):
        case = pc.arguments(pc.make(number, 2, 20, 4, 1 + 2 * number, "normal", (4, 5)))
        joint = pruning.get(method).reference(**case)
        np.testing.assert_array_equal(pruning.get(method).reference(**case, **EACH), joint)


@pytest.mark.parametrize("method", RULES)
def test_each_needs_the_grid(method: str) -> None:
    chosen = pruning.get(method)
    assert "grid" in chosen.needs_of(chosen.validate_options(EACH))


@pytest.mark.parametrize("method", RULES)
def test_builds_in_tensorrt_rtx(method: str) -> None:
    """N at run time, up to LLaVA-NeXT's largest image."""
    rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    lowering = Lowering.for_backend("tensorrt-rtx")
    built = build_pruner(method, 64, "float16", lowering, EACH, most_crops=5)
    network = rtx.Network(built.to_bytes(), None)
    assert network.build(values={"keep": (1, 160, 640)}) > 0


def made_up(grid: np.ndarray, number: int) -> dict[str, Any]:
    """Inputs of one image, without ties, and its grid."""
    case = pc.make(number, 1, len(grid), 3, 1, "normal")
    wanted = pruning.get("cdpruner").needs | {"image_features", "text_embeds", "vision_features", "cls_attention"}
    wanted |= {"shallow_attention", "deep_attention"}
    return {name: case[name][0] for name in wanted} | {"grid": grid}


@pytest.mark.parametrize("method", RULES)
def test_tokens_without_a_place_do_not_count(method: str) -> None:
    """Whatever a newline's numbers are: it is in no minimum, no softmax and no comparison."""
    grid = np.array([(c, y, x) if x < 4 else (-1, -1, -1) for c in range(2) for y in range(4) for x in range(5)])
    for number in range(5):
        inputs = made_up(grid, number)
        moved = dict(inputs)
        for name, array in inputs.items():
            if len(array) == len(grid) and name != "grid":
                moved[name] = array.copy()
                moved[name][grid[:, 1] < 0] = 50 * array[0]
        moved["clip_image_embeds"][grid[:, 1] < 0] = inputs["clip_text_embeds"].sum(axis=0)
        kept = pruning.get(method).reference(keep=9, **inputs, **EACH).tolist()
        assert pruning.get(method).reference(keep=9, **moved, **EACH).tolist() == kept
        for form in FORMS:
            assert graph(method, moved, 9, form) == kept


@pytest.mark.parametrize("method", RULES)
def test_a_crop_smaller_than_its_share(method: str) -> None:
    """What it leaves goes on to be chosen from the other by the same rule."""
    grid = np.array([(0, 0, 0)] + [(1, y, x) for y in range(6) for x in range(6)])
    for number in range(5):
        inputs = made_up(grid, number)
        kept = pruning.get(method).reference(keep=26, **inputs, **EACH).tolist()
        assert kept[0] == 0
        for form in FORMS:
            assert graph(method, inputs, 26, form) == kept
        if method == "mmtok":
            alone = {name: array[1:] if len(array) == len(grid) else array for name, array in inputs.items()}
            assert [1 + i for i in pruning.get(method).reference(keep=25, **alone)] == kept[1:]


def test_a_crop_of_little_relevance_is_chosen_from_as_if_alone() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 60))
    unit = features / np.linalg.norm(features, axis=1)[:, None]
    similarity, good = (unit @ unit.T).astype(np.float32), np.ones(40, np.bool_)
    factor = np.concatenate([rng.uniform(0.5, 1, 20), rng.uniform(1e-6, 2e-6, 20)]).astype(np.float32)
    grid = np.array([(token // 20, 0, token % 20) for token in range(40)])
    kept = determinant(similarity, factor, 20, good, Rooms(grid, 20))
    for own in (slice(0, 20), slice(20, 40)):
        alone = determinant(similarity[own, own], factor[own], 10, good[own])
        assert [token - own.start for token in kept if own.start <= token < own.stop] == alone
