"""What a token shows: its box, crop, row and column."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.runtime.images.kit import CLIP_336, NEXT, NEXT_SETTINGS, ONEVISION, SIGLIP_384, Theirs, pack, ramp
from tests.runtime.images.test_pixels import CASES, SHAPE
from trtprune.runtime.images import CropShape, Prepared

PLAIN = {name: case for name, case in CASES.items() if name not in ("next-no-rescale", "next-nearest")}


def seen(theirs: Theirs, prepared: Prepared, shape: CropShape) -> np.ndarray:
    """Mean red, green and blue of what each token shows: 8-bit values [N, 3]."""
    values = theirs.images
    pixels = prepared.pixel_values
    if values.do_normalize:
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (values.image_mean, values.image_std))
        pixels = pixels * std + mean
    pixels = pixels * 255
    side, patch = shape.rows, shape.patch[0]
    cut = pixels[..., : side * patch, : side * patch].reshape(-1, 3, side, patch, side, patch)
    patches = cut.mean(axis=(3, 5)).reshape(len(pixels), 3, -1).swapaxes(1, 2)
    return pack(prepared.plan, np.ascontiguousarray(patches, np.float32), np.full(3, np.nan, np.float32))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=40, deadline=None)
@given(width=st.integers(30, 250), height=st.integers(30, 250))
def test_boxes_lie_where_the_pixels_come_from(name: str, images: int, width: int, height: int) -> None:
    kind, values = CASES[name]
    theirs = Theirs(kind, SHAPE, {**values, "resample": 2})  # bicubic overshoots at the border of black
    prepared = theirs.ours().prepare(ramp(width, height), images)
    plan, colours = prepared.plan, seen(theirs, prepared, SHAPE)
    left, top, right, bottom = plan.boxes.T
    inside = (left > 0) & (top > 0) & (right < width) & (bottom < height) & (colours[:, 2] > 254)
    box = np.maximum(right - left, bottom - top)
    # A box's middle, as the index of a pixel; the filter's reach at borders and 8 bits' rounding are within a pixel
    # of the larger of image and crop.  Of a shrunk plane the pixels between two crops that no patch sees, 3 of 31 here,
    # count for none of the taps.
    slack = 0.75 + np.where((plan.pack_weight > 0).sum(axis=1) > 1, 0.25, 0.04) * box
    assert (np.abs((left + right) / 2 - 0.5 - colours[:, 0]) <= slack)[inside].all()
    assert (np.abs((top + bottom) / 2 - 0.5 - colours[:, 1]) <= slack)[inside].all()


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 250), height=st.integers(1, 250))
def test_padding_is_where_no_pixel_of_the_image_is(name: str, images: int, width: int, height: int) -> None:
    kind, values = CASES[name]
    assume(max(width, height) <= 3 * min(width, height))  # else it is less than a patch
    # The nearest pixel, so that nothing of the image is smeared over its border.
    theirs = Theirs(kind, SHAPE, {**values, "resample": 0, **({"image_mean": [0, 0, 0]} if kind == ONEVISION else {})})
    prepared = theirs.ours().prepare(Image.new("RGB", (width, height), (255, 255, 255)), images)
    plan, colours = prepared.plan, seen(theirs, prepared, SHAPE)
    assert not plan.padding[plan.newlines].any()
    # Bilinear weights reach beyond a token's own part of the plane.
    if (plan.pack_weight[:, 1:] == 0).all():
        assert (colours[plan.padding] < 1).all()
    sides = plan.boxes[:, 2:] - plan.boxes[:, :2]
    large = (sides > np.nanmax(sides, axis=0) / 2).all(axis=1)
    assert (colours[large] > 0).all()


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (1000, 1000), (333, 500), (200, 1300), (37, 41)])
@pytest.mark.parametrize("layout", ["model", "paper"])
def test_boxes_cover_the_image(size: tuple[int, int], layout: str) -> None:
    """Those of the overview do so without a gap, those of the tiles but for less than a patch that unpadding drops."""
    height, width = size
    plan = Theirs(NEXT, CLIP_336, NEXT_SETTINGS).ours(layout=layout).plan(height, width)
    overview = (plan.grid[:, 0] == plan.overview) & ~plan.newlines
    tiles = ~overview & ~plan.newlines
    for part, gap in ((overview, 0.0), (tiles, 1.01 if layout == "model" else 0.0)):
        boxes = plan.boxes[part].astype(float)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        across, down = boxes[:, 2].max() - boxes[:, 0].min(), boxes[:, 3].max() - boxes[:, 1].min()
        assert areas.sum() == pytest.approx(across * down, rel=1e-5)  # no two lie on each other
        patch = (boxes[:, 2] - boxes[:, 0]).max(), (boxes[:, 3] - boxes[:, 1]).max()
        assert width - across <= gap * patch[0] + 1e-4
        assert height - down <= gap * patch[1] + 1e-4


@pytest.mark.parametrize("size", [(1080, 1920), (3000, 4000), (500, 700)])
def test_boxes_of_a_shrunk_plane(size: tuple[int, int]) -> None:
    """The boxes are in the order of lines, and leave out the pixels that no patch of a tile sees, 6 of 384."""
    height, width = size
    plan = Theirs(ONEVISION, SIGLIP_384, {}).ours().plan(height, width)
    tiles = (plan.grid[:, 0] > 0) & ~plan.newlines
    boxes = plan.boxes[tiles].astype(float)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert 0.95 < areas.sum() / (width * height) <= 1.0 + 1e-6
    rows, columns = plan.grid[tiles, 1], plan.grid[tiles, 2]
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    for place, axis in ((columns, 0), (rows, 1)):
        order = np.argsort(place, kind="stable")
        assert (np.diff(middles[order, axis]) > -1e-3).all()


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_the_grid(height: int, width: int) -> None:
    """Crop, row and column say which patch a token is; newline tokens have none and end their lines."""
    plan = Theirs(NEXT, CLIP_336, NEXT_SETTINGS).ours().plan(height, width)
    side, patches = CLIP_336.rows, CLIP_336.patches
    crop, row, column = plan.grid.T
    index = plan.pack_index[:, 0]
    newlines = plan.newlines
    np.testing.assert_array_equal(newlines, index == plan.crops * patches)
    assert (plan.grid[newlines] == -1).all()
    assert np.isnan(plan.boxes[newlines]).all()
    assert not np.isnan(plan.boxes[~newlines]).any()
    np.testing.assert_array_equal(index[~newlines], (crop * patches + row % side * side + column % side)[~newlines])
    # The overview's lines have no newline token; in the tiles' plane a line is a row.
    assert (plan.newline[:patches] == -1).all()
    assert (plan.grid[:patches, 0] == plan.overview).all()
    for token in np.nonzero(newlines)[0]:
        line = np.nonzero(plan.newline == token)[0]
        assert line[-1] == token
        assert (np.diff(line) == 1).all()
        assert len(set(row[line[:-1]].tolist())) <= 1
    assert (plan.newline[patches:] >= np.arange(patches, plan.tokens)).all()


def test_the_crop_of_a_shrunk_token_is_that_of_the_heaviest_tap() -> None:
    plan = Theirs(ONEVISION, SIGLIP_384, {}).ours().plan(3000, 4000)
    tiles = np.nonzero(plan.grid[:, 0] > 0)[0]
    assert (plan.pack_weight[tiles] > 0).sum(axis=1).max() == 4
    np.testing.assert_allclose(plan.pack_weight.sum(axis=1), 1, atol=1e-6)
    for token in tiles[::7]:
        heaviest = plan.pack_index[token, np.argmax(plan.pack_weight[token])]
        assert heaviest // SIGLIP_384.patches == plan.grid[token, 0]
    lines = plan.grid[tiles, 1].max() + 1
    places = plan.grid[tiles, 2].max() + 1
    assert len(tiles) == lines * places
