"""Overlays: the right pixels are bright, for every way a picture can be brought to the model's size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from trtprune.errors import InputError
from trtprune.show import caption_for, overlay, panels
from trtprune.show.overlay import FRAME, OUTLINE
from trtprune.show.text import paragraph, width_of


@dataclass(frozen=True)
class Box:
    """What the preprocessor says of a picture."""

    left: float = 0.0
    top: float = 0.0
    scale_x: float = 1.0
    scale_y: float = 1.0
    width: int = 64
    height: int = 64


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(150, 256, (height, width, 3), np.uint8))


def bright(picture: Image.Image, image: Image.Image) -> np.ndarray:
    """Where the overlay shows the picture itself, or the outline that runs on the kept side."""
    drawn, given = np.asarray(picture).astype(int), np.asarray(image).astype(int)
    return (drawn == given).all(-1) | (drawn == OUTLINE).all(-1)


def test_kept_patches_are_the_picture_and_the_rest_is_not() -> None:
    image = noise(64, 64)
    kept = [0, 5, 6, 15]
    shown = overlay(image, kept, patch_grid=(4, 4), size=64)
    expected = np.zeros((4, 4), bool)
    expected.flat[kept] = True
    assert (bright(shown, image) == expected.repeat(16, 0).repeat(16, 1)).all()
    dropped = np.asarray(shown)[~expected.repeat(16, 0).repeat(16, 1)]
    assert dropped.max() < 130
    assert np.ptp(dropped.astype(int), axis=1).max() < 30, "dropped patches keep their colours"


def test_a_centre_crop_is_mapped_back_onto_the_picture() -> None:
    # 128 × 64, of which the model saw the middle 64 × 64.
    image = noise(128, 64)
    shown = overlay(image, [0], patch_grid=(4, 4), geometry=Box(left=32), size=128)
    mask = bright(shown, image)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 15, 32, 47)
    assert mask.sum() == 256
    pale = np.asarray(shown)[:, :31]
    assert pale.min() > 170
    assert (np.asarray(shown)[:, 31] == FRAME).all()


def test_a_resize_scales_the_patches() -> None:
    image = noise(128, 256)
    shown = overlay(image, [15], patch_grid=(4, 4), geometry=Box(scale_x=2, scale_y=4), size=256)
    rows, columns = np.nonzero(bright(shown, image))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (192, 255, 96, 127)


def test_padding_lies_outside_the_picture() -> None:
    image = noise(64, 32)
    shown = overlay(image, range(16), patch_grid=(4, 4), geometry=Box(top=-16), size=64)
    assert bright(shown, image).all()


def test_pixels_that_fill_no_patch_are_not_drawn_as_one() -> None:
    # A tower of 66 pixels with patches of 16 uses 64 of them.
    image = noise(66, 66)
    shown = overlay(image, range(16), patch_grid=(4, 4), geometry=Box(width=66, height=66), size=66)
    mask = bright(shown, image)
    assert mask[:64, :64].all()
    assert not mask[65].any()


def test_the_processors_geometry_fits() -> None:
    from trtprune.runtime.images import CropShape
    from trtprune.runtime.images.single import Single

    config = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    image = noise(300, 200)
    settings = {**config, **CropShape(64, 64, (16, 16)).settings()}
    geometry = Single.from_settings(settings, "f.json").geometry(image.height, image.width)
    shown = overlay(image, range(16), patch_grid=(4, 4), geometry=geometry, size=300)
    columns = np.nonzero(bright(shown, image).all(0))[0]
    assert abs(columns.min() - 50) <= 2
    assert abs(columns.max() - 249) <= 2


def test_the_cls_token_has_no_place() -> None:
    image = noise(64, 64)
    shown = overlay(image, [0, 1], patch_grid=(4, 4), first_patch=-1, size=64)
    assert bright(shown, image).sum() == 256
    assert bright(shown, image)[:16, :16].all()
    beside = overlay(image, [-1, 0], patch_grid=(4, 4), size=64)  # kept by a method, and none of the features
    assert beside.tobytes() == shown.tobytes()


@pytest.mark.parametrize("index", [-2, 16, 10**9])
def test_an_index_outside_the_grid(index: int) -> None:
    with pytest.raises(InputError, match="4 × 4"):
        overlay(noise(8, 8), [index], patch_grid=(4, 4))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (3, 500)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_any_shape_and_mode(shape: tuple[int, int], mode: str) -> None:
    picture = overlay(Image.new(mode, shape), [3, 7], patch_grid=(4, 4), title=caption_for("adafv", 2, 16))
    assert picture.mode == "RGB"
    panels(Image.new(mode, shape), [picture], caption="?")


def test_the_given_picture_is_not_changed() -> None:
    image = noise(64, 64)
    before = image.tobytes()
    panels(image, [overlay(image, [1], patch_grid=(4, 4), title="t")], caption="c")
    assert image.tobytes() == before


def test_caption() -> None:
    assert caption_for("adafv", 64, 576) == "adafv · 64 of 576 tokens (11.1 %)"
    assert caption_for("none", 576, 576) == "none · 576 of 576 tokens (100.0 %)"


@pytest.mark.parametrize(("count", "columns"), [(0, 1), (1, 2), (3, 4), (4, 3), (5, 3), (7, 4), (8, 3), (11, 4)])
def test_sheets_have_full_rows_where_possible(count: int, columns: int) -> None:
    image = noise(40, 30)
    tile = overlay(image, [0], patch_grid=(2, 2), title="x", size=120)
    sheet = panels(image, [tile] * count, size=120)
    # The first tile may be a little wider than its picture: its caption needs the room.
    cell = (sheet.width - 18) / columns - 18
    assert 120 <= cell <= 160


def test_text_fits() -> None:
    long = "a question that goes on and on " * 40
    picture = paragraph(long, 300, lines=3)
    assert (picture.width, picture.height) == (300, 78)
    assert paragraph("x" * 1000, 200).height == 26
    narrow = overlay(noise(10, 400), [0], patch_grid=(2, 2), title=caption_for("zspaprune", 64, 576))
    assert narrow.width >= width_of(caption_for("zspaprune", 64, 576), 9) > 12
