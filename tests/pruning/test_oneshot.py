"""visionzip, hiprune, vispruner, trim and hawk: graph = reference = the formula in float64."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings

from tests.kit import pruning_cases as pc
from trtprune import pruning
from trtprune.errors import InputError
from trtprune.graph import Lowering
from trtprune.pruning.graph import build_pruner

QUICK = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("uniform", {}),
    ("downsample", {}),
    ("visionzip", {}),
    ("visionzip", {"cls_token": "drop", "merge": "mean", "contextual": 0.5}),
    ("visionzip", {"contextual": 1.0}),
    ("hiprune", {}),
    ("hiprune", {"alpha": 0.7, "object_layer": 3}),
    ("vispruner", {}),
    ("vispruner", {"important": 0.0}),
    ("vispruner", {"important": 1.0}),
    ("trim", {}),
    ("trim", {"similarity": "dot"}),
    ("hawk", {}),
]
EXACT_KINDS = {"integer", "few rows", "constant", "holes"}


def _id(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items()) or "default"


def pruned(method: str, case: dict[str, Any], options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Indices and rows of the reference."""
    return pruning.get(method).pruned(**pc.arguments(case), **options)


@pytest.mark.parametrize(("method", "options"), CHOICES, ids=_id)
def test_graph_is_reference(method: str, options: dict[str, Any]) -> None:
    """The same indices, and the same rows: exactly where they are rows of the image, closely where they are means."""
    count: Counter[str] = Counter()
    merges = pruning.get(method).merges
    counted = build_pruner(method, pc.WIDTH, lowering=Lowering(loop_order="count"), options=options)
    other = pc.open_graph(counted) if method == "vispruner" else None

    @settings(max_examples=130, **QUICK)
    @given(pc.cases(max_tokens=30))
    @example(pc.make(0, 1, 1, 1, 1, "integer"))
    @example(pc.make(1, 2, 2, 3, 1, "holes"))
    def check(case: dict[str, Any]) -> None:
        indices, rows = pc.run(pc.session(method, tuple(options.items())), case)
        expected, expected_rows = pruned(method, case, options)
        assert indices.shape == expected.shape == (len(case["image_features"]), case["keep"])
        assert indices.dtype == expected.dtype == np.int64
        assert (np.diff(indices, axis=1) > 0).all()
        if other is not None:
            np.testing.assert_array_equal(pc.run(other, case)[0], indices)
        assert indices[:, 0].min() >= (-1 if method == "visionzip" and options.get("cls_token") != "drop" else 0)
        assert indices.max() < case["image_features"].shape[1]
        np.testing.assert_array_equal(pruning.get(method).reference(**pc.arguments(case), **options), expected)
        for number in range(len(indices)):
            count["rows"] += 1
            if case["kind"] in EXACT_KINDS:
                np.testing.assert_array_equal(indices[number], expected[number])
            if (indices[number] != expected[number]).any():
                count["rounding"] += 1
            elif merges:
                np.testing.assert_allclose(rows[number], expected_rows[number], rtol=1e-5, atol=1e-5)
            else:
                np.testing.assert_array_equal(rows[number], case["image_features"][number][indices[number]])

    check()
    assert count["rows"] > 150
    assert count["rounding"] <= count["rows"] // 100, count


def float64(case: dict[str, Any], *names: str) -> list[np.ndarray]:
    return [case[name][0].astype(np.float64) for name in names]


def unit(x: np.ndarray) -> np.ndarray:
    return torch.nn.functional.normalize(torch.from_numpy(x), dim=-1).numpy()


def best(scores: np.ndarray, count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:count]


def hiprune(case: dict[str, Any], alpha: float = 0.1) -> tuple[list[int], None]:
    shallow, deep = float64(case, "shallow_attention", "deep_attention")
    tokens, columns = len(shallow), case["grid"][1]
    anchors = best(shallow, round(case["keep"] * alpha / 5))
    chosen = {*anchors}
    for anchor in anchors:
        chosen |= {min(max(anchor + step, 0), tokens - 1) for step in (-1, 1, -columns, columns)}
    deep[sorted(chosen)] += 1e6
    return sorted(best(deep, case["keep"])), None


def vispruner(case: dict[str, Any], important: float = 0.5) -> tuple[list[int], None]:
    attention, features = float64(case, "cls_attention", "vision_features")
    count = int(important * case["keep"])
    order = best(attention, len(attention))
    kept, residual, wanted = order[:count], order[count:], case["keep"] - count
    cosine = unit(features) @ unit(features).T
    while wanted and len(residual) > wanted:
        even, odd = residual[0::2], residual[1::2]
        even.sort(key=lambda i: -max(cosine[i, j] for j in odd))  # stable: positions decide between equals
        residual = even[min(8, len(residual) - wanted, len(even)) :] + odd
    return sorted(kept + residual[:wanted]), None


def trim(case: dict[str, Any], similarity: str = "cosine") -> tuple[list[int], np.ndarray]:
    features, image, text = float64(case, "image_features", "clip_image_embeds", "clip_text_embeds")
    likeness = unit(image) @ unit(text).T if similarity == "cosine" else image @ text.T
    chance = torch.softmax(torch.from_numpy(-likeness.sum(axis=1)), dim=0).numpy()
    kept = best(chance, case["keep"])
    if case["keep"] == len(features):
        return sorted(kept), features
    others = [j for j in range(len(features)) if j not in kept[:-1]]
    return sorted(kept), np.concatenate([features[sorted(kept[:-1])], features[others].mean(axis=0)[None]])


def visionzip(case: dict[str, Any], cls_token: str = "keep", merge: str = "sum") -> tuple[list[int], np.ndarray]:
    features, attention, keys, cls = float64(case, "image_features", "cls_attention", "vision_keys", "cls_feature")
    merged = int(case["keep"] * 10 / 64 + 0.5)
    dominant = sorted(best(attention, case["keep"] - merged - (cls_token == "keep")))
    rest = [j for j in range(len(features)) if j not in dominant]
    rows = [cls] * (cls_token == "keep") + [features[j] for j in dominant]
    step = max(1, len(rest) // merged) if merged else 1
    targets = rest[::step][:merged]
    groups: dict[int, list[np.ndarray]] = {t: [] for t in targets}
    for j in rest if merged else []:
        if j not in groups:
            likeness = torch.cosine_similarity(torch.from_numpy(keys[targets]), torch.from_numpy(keys[j])[None])
            groups[targets[int(likeness.argmax())]].append(features[j])
    for t in targets:
        mean = np.mean(groups[t], axis=0) if groups[t] else np.zeros_like(cls)
        rows.append(features[t] + mean if merge == "sum" else np.mean([features[t], *groups[t]], axis=0))
    return [-1] * (cls_token == "keep") + sorted(dominant + targets), np.array(rows)


def hawk(case: dict[str, Any]) -> tuple[list[int], None]:
    """Head by head and token by token."""
    query, keys = float64(case, "text_query", "image_keys")
    score = np.zeros(keys.shape[1])
    for head, asking in enumerate(query):
        match = np.array([asking @ key / math.sqrt(len(asking)) for key in keys[head // (len(query) // len(keys))]])
        score += match / np.linalg.norm(match) / len(query)
    return sorted(best(score, case["keep"])), None


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("hawk", {}),
        ("visionzip", {}),
        ("visionzip", {"cls_token": "drop", "merge": "mean"}),
        ("hiprune", {}),
        ("hiprune", {"alpha": 0.4}),
        ("vispruner", {}),
        ("vispruner", {"important": 0.25}),
        ("trim", {}),
        ("trim", {"similarity": "dot"}),
    ],
    ids=_id,
)
def test_reference_is_the_formula(method: str, options: dict[str, Any]) -> None:
    """Random features, where rounding decides nothing: indices as computed in float64, rows within rounding."""
    rng = np.random.default_rng(7)
    oracle = {"hiprune": hiprune, "vispruner": vispruner, "trim": trim, "visionzip": visionzip,
              "hawk": hawk}[method]  # fmt: skip
    for number in range(60):
        tokens = 1 + number if number < 40 else 64
        keep = tokens if number % 10 == 0 else int(rng.integers(1, tokens + 1))
        grids = pc.grids(tokens)
        case = pc.make(number, 1, tokens, 2, keep, "normal", grids[number % len(grids)])
        wanted, rows = oracle(case, **options)
        if method == "hiprune" and keep < 5 * round(keep * options.get("alpha", 0.1) / 5):
            continue  # more anchors and neighbours than the budget: the sources say nothing
        got, got_rows = pruned(method, case, options)
        assert got[0].tolist() == wanted, (tokens, keep)
        if rows is not None:
            np.testing.assert_allclose(got_rows[0], rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("keep", "contextual"), [(64, 10), (128, 20), (192, 30), (1, 0), (3, 0), (4, 1), (16, 3), (32, 5)]
)
def test_visionzip_splits(keep: int, contextual: int) -> None:
    """The published splits, and what this makes of other budgets; told apart by features that say which row is what."""
    rng = np.random.default_rng(keep)
    features = np.repeat(np.arange(1, 577, dtype=np.float32)[:, None], 2, axis=1) * [1, 0]
    given = {"cls_attention": rng.random(576), "vision_keys": rng.standard_normal((576, 4))}
    method = pruning.get("visionzip")
    indices, rows = method.pruned(features, keep=keep, cls_feature=np.array([0.0, 1.0]), **given)
    assert indices[0] == -1
    assert rows[0].tolist() == [0, 1]
    plain = rows[1:, 0] == np.floor(rows[1:, 0])
    by_attention = np.argsort(-given["cls_attention"])[: keep - contextual - 1]
    np.testing.assert_array_equal(rows[1 : keep - contextual, 0], np.sort(by_attention) + 1)
    assert plain[: keep - contextual - 1].all()
    assert set(by_attention) <= set(indices.tolist())
    # Nothing is lost and nothing twice: every patch is dominant or in one sum.
    loose, _ = method.pruned(features, keep=keep, cls_feature=np.zeros(2), cls_token="drop", **given)
    assert len(loose) == keep
    assert loose[0] >= 0


def test_hiprune_by_hand() -> None:
    """Four rows of five; one anchor has four neighbours, and a corner has clamped ones."""
    method = pruning.get("hiprune")
    deep = np.linspace(1, 0, 20)

    def select(anchor: int, keep: int, alpha: float) -> list[int]:
        shallow = np.zeros(20)
        shallow[anchor] = 1
        given = {"shallow_attention": shallow, "deep_attention": deep, "grid": (4, 5)}
        return method.reference(np.zeros((20, 2)), keep=keep, alpha=alpha, **given).tolist()

    assert select(12, 6, 0.9) == [0, 7, 11, 12, 13, 17]
    assert select(19, 5, 1.0) == [0, 1, 14, 18, 19]
    assert select(14, 5, 1.0) == [9, 13, 14, 15, 19]  # by index: the patch after a row's last is the next row's first
    assert select(12, 5, 0.0) == [0, 1, 2, 3, 4]
    assert select(12, 1, 1.0) == [0]
    assert method.tower_layer() == 9
    assert method.tower_layer({"object_layer": "4"}) == 4


def test_vispruner_drops_copies() -> None:
    """Two of a kind lie at an even and an odd place: of each pair the even one goes, until the budget is met."""
    rng = np.random.default_rng(0)
    distinct = rng.standard_normal((12, 16))
    features = np.repeat(distinct, 2, axis=0)
    given = {"cls_attention": -np.arange(24.0), "vision_features": features}
    got = pruning.get("vispruner").reference(np.zeros((24, 2)), keep=16, important=0.0, **given)
    kept = {j // 2 for j in got.tolist()}
    assert kept == set(range(12))


def test_trim_keeps_all_or_merges() -> None:
    features = np.array([[1.0, 0], [2, 0], [4, 0], [np.inf, 0]], np.float32)
    image, text = np.array([[3.0], [2], [1], [0]]), np.array([[1.0]])
    given = {"clip_image_embeds": image, "clip_text_embeds": text, "similarity": "dot"}
    method = pruning.get("trim")
    indices, rows = method.pruned(features[:3], keep=3, **given | {"clip_image_embeds": image[:3]})
    assert indices.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(rows, features[:3])
    indices, rows = method.pruned(features, keep=2, **given)
    assert indices.tolist() == [2, 3]
    np.testing.assert_allclose(rows[1], [7 / 3, 0], rtol=1e-6)  # the infinite row is first by score, not in the mean
    assert np.isinf(rows[0, 0])
    indices, rows = method.pruned(features, keep=1, **given)
    assert indices.tolist() == [3]
    np.testing.assert_allclose(rows, [[7 / 3, 0]], rtol=1e-6)


@pytest.mark.parametrize("method", ["uniform", "downsample", "visionzip", "hiprune", "vispruner", "trim"])
def test_half_precision_and_products(method: str) -> None:
    """float16 features are only rounded on their way in and out; products written out give the same rows."""
    plain = Lowering(products="primitives")
    for number in range(6):
        case = pc.make(number, 2, 24, 2, 1 + 4 * number, "integer")
        case |= {n: (case[n] / 3).astype(np.float16) for n in ("image_features", "vision_features", "cls_feature")}
        graph = build_pruner(method, pc.WIDTH, "float16", plain)
        expected, rows = pruned(method, case, {})
        for pruner in (pc.open_graph(graph), pc.session(method, dtype="float16")):
            indices, got = pc.run(pruner, case)
            assert got.dtype == np.float16
            np.testing.assert_array_equal(indices, expected)
            np.testing.assert_allclose(got.astype(np.float32), rows.astype(np.float32), rtol=1e-3, atol=1e-3)


def test_a_missing_grid_or_input_is_named() -> None:
    with pytest.raises(InputError, match="uniform needs grid"):
        pruning.get("uniform").reference(np.ones((6, 2)), keep=2)
    with pytest.raises(InputError, match="grid has 2 rows and 4 columns; there are 6 visual tokens"):
        pruning.get("uniform").reference(np.ones((6, 2)), keep=2, grid=(2, 4))
    with pytest.raises(InputError, match="vispruner needs vision_features"):
        pruning.get("vispruner").reference(np.ones((6, 2)), keep=2, cls_attention=np.ones(6))
    with pytest.raises(InputError, match="visionzip needs vision_keys"):
        pruning.get("visionzip").reference(np.ones((6, 2)), keep=2, cls_attention=np.ones(6), cls_feature=np.ones(2))


RTX = [
    ("downsample", {}, "op"),
    ("uniform", {}, "op"),
    ("hiprune", {"alpha": 1.0}, "op"),
    ("vispruner", {}, "op"),
    ("vispruner", {}, "primitives"),
    ("visionzip", {}, "op"),
    ("visionzip", {"cls_token": "drop", "merge": "mean"}, "primitives"),
    ("trim", {"similarity": "dot"}, "primitives"),
    ("trim", {}, "op"),
]


@pytest.mark.parametrize(("method", "options", "products"), RTX, ids=_id)
def test_builds_in_tensorrt_rtx(method: str, options: dict[str, Any], products: str) -> None:
    """In float32, for every budget; float16 and a run-time N are built with all other methods."""
    rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    lowering = Lowering(products="op" if products == "op" else "primitives")
    graph = build_pruner(method, 64, "float32", lowering, options, num_tokens=576)
    network = rtx.Network(graph.to_bytes(), None)
    assert "keep" in network.shape_inputs()
    assert network.build(values={"keep": (1, 64, 576)}, targets=("sm89" if products == "op" else "sm75",)) > 0
