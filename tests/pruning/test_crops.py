"""``crops=each``: the budget shared out to the crops of an image, beside the authors' code and as a graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit import multicrop
from tests.kit import pruning_cases as pc
from tests.pruning.test_grids import images
from trtprune import pruning
from trtprune.errors import BudgetError
from trtprune.pruning.crops import listed_by_crop

VECTORS = [(case, record) for case, record in multicrop.cases() if case.method in ("adafv", "fastervlm")]


def packed(case: multicrop.Case) -> dict[str, Any]:
    """The inputs of a case as a pruner has them, in the authors' layout, and the grid of its tokens."""
    arrays, ids = multicrop.inputs(case), multicrop.raster(case)
    crop, patch = np.divmod(ids, case.patches)
    row, column = np.divmod(patch, case.side)
    down, right = np.divmod(crop - 1, case.grid[1])
    tiles = crop > 0
    grid = np.stack([crop, row + tiles * down * case.side, column + tiles * right * case.side], axis=1)
    return {
        "image_features": arrays["image_features"].reshape(-1, case.width)[ids],
        "cls_attention": arrays["cls_attention"].reshape(-1)[ids],
        "text_embeds": arrays["text_embeds"],
        "grid": grid.astype(np.int64),
    }


def graph(method: str, inputs: dict[str, Any], keep: int, options: dict[str, Any]) -> list[int]:
    session = pc.session(method, tuple(options.items()), width=inputs["image_features"].shape[1])
    case = {name: array[None] for name, array in inputs.items()}
    case |= {"text_mask": np.ones((1, len(inputs["text_embeds"])), np.int64), "keep": keep}
    return pc.run(session, case)[0][0].tolist()


@pytest.mark.parametrize(
    ("case", "record"), VECTORS, ids=[f"{c.method}-{c.seed}-{c.kind}-{c.grid}" for c, _ in VECTORS]
)
def test_the_authors_selection(case: multicrop.Case, record: dict[str, Any]) -> None:
    inputs, method = packed(case), pruning.get(case.method)
    for run in record["runs"]:
        if case.method == "fastervlm":
            wanted = {"joint": None, "each": run["kept"]}
            keep = run["each"] * case.crops
            results = [({"crops": "each"}, wanted["each"])]
        else:
            keep = 2 * (run["overall"] // 2 // case.crops) * case.crops
            results = [({"crops": "each", "mode": mode}, run[mode]) for mode in ("official", "mended")]
        for options, positions in results:
            found = method.reference(keep=keep, **inputs, **options)
            assert found.tolist() == positions, (run, options)
            assert graph(case.method, inputs, keep, options) == positions, (run, options)


@settings(max_examples=80, deadline=None)
@given(images(), st.sampled_from(["fastervlm", "adafv distinct", "adafv official", "adafv mended"]), st.data())
def test_graph_is_reference(grid: np.ndarray, form: str, data: st.DataObject) -> None:
    name, _, mode = form.partition(" ")
    options = {"crops": "each", **({"mode": mode} if mode else {})}
    real = np.flatnonzero(grid[:, 1] >= 0)
    keep = data.draw(st.integers(1, len(real)))
    case = pc.make(data.draw(st.integers(0, 9999)), 1, len(grid), 3, keep, "integer")
    inputs = {key: case[key][0] for key in ("image_features", "cls_attention", "text_embeds")} | {"grid": grid}
    inputs["text_embeds"] = inputs["text_embeds"][case["text_mask"][0] > 0]
    found = pruning.get(name).reference(keep=keep, **inputs, **options)
    assert graph(name, inputs, keep, options) == found.tolist()
    assert len(found) == keep
    if mode in ("", "distinct"):
        assert len({*found.tolist()}) == keep
        assert {*found.tolist()} <= {*real.tolist()}
    if mode == "":
        crops = Counter(grid[real, 0].tolist())
        got = Counter(grid[found, 0].tolist())
        share, more = divmod(keep, len(crops))
        for place, crop in enumerate(sorted(crops)):
            quota = share + (place < more)
            assert got[crop] >= min(quota, crops[crop])
            if all(size >= share + 1 for size in crops.values()):
                assert got[crop] == quota


def test_one_crop_is_as_joint() -> None:
    for number in range(20):
        case = pc.make(number, 2, 20, 4, 1 + number, "integer", (4, 5))
        for name, mode in (("fastervlm", {}), ("adafv", {"mode": "distinct"}), ("adafv", {"mode": "official"})):
            method = pruning.get(name)
            joint = method.reference(**pc.arguments(case), **mode)
            each = method.reference(**pc.arguments(case), **mode, crops="each")
            np.testing.assert_array_equal(each, joint)


def test_the_order_of_a_shared_budget() -> None:
    grid = np.array([[0, 0, 0], [0, 0, 1], [-1, -1, -1], [2, 0, 0], [2, 0, 1], [2, 0, 2]])
    order, count = listed_by_crop(np.array([1, 2, 9, 3, 5, 4], np.float32), grid, 3)
    assert order.tolist() == [1, 0, 4, 5, 3, 2]
    assert count == 3
    order, count = listed_by_crop(np.array([1, 2, 9, 3, 5, 4], np.float32), grid, 5)
    assert order.tolist() == [1, 0, 4, 5, 3, 2]
    assert count == 4  # the first crop has two tokens only


def test_each_needs_the_grid() -> None:
    method = pruning.get("adafv")
    assert "grid" in method.needs_of(method.validate_options({"crops": "each"}))
    assert "grid" not in method.needs_of(method.validate_options({}))
    with pytest.raises(BudgetError, match="crops"):
        method.validate_options({"crops": "some"})


@pytest.mark.parametrize(
    ("method", "options"),
    [("fastervlm", {}), ("adafv", {"mode": "distinct"}), ("adafv", {"mode": "official"})],
    ids=["fastervlm", "distinct", "official"],
)
def test_builds_in_tensorrt_rtx(method: str, options: dict[str, Any]) -> None:
    """N at run time, up to LLaVA-NeXT's largest image."""
    rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    from trtprune.graph import Lowering
    from trtprune.pruning.graph import build_pruner

    lowering = Lowering.for_backend("tensorrt-rtx")
    built = build_pruner(method, 64, "float16", lowering, {**options, "crops": "each"}, most_crops=5)
    network = rtx.Network(built.to_bytes(), None)
    assert network.build(values={"keep": (1, 160, 640)}) > 0
