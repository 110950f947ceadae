"""The pack step: crop features become the visual tokens that transformers' models make of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.runtime.images.kit import (
    CLIP_336,
    NEXT,
    NEXT_SETTINGS,
    ONEVISION,
    SIDES,
    SIGLIP_384,
    Theirs,
    pack,
    shapes_and_pinpoints,
)
from trtprune.errors import InputError
from trtprune.runtime.images import CropShape, TokenPlan
from trtprune.runtime.images.planes import bilinear_taps

WIDTH = 6


def features_for(plan: TokenPlan, shape: CropShape, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    features = random.normal(size=(plan.crops, shape.patches, WIDTH)).astype(np.float32)
    return features, random.normal(size=WIDTH).astype(np.float32)


@settings(max_examples=300, deadline=None)
@given(case=shapes_and_pinpoints(), height=SIDES, width=SIDES)
def test_next(case: tuple[CropShape, list[list[int]]], height: int, width: int) -> None:
    shape, pinpoints = case
    sizes = {"size": {"shortest_edge": shape.height}, "crop_size": shape.height}
    theirs = Theirs(NEXT, shape, {**sizes, "image_grid_pinpoints": pinpoints})
    plan = theirs.ours().plan(height, width)
    features, newline = features_for(plan, shape)
    np.testing.assert_array_equal(pack(plan, features, newline), theirs.pack(features, (height, width), newline))


@settings(max_examples=300, deadline=None)
@given(case=shapes_and_pinpoints(), height=SIDES, width=SIDES, most=st.integers(1, 6))
def test_onevision(case: tuple[CropShape, list[list[int]]], height: int, width: int, most: int) -> None:
    shape, pinpoints = case
    size = {"height": shape.height, "width": shape.width}
    theirs = Theirs(ONEVISION, shape, {"size": size, "image_grid_pinpoints": pinpoints}, most)
    try:
        plan = theirs.ours().plan(height, width)
    except InputError:
        assume(False)
    features, newline = features_for(plan, shape)
    expected = theirs.pack(features, (height, width), newline)
    if (plan.pack_weight[:, 1:] == 0).all():
        np.testing.assert_array_equal(pack(plan, features, newline), expected)
    np.testing.assert_allclose(pack(plan, features, newline), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1080, 1920), (3000, 4000), (384, 384), (1394, 1152), (1000, 10)])
def test_onevision_as_published(size: tuple[int, int]) -> None:
    theirs = Theirs(ONEVISION, SIGLIP_384, {})
    plan = theirs.ours().plan(*size)
    features, newline = features_for(plan, SIGLIP_384)
    np.testing.assert_allclose(pack(plan, features, newline), theirs.pack(features, size, newline), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(480, 640), (10, 1000), (1000, 10)])
def test_next_as_published(size: tuple[int, int]) -> None:
    theirs = Theirs(NEXT, CLIP_336, NEXT_SETTINGS)
    plan = theirs.ours().plan(*size)
    features, newline = features_for(plan, CLIP_336)
    np.testing.assert_array_equal(pack(plan, features, newline), theirs.pack(features, size, newline))


def test_one_of_several_images() -> None:
    theirs = Theirs(ONEVISION, SIGLIP_384, {})
    plan = theirs.ours().plan(480, 640, images=2)
    features, newline = features_for(plan, SIGLIP_384)
    np.testing.assert_array_equal(pack(plan, features, newline), theirs.pack(features, (480, 640), newline))


def test_taps_without_weight_bring_in_no_other_patch() -> None:
    """An infinite patch leaves all other tokens finite."""
    plan = Theirs(ONEVISION, SIGLIP_384, {}).ours().plan(384, 384)
    features, newline = features_for(plan, SIGLIP_384)
    features[1, 100] = np.inf
    with np.errstate(invalid="ignore"):
        tokens = pack(plan, features, newline)
    assert (~np.isfinite(tokens)).any(axis=1).sum() == 1


@pytest.mark.parametrize(("size", "shrunk"), [(162, 107), (162, 81), (27, 5), (7, 6), (3, 1), (2, 1), (100, 99)])
def test_bilinear_weights_are_those_of_torch(size: int, shrunk: int) -> None:
    """Bit for bit: torch's weights are what it makes of unit vectors."""
    first, second, weight = bilinear_taps(size, shrunk)
    ours = np.zeros((shrunk, size), np.float32)
    np.add.at(ours, (np.arange(shrunk), first), 1 - weight)
    np.add.at(ours, (np.arange(shrunk), second), weight)
    units = torch.eye(size)[:, None, None].repeat(1, 1, 2, 1)
    theirs = torch.nn.functional.interpolate(units, (2, shrunk), mode="bilinear")[:, 0, 0].T.numpy()
    np.testing.assert_array_equal(ours, theirs)
