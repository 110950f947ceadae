"""Kept tokens of an image of several crops: the right pixels are bright in the overview and in the tiles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import trtprune
from tests.kit import tiled
from tests.kit.runtime_kit import picture
from tests.show.test_overlay import bright, noise
from trtprune.backends.running import Running
from trtprune.cli import main
from trtprune.errors import InputError
from trtprune.runtime.images import CropShape, Processor, processor_from_files
from trtprune.show import overlay_crops
from trtprune.show.crops import GAP
from trtprune.show.overlay import MERGED, fit
from trtprune.show.references import merged_into, select
from trtprune.variants import Variant, Variants


def processor(family: str) -> Processor:
    model = tiled.FAMILIES[family].more
    size = {"shortest_edge": 56} if family == "llava-next" else {"height": 56, "width": 56}
    values = {"size": size, "crop_size": {"height": 56, "width": 56}, "image_grid_pinpoints": tiled.POINTS}
    if family == "smolvlm":
        values = {"size": {"longest_edge": 168}, "max_image_size": {"longest_edge": 56}}
    files, patch = {"preprocessor_config.json": json.dumps(values)}, 28 if family == "internvl" else 14
    more = {"markers": ["<img>", "</img>"]} if family == "internvl" else {}
    shape = CropShape(56, 56, (patch, patch))
    return processor_from_files(files, shape, model, [family.replace("-", "_")], more=more)


def test_kept_patches_of_overview_and_tiles() -> None:
    """112 × 112 pixels are four tiles as they are: their patches are 14 pixels, those of the overview 28."""
    image = noise(112, 112)
    plan = processor("llava-next").plan(112, 112)
    overview, tiles = [(0, 0), (2, 3)], [(0, 0), (3, 4), (7, 7)]
    kept = [4 * r + c for r, c in overview] + [16 + 9 * r + c for r, c in tiles]  # a newline token ends each line
    drawn = overlay_crops(image, [*kept, 16 + 8, -1], plan, size=112)
    assert drawn.size == (56 + GAP + 112, 112)
    expected = np.zeros((4, 4), bool)
    expected[tuple(zip(*overview, strict=True))] = True
    small = drawn.crop((0, 0, 56, 56))
    assert (bright(small, fit(image, 56)) == expected.repeat(14, 0).repeat(14, 1)).all()
    expected = np.zeros((8, 8), bool)
    expected[tuple(zip(*tiles, strict=True))] = True
    large = drawn.crop((56 + GAP, 0, 56 + GAP + 112, 112))
    assert (bright(large, image) == expected.repeat(14, 0).repeat(14, 1)).all()


def test_merged_tokens_have_one_outline_in_both() -> None:
    image = noise(112, 112)
    plan = processor("llava-next").plan(112, 112)
    into = np.full(plan.tokens, -1)
    into[[5, 16 + 9 * 2 + 2]] = 5  # a patch of the overview and one of a tile
    drawn = np.asarray(overlay_crops(image, [5], plan, merged_into=into, size=112))
    rows, columns = np.nonzero((drawn == MERGED).all(-1))
    left = columns < 56
    assert (rows[left].min(), rows[left].max(), columns[left].min(), columns[left].max()) == (14, 27, 14, 27)
    found = rows[~left].min(), rows[~left].max(), columns[~left].min() - 56 - GAP, columns[~left].max() - 56 - GAP
    assert found == (28, 41, 28, 41)


@pytest.mark.parametrize("family", tiled.FAMILIES)
@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), seed=st.integers(0, 9))
def test_any_size(family: str, width: int, height: int, seed: int) -> None:
    """With all tokens kept, no seen pixel is dark; with none, none is bright."""
    image = noise(width, height)
    plan = processor(family).plan(height, width)
    drawn = overlay_crops(image, range(plan.tokens), plan, size=120)
    small, large = fit(image, 60), fit(image, 120)
    if (plan.grid[:, 0] <= 0).all():  # one tile, or so thin an image that nothing of the tiles is left
        small = large
        assert drawn.size == large.size
    else:
        assert drawn.size == (small.width + GAP + large.width, large.height)
    assert bright(drawn.crop((0, 0, *small.size)), small).all()
    assert not bright(overlay_crops(image, [], plan, size=120).crop((0, 0, *small.size)), small).any()
    some = np.random.default_rng(seed).integers(-1, plan.tokens, 5)
    assert overlay_crops(image, some, plan, size=120).size == drawn.size


@pytest.mark.parametrize("index", [-2, 88 + 1, 10**9])
def test_an_index_outside(index: int) -> None:
    with pytest.raises(InputError, match="visual tokens"):
        overlay_crops(noise(112, 112), [index], processor("llava-next").plan(112, 112))


# -- the command, and references where nothing is built


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("crops")
    source = tiled.checkpoint(place / "model", "llava-next")
    picture(3, (150, 90)).save(place / "p.png")
    return tiled.build(source, place / "out", method="visionzip")


def test_show(out: Path, tmp_path: Path) -> None:
    given = ["show", out, "--image", out.parent / "p.png", "--keep", "20,8", "--methods", "visionzip,downsample"]
    given += ["-o", tmp_path / "k.png", "--json", "--max-new-tokens", "3"]
    found = CliRunner().invoke(main, [str(word) for word in given])
    assert found.exit_code == 0, found.stderr
    data = json.loads(found.stdout)
    vlm = trtprune.load(out, threads=1)
    view = vlm.look(out.parent / "p.png", "Describe the image.")
    total = view.features.visual_tokens
    assert total < vlm.config.model.visual_tokens
    assert f"{total} → 20 visual tokens" in found.stderr
    for panel in data["panels"]:
        assert len(panel["kept_indices"]) == panel["keep"]
        merged = {token for group in panel["merged"] for token in group}
        assert not view.features.plan.newlines[sorted(merged)].any()
    with Image.open(tmp_path / "k.png") as drawn:
        assert drawn.width > drawn.height / 2


@pytest.mark.parametrize("method", ["divprune", "downsample", "fastervlm"])
def test_references_choose_as_the_graphs(out: Path, method: str) -> None:
    """Without newline tokens and padding, in the image's own numbering; with no more than the budget, all."""
    with Variants(out, Running(threads=1)) as variants:
        base, built = variants.open(variants.own), variants.open(Variant.make(method))
        for size in ((150, 90), (60, 60), (30, 300)):
            view = base.look(picture(3, size), "Why?")
            own = built.look(picture(3, size), "Why?")
            for keep in (7, 40):
                expected = built.select(own, keep=keep)
                np.testing.assert_array_equal(select(base, view, keep=keep, method=method), expected)
                into = merged_into(built, own, keep=keep)
                if method != "downsample":
                    assert into is None
                    continue
                assert into is not None
                assert len(into) == view.features.visual_tokens
                assert set(into[into >= 0].tolist()) <= set(expected.tolist())
