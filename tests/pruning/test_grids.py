"""uniform and downsample: exactly ``keep`` cells that tile the grid, for every budget of every shape."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit import pruning_cases as pc
from trtprune import pruning
from trtprune.errors import BudgetError, InputError
from trtprune.pruning import grids

GRIDS = [(24, 24), (1, 1), (1, 9), (9, 1), (2, 7), (7, 3), (13, 5), (5, 16), (16, 16), (3, 40)]


def cells(keep: int, rows: int, columns: int) -> list[list[tuple[int, int]]]:
    """The patches of each cell, from the rule as it is written, in exact fractions."""
    near = 1
    while Fraction(2 * near + 1, 2) ** 2 <= Fraction(keep * rows, columns):  # (r + 1/2)^2 <= K R / C: nearer to r + 1
        near += 1
    bands = max(1, min(near, rows, keep), -(-keep // columns))
    first = [i * keep // bands for i in range(bands + 1)]
    found: list[list[tuple[int, int]]] = [[] for _ in range(keep)]
    for y in range(rows):
        band = y * bands // rows
        for x in range(columns):
            found[first[band] + x * (first[band + 1] - first[band]) // columns].append((y, x))
    return found


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_cells_tile_the_grid(grid: tuple[int, int]) -> None:
    """No cell is empty, each is a rectangle, all patches are in one, and sizes differ by little."""
    rows, columns = grid
    for keep in range(1, rows * columns + 1):
        found = cells(keep, rows, columns)
        cell, middle = grids.cells(keep, grids.full_grid(rows, columns))
        got, kept = cell.tolist(), sorted(np.flatnonzero(middle), key=lambda token: cell[token])
        assert len(kept) == keep
        for number, patches in enumerate(found):
            assert patches, (keep, number)
            (top, left), (bottom, right) = patches[0], patches[-1]
            assert len(patches) == (bottom - top + 1) * (right - left + 1)
            assert all(top <= y <= bottom and left <= x <= right and got[y * columns + x] == number for y, x in patches)
            assert kept[number] == (top + bottom) // 2 * columns + (left + right) // 2
        assert sum(map(len, found)) == rows * columns == len(got)
        if keep == rows * columns:
            assert got == kept == list(range(keep))


def middles(keep: int, grid: tuple[int, int]) -> np.ndarray:
    """The patches in the middle of the cells, ascending."""
    return np.flatnonzero(grids.cells(keep, grids.full_grid(*grid))[1])


@pytest.mark.parametrize("grid", [(24, 24), (7, 3), (5, 16), (9, 1), (1, 9)], ids=str)
def test_graphs_at_every_budget(grid: tuple[int, int]) -> None:
    tokens = grid[0] * grid[1]
    case = pc.make(tokens, 1, tokens, 1, 1, "normal", grid)
    features = case["image_features"][0].astype(np.float64)
    uniform, downsample = (pc.session(name) for name in ("uniform", "downsample"))
    for keep in range(1, tokens + 1):
        case["keep"] = keep
        expected = middles(keep, grid)
        indices, rows = pc.run(uniform, case)
        np.testing.assert_array_equal(indices[0], expected)
        np.testing.assert_array_equal(rows[0], case["image_features"][0][expected])
        if tokens > 100 and keep % 7 and keep != tokens:
            continue
        indices, rows = pc.run(downsample, case)
        np.testing.assert_array_equal(indices[0], expected)
        patches = {y * grid[1] + x: cell for cell in cells(keep, *grid) for y, x in cell}
        wanted = [np.mean([features[y * grid[1] + x] for y, x in patches[i]], axis=0) for i in expected]
        np.testing.assert_allclose(rows[0], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(rows[0], case["image_features"][0])  # the last budget is all of them


def test_a_bad_row_spoils_no_other() -> None:
    features = np.arange(16, dtype=np.float32).reshape(1, 8, 2)
    features[0, 1], features[0, [3, 7]] = np.nan, np.inf
    given = {"image_features": features, "grid": (2, 4), "keep": 4}
    _, rows = pruning.get("downsample").pruned(**given)
    np.testing.assert_array_equal(rows[0], [[4, 5], [10, 11], [8, 9], [0, 0]])
    _, graph_rows = pc.run(pc.session("downsample", width=2), given)
    np.testing.assert_array_equal(graph_rows, rows)


# -- several crops ------------------------------------------------------------------------------------------------


@st.composite
def images(draw: st.DrawFn, limit: int = 40) -> np.ndarray:
    """The grid [N, 3] of an image of several crops: an overview, tiles that share a plane, and newline tokens."""
    across, down = draw(st.tuples(st.integers(0, 3), st.integers(1, 2)))
    side = draw(st.integers(1, 4))
    cut = draw(st.integers(0, side - 1))  # rows that unpadding takes off above and below
    newline = draw(st.booleans())
    rows = [(0, y, x) for y in range(side) for x in range(side)]
    for y in range(cut, down * side - cut) if across else ():
        rows += [(1 + y // side * across + x // side, y, x) for x in range(across * side)]
        rows += [(-1, -1, -1)] if newline else []
    return np.array(rows[:limit] if draw(st.booleans()) else rows, np.int64)


def crops_of(grid: np.ndarray) -> dict[int, list[int]]:
    """The tokens of each crop, in the order of their rows and columns."""
    found: dict[int, list[int]] = {}
    for token in sorted(range(len(grid)), key=lambda i: tuple(grid[i])):
        if grid[token][1] >= 0:
            found.setdefault(int(grid[token][0]), []).append(token)
    return found


@settings(max_examples=120, deadline=None)
@given(images(), st.data())
def test_cells_of_several_crops(grid: np.ndarray, data: st.DataObject) -> None:
    """Each crop is cut as it would be alone, into its share of the budget; the graphs agree."""
    crops = crops_of(grid)
    rectangles = {}
    for crop, tokens in crops.items():
        rows, columns = (1 + grid[tokens, i].max() - grid[tokens, i].min() for i in (1, 2))
        rectangles[crop] = (int(rows), int(columns))
    if any(rows * columns != len(crops[crop]) for crop, (rows, columns) in rectangles.items()):
        return  # cut off in the middle of a row
    total = sum(map(len, crops.values()))
    keep = data.draw(st.integers(1, total))
    cell, middle = grids.cells(keep, grid)
    before, number = 0, 0
    wanted, kept = np.full(len(grid), -1), []
    for crop, tokens in crops.items():
        count = (before + len(tokens)) * keep // total - before * keep // total
        before += len(tokens)
        for patches in cells(count, *rectangles[crop]) if count else []:
            own = [tokens[y * rectangles[crop][1] + x] for y, x in patches]
            wanted[own] = number
            (top, left), (bottom, right) = patches[0], patches[-1]
            kept.append(tokens[(top + bottom) // 2 * rectangles[crop][1] + (left + right) // 2])
            number += 1
    assert number == keep
    np.testing.assert_array_equal(cell, wanted)
    np.testing.assert_array_equal(np.flatnonzero(middle), sorted(kept))
    features = np.random.default_rng(keep).integers(-8, 8, (1, len(grid), pc.WIDTH)).astype(np.float32)
    case = {"image_features": features, "grid": grid[None], "keep": keep}
    for name in ("uniform", "downsample"):
        expected, rows = pruning.get(name).pruned(**case)
        np.testing.assert_array_equal(expected[0], sorted(kept))
        indices, got = pc.run(pc.session(name), case)
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_allclose(got, rows, rtol=1e-6, atol=1e-6)


def neighbours(grid: np.ndarray, anchor: int) -> set[int]:
    """Left, right, upper and lower neighbour by index in the anchor's crop, as the authors' code has them."""
    tokens = crops_of(grid)[int(grid[anchor][0])]
    columns = 1 + grid[tokens, 2].max() - grid[tokens, 2].min()
    place = tokens.index(anchor)
    return {tokens[min(max(place + step, 0), len(tokens) - 1)] for step in (-1, 1, -columns, columns)}


@settings(max_examples=120, deadline=None)
@given(images(), st.sampled_from([0.1, 0.5, 1.0]), st.data())
def test_hiprune_of_several_crops(grid: np.ndarray, alpha: float, data: st.DataObject) -> None:
    crops = crops_of(grid)
    for tokens in crops.values():
        rows, columns = (1 + grid[tokens, i].max() - grid[tokens, i].min() for i in (1, 2))
        if rows * columns != len(tokens):
            return
    real = [token for tokens in crops.values() for token in tokens]
    keep = data.draw(st.integers(1, len(real)))
    rng = np.random.default_rng(keep)
    shallow, deep = rng.permutation(len(grid)) / 64, rng.permutation(len(grid)) / 64
    anchors = sorted(real, key=lambda i: -shallow[i])[: round(keep * alpha / 5)]
    near = {token for anchor in anchors for token in neighbours(grid, anchor)} - {*anchors}
    order = [*sorted(anchors), *sorted(near), *sorted({*real} - near - {*anchors}, key=lambda i: -deep[i])]
    case = {
        "image_features": np.zeros((1, len(grid), pc.WIDTH), np.float32),
        "shallow_attention": shallow.astype(np.float32)[None],
        "deep_attention": deep.astype(np.float32)[None],
        "grid": grid[None],
        "keep": keep,
    }
    found = pruning.get("hiprune").reference(**case, alpha=alpha)
    assert found[0].tolist() == sorted(order[:keep])
    indices, _ = pc.run(pc.session("hiprune", (("alpha", alpha),)), case)
    np.testing.assert_array_equal(indices, found)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (np.zeros((5, 3)), "grid is float64"),
        (np.zeros((5, 2), np.int64), "grid has shape"),
        (np.zeros((4, 3), np.int64), "grid has shape"),
        (np.full((5, 3), -2), "between -1 and"),
        (np.full((5, 3), 64), "crops below 64"),
        ((2, 3), "2 rows and 3 columns"),
        ((0, 5), "0 rows"),
    ],
)
def test_grids_that_do_not_fit(grid: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        pruning.get("uniform").reference(np.ones((5, 2)), keep=2, grid=grid)


def test_a_budget_above_the_candidates() -> None:
    grid = np.array([[0, 0, 0], [0, 0, 1], [-1, -1, -1]])
    assert pruning.get("uniform").reference(np.ones((3, 2)), keep=2, grid=grid).tolist() == [0, 1]
    with pytest.raises(BudgetError, match="there are 2 visual tokens"):
        pruning.get("uniform").reference(np.ones((3, 2)), keep=3, grid=grid)
