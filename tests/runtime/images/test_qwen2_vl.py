"""The processor of Qwen2-VL and the families after it against transformers: sizes, patches, windows; its settings."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from trtprune.errors import EngineDirError, InputError
from trtprune.runtime.images import PackedShape, PixelBounds, processor_from_files, processor_from_settings
from trtprune.runtime.images.qwen2_vl import Qwen2Vl, smart_size

SHAPE = PackedShape(patch=14, merge=2, frames=2, window=4)
FILE = "preprocessor_config.json"
HUB = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
QWEN3 = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
"""The file of Qwen3-VL's checkpoints."""
BOUNDS = [
    (65536, 16777216),
    (3136, 12845056),
    (3136, 1003520),
    (784, 50000),
    (100000, 200000),
    (3000, 3137),
    (1, 784 * 7),
]


def processor(shape: PackedShape = SHAPE, bounds: PixelBounds | None = None, **changes: Any) -> Qwen2Vl:
    values = {name: value for name, value in {**HUB, **changes}.items() if value is not ...}
    made = processor_from_files({FILE: json.dumps(values)}, shape, {}, ["qwen2_vl"], bounds=bounds)
    assert isinstance(made, Qwen2Vl)
    return made


def qwen3(**changes: Any) -> Qwen2Vl:
    files = {FILE: json.dumps({**QWEN3, **changes})}
    made = processor_from_files(files, PackedShape(patch=16, merge=2, frames=2), {}, ["qwen2_vl"])
    assert isinstance(made, Qwen2Vl)
    return made


def oracle(**changes: Any) -> Any:
    values = {name: value for name, value in {**HUB, **changes}.items() if value is not ...}
    return Qwen2VLImageProcessorPil.from_dict(values)


def sides(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Sizes of all magnitudes, thin ones and multiples of a token's half among them."""
    logs = np.exp(rng.uniform(0, np.log(6000), (count, 2))).astype(int)
    halves = rng.integers(1, 200, (count // 4, 2)) * 14
    return [(int(h), int(w)) for h, w in np.concatenate((logs, halves)) if max(h, w) <= 200 * min(h, w)]


@pytest.mark.parametrize("factor", [28, 32])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_sizes(bounds: tuple[int, int], factor: int) -> None:
    for height, width in sides(np.random.default_rng(0), 1500):
        assert smart_size(height, width, factor, *bounds) == smart_resize(height, width, factor, *bounds)


def test_known_sizes() -> None:
    own = processor()
    known = {(480, 640): 391, (1080, 1920): 2691, (27, 332): 12, (20, 20): 4, (484, 1024): 629}
    assert {size: own.plan(*size).tokens for size in known} == known
    assert own.tokens_range == (4, 16384)
    own, known = qwen3(), {(480, 640): 300, (1080, 1920): 2040, (20, 20): 64}
    assert {size: own.plan(*size).tokens for size in known} == known
    assert own.tokens_range == (64, 16384)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_ranges_hold(bounds: tuple[int, int]) -> None:
    own = processor(min_pixels=bounds[0], max_pixels=bounds[1])
    fewest, most = own.tokens_range
    windows = own.vision_dims["windows"][1]
    assert own.vision_dims["patches"] == (4 * fewest, 4 * most)
    thin = [(h, w) for n in range(1, 60) for h, w in ((n, 200 * n), (200 * n, n), (30 * n, 30 * n + 1))]
    for height, width in sides(np.random.default_rng(1), 1500) + thin:
        rows, columns = (side // 28 for side in smart_size(height, width, 28, *bounds))
        assert fewest <= rows * columns <= most
        assert -(-rows // 4) * -(-columns // 4) <= windows
    if bounds[1] > 2 * bounds[0] and bounds[1] > 200 * 784:
        shapes = [(r, most // r) for r in range(1, 200) if most % r == 0 and most // r <= 200 * r]
        assert any(own.plan(28 * r, 28 * c).tokens == most for r, c in shapes)


@pytest.mark.parametrize("size", [(20, 20), (90, 333), (333, 90), (5, 900), (224, 224), (112, 448), (777, 555)])
def test_patches(size: tuple[int, int]) -> None:
    picture = Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), dtype=np.uint8))
    own, theirs = processor().prepare(picture), oracle()(images=picture, return_tensors="pt")
    np.testing.assert_array_equal(own.pixel_values, theirs["pixel_values"].numpy())
    grid = theirs["image_grid_thw"]
    assert own.plan.tokens * 4 == int(grid.prod())
    check_arrays(own.plan, own.arrays, grid)
    boxes = own.plan.boxes
    assert boxes[0, :2].tolist() == [0, 0]
    np.testing.assert_allclose(boxes[-1, 2:], [size[1], size[0]], rtol=1e-6)


@pytest.mark.parametrize("size", [(20, 20), (90, 333), (900, 5), (256, 256), (777, 555), (1000, 1400)])
def test_patches_of_qwen3_vl(size: tuple[int, int]) -> None:
    """Another patch, mean and deviation, bounds as edges, and the name of a fast processor."""
    picture = Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), dtype=np.uint8))
    theirs = Qwen2VLImageProcessorPil.from_dict(QWEN3)(images=picture, return_tensors="pt")
    own = qwen3().prepare(picture)
    np.testing.assert_array_equal(own.pixel_values, theirs["pixel_values"].numpy())
    assert own.arrays.keys() == {"token_positions"}
    inside = np.stack(np.divmod(np.arange(4), 2), axis=1)
    patches = (2 * own.arrays["token_positions"][:, None] + inside).reshape(-1, 2)
    np.testing.assert_array_equal(patches, get_vision_position_ids(theirs["image_grid_thw"], 2).numpy())


def test_counts_of_qwen3_vl() -> None:
    """Token counts of the whole processor, not of a formula."""
    theirs, own = Qwen2VLImageProcessorPil.from_dict(QWEN3), qwen3()
    for height, width in sides(np.random.default_rng(3), 2000):
        assert own.plan(height, width).tokens * 4 == theirs.get_number_of_image_patches(height, width)


def check_arrays(plan: Any, arrays: Any, grid: torch.Tensor) -> None:
    """Positions and windows against transformers' for the same grid."""
    inside = np.stack(np.divmod(np.arange(4), 2), axis=1)
    patches = (2 * arrays["token_positions"][:, None] + inside).reshape(-1, 2)
    np.testing.assert_array_equal(patches, get_vision_position_ids(grid, 2).numpy())
    np.testing.assert_array_equal(plan.grid, np.insert(arrays["token_positions"], 0, 0, axis=1))
    index, lengths = get_vision_window_index(grid, 2, 112, 14)
    slots = arrays["window_index"]
    np.testing.assert_array_equal(slots[slots >= 0], index.numpy())
    np.testing.assert_array_equal((slots >= 0).sum(1).cumsum() * 4, lengths.numpy()[1:])
    np.testing.assert_array_equal(slots.reshape(-1)[arrays["window_places"]], np.arange(plan.tokens))


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from(BOUNDS))
def test_arrays(height: int, width: int, bounds: tuple[int, int]) -> None:
    own = processor(min_pixels=min(bounds[0], 784 * 200), max_pixels=min(bounds[1], 784 * 300))
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(InputError, match="too narrow"):
            own.plan(height, width)
        return
    plan = own.plan(height, width)
    rows, columns = plan.grid[-1, 1:] + 1
    check_arrays(plan, own.arrays(plan), torch.tensor([[1, 2 * rows, 2 * columns]]))


@pytest.mark.slow
def test_every_small_size() -> None:
    """Token counts of the whole processor, not of a formula: each size from 1 to 130."""
    theirs, own = oracle(max_pixels=100000), processor(max_pixels=100000)
    for height in range(1, 130):
        for width in range(height, 130, 3):
            expected = theirs.get_number_of_image_patches(height, width)
            assert own.plan(height, width).tokens * 4 == expected


@pytest.mark.parametrize(
    ("changes", "bounds"),
    [
        ({}, (3136, 12845056)),
        ({"min_pixels": ..., "max_pixels": ...}, (3136, 1003520)),
        ({"max_pixels": ...}, (3136, 1003520)),
        ({"min_pixels": ..., "max_pixels": ..., "size": {"shortest_edge": 784, "longest_edge": 99999}}, (784, 99999)),
        ({"size": {"shortest_edge": 784, "longest_edge": 99999}}, (3136, 12845056)),
        ({"min_pixels": None, "size": {"shortest_edge": 784, "longest_edge": 99999}}, (784, 12845056)),
        ({"size": {"min_pixels": 7, "max_pixels": 8}}, (3136, 12845056)),
    ],
)
def test_spellings(changes: dict[str, Any], bounds: tuple[int, int]) -> None:
    own, size = processor(**changes), oracle(**changes).size
    assert (own.least, own.most) == (size.shortest_edge, size.longest_edge) == bounds
    again = processor_from_settings("qwen2_vl", json.loads(json.dumps(own.settings())), "config.json")
    assert again == own


def test_a_users_bounds() -> None:
    own = processor(bounds=PixelBounds(most=784 * 300), size={"shortest_edge": 784, "longest_edge": 99999})
    assert (own.least, own.most, own.tokens_range) == (3136, 784 * 300, (4, 300))
    assert own.plan(1080, 1920).tokens <= 300


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"max_pixels": 3000}, "min_pixels 3136 is above max_pixels 3000"),
        ({"min_pixels": ..., "max_pixels": 9, "size": {"shortest_edge": 10}}, "size.shortest_edge 10 is above"),
        ({"min_pixels": ..., "max_pixels": ..., "size": {"shortest_edge": 10}}, "has no longest_edge"),
        ({"min_pixels": 0}, "min_pixels 0 is not between 1 and"),
        ({"max_pixels": 10**12}, "max_pixels 1000000000000 is not between 1 and"),
        ({"min_pixels": "3136"}, "min_pixels '3136' is not between"),
        ({"min_pixels": ..., "size": 336}, "size 336 is no object"),
        ({"do_resize": False}, "do_resize is false"),
        ({"patch_size": 16}, "patch_size is 16, and the vision tower's 14"),
        ({"merge_size": 3}, "merge_size is 3, and the vision tower's 2"),
        ({"image_processor_type": "CLIPImageProcessor"}, "'CLIPImageProcessor' does not fit this model"),
        ({"image_std": [0, 1, 1]}, "image_std"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(EngineDirError) as error:
        processor(**changes)
    assert fault in str(error.value)
    assert str(error.value).startswith(FILE)
    assert error.value.hint


def test_pictures_out_of_shape() -> None:
    own = processor()
    assert own.plan(2, 400).tokens >= 1
    for size in ((2, 401), (401, 2)):
        with pytest.raises(InputError, match="up to 200 to 1"):
            own.plan(*size)
        with pytest.raises(ValueError, match="absolute aspect ratio"):
            smart_resize(*size)
    with pytest.raises(InputError, match="empty"):
        own.plan(0, 5)
