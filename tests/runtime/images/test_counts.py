"""Visual tokens and crops of an image: as many as transformers' processors count, for every size."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.images.kit import (
    CLIP_336,
    NEXT,
    NEXT_SETTINGS,
    ONEVISION,
    SIDES,
    SIGLIP_384,
    Theirs,
    shapes_and_pinpoints,
)
from trtprune.errors import InputError
from trtprune.runtime.images import CropShape, Processor
from trtprune.runtime.images.anyres import AnyRes, best_resolution

PUBLISHED = {NEXT: Theirs(NEXT, CLIP_336, NEXT_SETTINGS), ONEVISION: Theirs(ONEVISION, SIGLIP_384, {})}
OURS = {name: theirs.ours() for name, theirs in PUBLISHED.items()}
NARROW = [(10, 1000), (1000, 10), (1, 1), (1, 4000), (4000, 1), (3, 2000), (2000, 3), (1, 2), (2, 1)]


def fresh(processor: Processor, height: int, width: int) -> int:
    """N without the cache of plans."""
    assert isinstance(processor, AnyRes)
    return processor._plan(height, width, 1).tokens


def packed(theirs: Theirs, height: int, width: int) -> np.ndarray:
    """What transformers' model makes of features of an image."""
    best = best_resolution(height, width, theirs.images.image_grid_pinpoints)
    crops = 1 + best[0] // theirs.shape.height * (best[1] // theirs.shape.width)
    return theirs.pack(np.zeros((crops, theirs.shape.patches, 1), np.float32), (height, width), np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("name", "height", "width", "tokens"),
    [
        (NEXT, 336, 336, 1176),
        (NEXT, 480, 640, 2340),
        (NEXT, 640, 480, 2352),
        (NEXT, 720, 1280, 1948),
        (NEXT, 1000, 1000, 2928),
        (NEXT, 333, 500, 1464),
        (NEXT, 500, 2000, 1890),
        (NEXT, 10, 1000, 576),
        (ONEVISION, 384, 384, 1485),
        (ONEVISION, 480, 640, 2929),
        (ONEVISION, 1080, 1920, 7269),
        (ONEVISION, 3000, 4000, 7309),
    ],
)
def test_golden_counts(name: str, height: int, width: int, tokens: int) -> None:
    assert OURS[name].plan(height, width).tokens == tokens


@pytest.mark.parametrize("name", PUBLISHED)
def test_sweep_of_the_published_models(name: str) -> None:
    """Thousands of sizes: a lattice up to 4000 × 3000, narrow ones, and random ones."""
    sides = [1, 2, 3, 7, 10, 27, 100, 335, 336, 337, 384, 500, 671, 672, 673, 1000, 1008, 1344, 2304, 3000, 4000]
    random = np.random.default_rng(5)
    drawn = np.exp(random.uniform(0, np.log(4000), (1200, 2))).astype(int)
    sizes = [*itertools.product(sides, sides), *NARROW, *map(tuple, drawn.tolist())]
    theirs, ours = PUBLISHED[name], OURS[name]
    least, most = ours.tokens_range
    for height, width in sizes:
        tokens = fresh(ours, height, width)
        assert tokens == theirs.tokens(height, width), (height, width)
        assert least <= tokens <= most


@settings(max_examples=400, deadline=None)
@given(case=shapes_and_pinpoints(), height=SIDES, width=SIDES)
def test_next_of_any_pinpoints(case: tuple[CropShape, list[list[int]]], height: int, width: int) -> None:
    shape, pinpoints = case
    sizes = {"size": {"shortest_edge": shape.height}, "crop_size": shape.height}
    theirs = Theirs(NEXT, shape, {**sizes, "image_grid_pinpoints": pinpoints})
    ours = theirs.ours()
    plan = ours.plan(height, width)
    assert plan.tokens == theirs.tokens(height, width)
    assert ours.tokens_range[0] <= plan.tokens <= ours.tokens_range[1]
    assert ours.crops_range[0] <= plan.crops <= ours.crops_range[1]


@settings(max_examples=400, deadline=None)
@given(case=shapes_and_pinpoints(), height=SIDES, width=SIDES, most=st.integers(1, 12))
def test_onevision_of_any_pinpoints(
    case: tuple[CropShape, list[list[int]]], height: int, width: int, most: int
) -> None:
    shape, pinpoints = case
    size = {"height": shape.height, "width": shape.width}
    theirs = Theirs(ONEVISION, shape, {"size": size, "image_grid_pinpoints": pinpoints}, most)
    ours = theirs.ours()
    try:
        plan = ours.plan(height, width)
    except InputError:
        with pytest.raises(RuntimeError, match="should be greater than 0"):
            packed(theirs, height, width)
        return
    assert plan.tokens == theirs.tokens(height, width)
    assert ours.tokens_range[0] <= plan.tokens <= ours.tokens_range[1]
    assert ours.crops_range[0] <= plan.crops <= ours.crops_range[1]


@settings(max_examples=300, deadline=None)
@given(case=shapes_and_pinpoints(), height=SIDES, width=SIDES)
def test_the_best_resolution_is_that_of_transformers(
    case: tuple[CropShape, list[list[int]]], height: int, width: int
) -> None:
    from transformers.image_processing_utils import select_best_resolution

    pinpoints = [(down, across) for down, across in case[1]]
    assert best_resolution(height, width, pinpoints) == select_best_resolution((height, width), pinpoints)


def test_bounds_are_reached() -> None:
    """Least and most visual tokens of both published models, at sizes that have them."""
    assert OURS[NEXT].tokens_range == (576, 2928)
    assert fresh(OURS[NEXT], 10, 1000) == 576
    assert fresh(OURS[NEXT], 672, 672) == 2928
    assert OURS[NEXT].crops_range == (3, 5)
    assert OURS[ONEVISION].tokens_range == (730, 8765)
    assert OURS[ONEVISION].plan(50, 90, images=2).tokens == 730
    assert PUBLISHED[ONEVISION].tokens(1394, 1152) == fresh(OURS[ONEVISION], 1394, 1152) == 8765
    assert OURS[ONEVISION].crops_range == (1, 37)


def test_the_table_in_the_docs() -> None:
    """Counts of docs/images.md, as transformers has them."""
    lines = (Path(__file__).parents[3] / "docs" / "images.md").read_text(encoding="utf-8").splitlines()
    head, _, *rows = (line for line in lines if line.startswith(("| | 336×336", "|---" * 11, "| LLaVA-")))
    sizes = [tuple(map(int, cell.split("×"))) for cell in head.split("|")[2:-3]]
    for row, name in zip(rows, (NEXT, ONEVISION), strict=True):
        *counts, least, most = (int(cell) for cell in row.split("|")[2:-1])
        assert counts == [PUBLISHED[name].tokens(height, width) for height, width in sizes]
        assert (least, most) == OURS[name].tokens_range


@pytest.mark.parametrize("images", [2, 3, 7])
@pytest.mark.parametrize("size", [(480, 640), (1, 4000), (3000, 4000)])
def test_several_images_of_a_prompt(images: int, size: tuple[int, int]) -> None:
    """OneVision makes one crop of each, whose newline token ends it; LLaVA-NeXT cuts each as if it were alone."""
    plan = OURS[ONEVISION].plan(*size, images=images)
    assert plan.crops == 1
    assert plan.tokens == 730  # as ``replace_image_token`` of transformers has it: num_image_tokens + 1
    assert (plan.newline == 729).all()
    assert plan.newlines.nonzero()[0].tolist() == [729]
    alone = OURS[NEXT].plan(*size)
    among = OURS[NEXT].plan(*size, images=images)
    np.testing.assert_array_equal(alone.pack_index, among.pack_index)


def test_an_image_whose_tiles_shrink_to_nothing() -> None:
    """transformers counts no token for them, and its model fails."""
    values = {"size": {"height": 6, "width": 6}, "image_grid_pinpoints": [[900, 6]]}
    theirs = Theirs(ONEVISION, CropShape(6, 6, (2, 2)), values, most=1)
    assert theirs.tokens(4000, 26) == 9 + 36
    with pytest.raises(RuntimeError, match="should be greater than 0"):
        packed(theirs, 4000, 26)
    with pytest.raises(InputError, match="an image of 26 × 4000 is too narrow"):
        theirs.ours().plan(4000, 26)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-3, 5)])
def test_sizes_that_are_none(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="is empty"):
        OURS[name].plan(*size)


def test_the_papers_layout() -> None:
    """All patches of all crops, no newline token: 2880 of a square image, which every paper counts."""
    ours = PUBLISHED[NEXT].ours(layout="paper")
    assert ours.tokens_range == (3 * 576, 5 * 576)
    for (height, width), crops in {(1000, 1000): 5, (480, 640): 5, (10, 1000): 4, (300, 300): 3}.items():
        plan = ours.plan(height, width)
        assert (plan.crops, plan.tokens) == (crops, 576 * crops)
        assert (plan.newline == -1).all()
        assert sorted(plan.pack_index[:, 0]) == list(range(576 * crops))


def test_a_plan_takes_about_a_millisecond() -> None:
    """For an image of 1000 × 1000 pixels, and nothing when it is asked for again."""
    ours: Any = OURS[NEXT]
    times = []
    for _ in range(7):
        start = time.perf_counter()
        ours._plan(1000, 1000, 1)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.003
    assert ours.plan(1000, 1000) is ours.plan(1000, 1000)
    with pytest.raises(ValueError, match="read-only"):
        ours.plan(1000, 1000).pack_index[0] = 1
