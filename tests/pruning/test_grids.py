"""uniform and downsample: exactly ``keep`` cells that tile the grid, for every budget of every shape."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.kit import pruning_cases as pc
from trtprune import pruning
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
        got, kept = grids.cells(keep, grid).tolist(), grids.middles(keep, grid).tolist()
        assert len(kept) == keep
        for number, cell in enumerate(found):
            assert cell, (keep, number)
            (top, left), (bottom, right) = cell[0], cell[-1]
            assert len(cell) == (bottom - top + 1) * (right - left + 1)
            assert all(top <= y <= bottom and left <= x <= right and got[y * columns + x] == number for y, x in cell)
            assert kept[number] == (top + bottom) // 2 * columns + (left + right) // 2
        assert sum(map(len, found)) == rows * columns == len(got)
        if keep == rows * columns:
            assert got == kept == list(range(keep))


@pytest.mark.parametrize("grid", [(24, 24), (7, 3), (5, 16), (9, 1), (1, 9)], ids=str)
def test_graphs_at_every_budget(grid: tuple[int, int]) -> None:
    tokens = grid[0] * grid[1]
    case = pc.make(tokens, 1, tokens, 1, 1, "normal", grid)
    features = case["image_features"][0].astype(np.float64)
    uniform, downsample = (pc.session_for(case, name) for name in ("uniform", "downsample"))
    for keep in range(1, tokens + 1):
        case["keep"] = keep
        expected = grids.middles(keep, grid)
        indices, rows = pc.run(uniform, case)
        np.testing.assert_array_equal(indices[0], expected)
        np.testing.assert_array_equal(rows[0], case["image_features"][0][expected])
        if tokens > 100 and keep % 7 and keep != tokens:
            continue
        indices, rows = pc.run(downsample, case)
        np.testing.assert_array_equal(indices[0], expected)
        wanted = [np.mean([features[y * grid[1] + x] for y, x in cell], axis=0) for cell in cells(keep, *grid)]
        np.testing.assert_allclose(rows[0], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(rows[0], case["image_features"][0])  # the last budget is all of them


def test_a_bad_row_spoils_no_other() -> None:
    features = np.arange(16, dtype=np.float32).reshape(1, 8, 2)
    features[0, 1], features[0, [3, 7]] = np.nan, np.inf
    given = {"image_features": features, "grid": (2, 4), "keep": 4}
    _, rows = pruning.get("downsample").pruned(**given)
    np.testing.assert_array_equal(rows[0], [[4, 5], [10, 11], [8, 9], [0, 0]])
    _, graph_rows = pc.run(pc.session("downsample", width=2, grid=(2, 4)), given)
    np.testing.assert_array_equal(graph_rows, rows)
