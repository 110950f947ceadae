"""A list that is put in order in pieces has the order that one TopK gives it, ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit import pruning_cases as pc
from trtprune import pruning
from trtprune.graph import Graph, Lowering
from trtprune.graph.lowering import Pieces
from trtprune.graph.ops import topk_gather
from trtprune.graph.topk import top
from trtprune.pruning.graph import build_pruner

SMALL: dict[str, Any] = {"deadline": None, "derandomize": True, "database": None}


def ordered(values: np.ndarray, count: int, largest: bool, pieces: Pieces | None) -> list[np.ndarray]:
    g = Graph("order", pieces=pieces)
    kind = "int64" if values.dtype == np.int64 else "float32"
    x = g.input("x", kind, [f"d{i}" for i in range(values.ndim)])
    keep = g.input("keep", "int64", [1])
    found, places = top(g, g.op, x, keep, largest=largest, dtype=np.int64 if kind == "int64" else np.float32)
    shape = [*(f"d{i}" for i in range(values.ndim - 1)), "keep"]
    g.output(found, "found", kind, shape)
    g.output(places, "places", "int64", shape)
    return pc.open_graph(g).run(None, {"x": values, "keep": np.array([count])})


@settings(max_examples=150, **SMALL)
@given(st.data())
def test_pieces_give_the_order_of_one(data: st.DataObject) -> None:
    """NumPy's stable order is the oracle; many entries are equal, and some infinite."""
    size = data.draw(st.integers(1, 40))
    count = data.draw(st.one_of(st.just(size), st.integers(1, size)))
    entries = data.draw(st.integers(1, 12))
    largest, whole = data.draw(st.booleans()), data.draw(st.booleans())
    shape = (2, size) if data.draw(st.booleans()) else (2, 3, size)
    rng = np.random.default_rng(data.draw(st.integers(0, 9999)))
    values = rng.integers(-4, 5, shape) if whole else rng.choice([-np.inf, -2.5, -0.5, 0.5, 1.5, 3e38, np.inf], shape)
    values = values.astype(np.int64 if whole else np.float32)
    order = np.argsort(-values if largest else values, axis=-1, kind="stable")[..., :count]
    pieces = Pieces.of(size, entries)
    assert (pieces is None) == (size <= entries)
    _, places = ordered(values, count, largest, pieces)
    np.testing.assert_array_equal(places, order)


@pytest.mark.parametrize("count", [1, 3840, 3841, 8000, 8765])
def test_as_long_as_an_image_gets(count: int) -> None:
    rng = np.random.default_rng(count)
    values = rng.integers(0, 2000, (1, 8765)).astype(np.float32)
    found, places = ordered(values, count, True, Pieces.of(8765, 3840))
    order = np.argsort(-values, axis=-1, kind="stable")[:, :count]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(found, np.take_along_axis(values, order, axis=1))


@settings(max_examples=40, **SMALL)
@given(st.data())
def test_rows_of_a_selection(data: st.DataObject) -> None:
    """Scores that are not numbers come last, and no row twice."""
    size = data.draw(st.integers(8, 40))
    keep = data.draw(st.integers(1, size))
    rng = np.random.default_rng(data.draw(st.integers(0, 9999)))
    scores = rng.choice([np.nan, -np.inf, np.inf, 0.0, -0.0, 1.0, 2.0], (2, size)).astype(np.float32)
    features = rng.standard_normal((2, size, 3)).astype(np.float32)
    results = []
    for pieces in (None, Pieces.of(size, 5)):
        g = Graph("rows", pieces=pieces)
        inputs = g.input("scores", "float32", ["b", "n"]), g.input("features", "float32", ["b", "n", 3])
        rows, indices = topk_gather(g, *inputs, g.input("keep", "int64", [1]))
        g.output(rows, "rows", "float32", ["b", "keep", 3])
        g.output(indices, "indices", "int64", ["b", "keep"])
        feed = {"scores": scores, "features": features, "keep": np.array([keep])}
        results.append(pc.open_graph(g).run(None, feed))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    expected = np.sort(np.argsort(-ranked, axis=1, kind="stable")[:, :keep])
    np.testing.assert_array_equal(results[1][1], expected)


CASES = [
    (name, options)
    for name in pruning.names(inside=False)
    for options in ({}, {"crops": "each"})
    if name != "none" and not options.keys() - {option.name for option in pruning.get(name).options}
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_methods_choose_as_with_one(name: str, options: dict[str, Any]) -> None:
    """Any method, budgets below and above what one piece returns, ties and duplicates among the tokens."""
    method = pruning.get(name)
    lowering = Lowering(loop_order="count")
    graphs = [
        pc.open_graph(build_pruner(name, pc.WIDTH, lowering=lowering, options=options, pieces=pieces, most_crops=1))
        for pieces in (None, Pieces(4, 16))
    ]
    for number, kind in enumerate(("normal", "integer", "few rows", "constant", "holes")):
        for keep in (3, 16, 17, 50, 56):
            case = pc.make(number, 2, 56, 4, keep, kind, (7, 8))
            for by_crop in method.of_each_crop(method.validate_options(options)):
                case[by_crop] = case[by_crop][:, None]
            one, other = (pc.run(graph, case) for graph in graphs)
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("name", ["fastervlm", "dart", "visionzip", "vispruner"])
def test_builds_in_tensorrt_rtx(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For LLaVA-OneVision's largest images and every budget of them."""
    rtx = pytest.importorskip("tests.kit.rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    monkeypatch.setitem(rtx.DIMS, "visual_tokens", (1, 7269, 8765))
    lowering = Lowering.for_backend("tensorrt-rtx")
    built = build_pruner(name, 64, "float16", lowering, pieces=Pieces.of(8765, 3840))
    assert rtx.Network(built.to_bytes(), None).build(values={"keep": (1, 640, 8765)}) > 0
