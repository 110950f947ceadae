"""``crops=each`` of visionzip: beside the authors' code, the rule retold, and as a graph; a CLS row for each crop."""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit import crop_rules, multicrop
from tests.kit import pruning_cases as pc
from tests.pruning.test_crops_apart import FORMS, SMALL
from tests.pruning.test_grids import images
from trtprune import pruning
from trtprune.graph import Lowering
from trtprune.pruning.graph import build_pruner

METHOD = pruning.get("visionzip")
VECTORS = [(case, record) for case, record in multicrop.cases() if case.method == "visionzip"]
NEEDED = ("cls_attention", "vision_keys", "cls_feature", "grid")


def packed(case: multicrop.Case, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The arrays of a case as a pruner has them, in the authors' layout, and a CLS token for each crop."""
    ids = multicrop.raster(case)
    crop, patch = np.divmod(ids, case.patches)
    row, column = np.divmod(patch, case.side)
    down, right = np.divmod(crop - 1, case.grid[1])
    tiles = crop > 0
    grid = np.stack([crop, row + tiles * down * case.side, column + tiles * right * case.side], axis=1)
    rng = np.random.default_rng(case.seed)
    features = rng.standard_normal((case.crops * case.patches, 6)).astype(np.float32)
    return {
        "image_features": features[ids],
        "cls_attention": arrays["cls_attention"].reshape(-1)[ids],
        "vision_keys": arrays["vision_keys"].reshape(-1, arrays["vision_keys"].shape[-1])[ids],
        "cls_feature": rng.standard_normal((case.crops, 6)).astype(np.float32),
        "grid": grid.astype(np.int64),
    }


def options_of(**options: Any) -> dict[str, Any]:
    return METHOD.validate_options({"crops": "each", **options})


@functools.cache
def session(form: str, width: int, options: tuple[tuple[str, Any], ...]) -> onnxruntime.InferenceSession:
    return pc.open_graph(build_pruner("visionzip", width, lowering=FORMS[form], options=dict(options), most_crops=8))


def graph(inputs: dict[str, Any], keep: int, options: dict[str, Any], form: str) -> tuple[np.ndarray, np.ndarray]:
    case = {name: array[None] for name, array in inputs.items()} | {"keep": keep}
    indices, rows = pc.run(session(form, inputs["image_features"].shape[1], tuple(options.items())), case)
    return indices[0], rows[0]


def expected_rows(inputs: dict[str, Any], kept: list[int], into: list[int], merged: set[int]) -> np.ndarray:
    """CLS tokens by crop, dominant patches, targets with the mean of what goes to each; float64."""
    features, cls = inputs["image_features"].astype(np.float64), inputs["cls_feature"].astype(np.float64)
    rows = [cls[len(cls) + index] for index in kept if index < 0]
    rows += [features[index] for index in kept if index >= 0 and index not in merged]
    for target in (index for index in kept if index in merged):
        others = [j for j, row in enumerate(into) if row == target != j]
        rows.append(features[target] + (features[others].mean(axis=0) if others else 0))
    return np.array(rows)


@pytest.mark.parametrize(("case", "record"), VECTORS, ids=[f"{c.seed}-{c.kind}-{c.grid}" for c, _ in VECTORS])
def test_the_authors_selection(case: multicrop.Case, record: dict[str, Any]) -> None:
    """The same patches, CLS rows and merges; the authors' rows are in another order."""
    inputs = packed(case, multicrop.inputs(case))
    for run in record["runs"]:
        share = run["dominant"] + run["contextual"]
        options = options_of(contextual=float(Fraction(run["contextual"], share)))
        keep = share * case.crops
        kept = [*range(-case.crops, 0), *sorted(row for row in run["rows"] if row >= 0)]
        assert sum(row < 0 for row in run["rows"]) == case.crops
        merged = {run["rows"][place] for place in run["merged"]}
        indices, rows = METHOD.pruned(keep=keep, **inputs, **options)
        assert indices.tolist() == kept
        assert METHOD.merged_into(keep=keep, **inputs, **options).tolist() == run["into"]
        np.testing.assert_allclose(rows, expected_rows(inputs, kept, run["into"], merged), rtol=0, atol=1e-5)
        for form in FORMS:
            found, found_rows = graph(inputs, keep, options, form)
            assert found.tolist() == kept
            np.testing.assert_allclose(found_rows, rows, rtol=0, atol=1e-5)


@settings(max_examples=60, **SMALL)
@given(data=st.data())
def test_the_rule_retold(data: st.DataObject) -> None:
    """Ties of attention go to the first patch, those of keys to the first target; any split of the budget."""
    side = data.draw(st.sampled_from([3, 4, 6]))
    tiles = data.draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]))
    case = multicrop.Case("visionzip", data.draw(st.integers(0, 9999)), side, tiles, "ties")
    contextual = data.draw(st.integers(1, side * side // 2))
    dominant = data.draw(st.integers(1, side * side - contextual))
    inputs = packed(case, multicrop.inputs(case))
    wanted = crop_rules.visionzip(case, multicrop.inputs(case), dominant, contextual)
    options = options_of(contextual=float(Fraction(contextual, dominant + contextual)))
    keep = (dominant + contextual) * case.crops
    kept = [*range(-case.crops, 0), *sorted(row for row in wanted["rows"] if row >= 0)]
    indices, rows = METHOD.pruned(keep=keep, **inputs, **options)
    assert indices.tolist() == kept
    assert METHOD.merged_into(keep=keep, **inputs, **options).tolist() == wanted["into"]
    merged = {wanted["rows"][place] for place in wanted["merged"]}
    np.testing.assert_allclose(rows, expected_rows(inputs, kept, wanted["into"], merged), rtol=0, atol=1e-5)
    for form in FORMS:
        found, found_rows = graph(inputs, keep, options, form)
        assert found.tolist() == kept
        np.testing.assert_allclose(found_rows, rows, rtol=0, atol=1e-5)


@settings(max_examples=120, **SMALL)
@given(grid=images(), data=st.data())
def test_every_budget_of_every_image(grid: np.ndarray, data: st.DataObject) -> None:
    """Graph as reference, exactly ``keep`` rows; crops of any size, newline tokens, whatever is not finite."""
    cls_token = data.draw(st.sampled_from(["keep", "drop"]))
    real = np.flatnonzero(grid[:, 1] >= 0)
    crops = sorted({*grid[real, 0].tolist()})
    keep = data.draw(st.one_of(st.just(len(real)), st.integers(1, len(real))))
    kind = data.draw(st.sampled_from(["normal", "integer", "holes", "few rows", "constant"]))
    share = data.draw(st.sampled_from([0, 0.15625, 0.5, 1]))
    options = options_of(
        cls_token=cls_token, contextual=share, merge=data.draw(st.sampled_from(["sum", "mean"])),
        received=data.draw(st.sampled_from(["cls", "mean"])),
    )  # fmt: skip
    case = pc.make(data.draw(st.integers(0, 9999)), 1, len(grid), 3, keep, kind)
    names = METHOD.needs_of(options) - {"cls_feature", "grid"}
    inputs = {name: case[name][0] for name in ("image_features", *names)} | {"grid": grid}
    if cls_token == "keep":
        total = int(grid[:, 0].max()) + 1
        inputs["cls_feature"] = np.random.default_rng(keep).standard_normal((total, pc.WIDTH)).astype(np.float32)
    indices, rows = METHOD.pruned(keep=keep, **inputs, **options)
    assert len(indices) == len(rows) == keep
    assert (np.diff(indices) > 0).all()
    patches = indices[indices >= 0]
    assert {*patches.tolist()} <= {*real.tolist()}
    given_cls = [int(index) + total for index in indices if index < 0]
    assert given_cls == (crops[:keep] if cls_token == "keep" else [])
    into = METHOD.merged_into(keep=keep, **inputs, **options)
    goes = np.flatnonzero(into >= 0)
    assert {*into[goes].tolist()} == {*patches.tolist()}
    assert (grid[goes, 0] == grid[into[goes], 0]).all()
    sizes = {crop: int((grid[real, 0] == crop).sum()) for crop in crops}
    each, more = divmod(keep, len(crops))
    for place, crop in enumerate(crops):
        rows_of = int((grid[patches, 0] == crop).sum()) + (crop in given_cls)
        quota = each + (place < more)
        assert rows_of >= min(quota, sizes[crop] + (cls_token == "keep"))
    for form in FORMS:
        found, found_rows = graph(inputs, keep, options, form)
        np.testing.assert_array_equal(found, indices)
        np.testing.assert_allclose(found_rows, rows, rtol=0, atol=1e-5)


def test_one_crop_is_as_joint() -> None:
    for number in range(10):
        case = pc.arguments(pc.make(number, 2, 20, 4, 1 + 2 * number, "normal", (4, 5)))
        joint = METHOD.pruned(**case)
        each = METHOD.pruned(**{**case, "cls_feature": case["cls_feature"][:, None]}, crops="each")
        for one, other in zip(each, joint, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cls_token", ["keep", "drop"])
def test_builds_in_tensorrt_rtx(cls_token: str) -> None:
    """N and the number of crops at run time, up to LLaVA-NeXT's largest image."""
    rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    lowering = Lowering.for_backend("tensorrt-rtx")
    options = {"crops": "each", "cls_token": cls_token}
    built = build_pruner("visionzip", 64, "float16", lowering, options, most_crops=5)
    assert rtx.Network(built.to_bytes(), None).build(values={"keep": (1, 160, 640)}) > 0
