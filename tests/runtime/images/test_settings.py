"""Settings of image processors: read from every spelling transformers writes, refused in one line if they are none."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.images.kit import CLIP_336, NEXT, NEXT_SETTINGS, ONEVISION, SIGLIP_384, Theirs, noise
from tests.runtime.images.test_pixels import CASES, SHAPE
from trtprune.errors import EngineDirError
from trtprune.runtime.images import PROCESSORS, CropShape, processor_from_files, processor_from_settings
from trtprune.runtime.images.llava_next import LlavaNext
from trtprune.runtime.images.llava_onevision import LlavaOnevision

FILE = "preprocessor_config.json"
NEXT_FILE: dict[str, Any] = {
    "image_processor_type": "LlavaNextImageProcessor",
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
}
ONEVISION_FILE = {"image_processor_type": "LlavaOnevisionImageProcessor"}


def opened(values: Any, config: Any = None, name: str = NEXT, layout: str | None = None, file: str = FILE) -> Any:
    shape = CLIP_336 if name == NEXT else SIGLIP_384
    text = values if isinstance(values, str) else json.dumps(values)
    return processor_from_files({file: text}, shape, config or {}, [name], layout)


@pytest.mark.parametrize("name", CASES)
def test_settings_make_an_equal_processor(name: str) -> None:
    """What ``config.json`` keeps is enough, through JSON and back."""
    kind, values = CASES[name]
    ours = Theirs(kind, SHAPE, values).ours()
    kept = json.loads(json.dumps(ours.settings()))
    again = processor_from_settings(kind, kept, "config.json")
    assert again == ours
    assert again.settings() == ours.settings()
    image = noise(50, 70)
    for images in (1, 2) if values.get("do_resize", True) else (1,):
        np.testing.assert_array_equal(
            again.prepare(image, images).pixel_values, ours.prepare(image, images).pixel_values
        )


def test_the_layout_is_kept() -> None:
    ours = Theirs(NEXT, CLIP_336, NEXT_SETTINGS).ours(layout="paper")
    assert processor_from_settings(NEXT, ours.settings(), "config.json") == ours
    assert opened(NEXT_FILE, layout="paper") == ours
    assert opened(NEXT_FILE) != ours
    with pytest.raises(EngineDirError, match="layout='papers': not offered") as caught:
        opened(NEXT_FILE, layout="papers")
    assert caught.value.hint == "one of model, paper"
    with pytest.raises(EngineDirError, match="layout='paper': not offered"):
        opened(ONEVISION_FILE, name=ONEVISION, layout="paper")


@pytest.mark.parametrize(("name", "ours"), [(NEXT, LlavaNext), (ONEVISION, LlavaOnevision)])
def test_defaults_are_those_of_transformers(name: str, ours: Any) -> None:
    theirs = {NEXT: transformers.LlavaNextImageProcessorPil, ONEVISION: transformers.LlavaOnevisionImageProcessorPil}
    made = theirs[name]()
    for key, value in ours.defaults.items():
        if key == "vision_aspect_ratio":
            assert value == transformers.LlavaOnevisionConfig().vision_aspect_ratio
            continue
        their = getattr(made, key)
        their = dict(their) if hasattr(their, "shortest_edge") else their
        assert json.loads(json.dumps(value)) == json.loads(json.dumps(their or False)), key
    config = {NEXT: transformers.LlavaNextConfig, ONEVISION: transformers.LlavaOnevisionConfig}[name]()
    assert [list(pinpoint) for pinpoint in ours.model_pinpoints] == config.image_grid_pinpoints


def test_spellings() -> None:
    """Suffixes of the class, plain numbers, nulls, the file of transformers 5, a file that names no class."""
    expected = opened(NEXT_FILE)
    for kind in ("LlavaNextImageProcessorFast", "LlavaNextImageProcessorPil", None):
        assert opened({**NEXT_FILE, "image_processor_type": kind}) == expected
    assert opened({**NEXT_FILE, "size": 336, "crop_size": 336, "do_pad": None, "image_mean": None}) == expected
    assert opened({"image_processor": NEXT_FILE, "patch_size": 14}, file="processor_config.json") == expected
    numbers = {"size": 336, "crop_size": 336, "do_resize": 1, "do_center_crop": 1}
    assert Theirs(NEXT, CLIP_336, {"size": 336, "crop_size": 336}).ours() == opened({**NEXT_FILE, **numbers})


def test_the_models_own_config() -> None:
    """Its pinpoints must be the processor's, written out or left out; OneVision's ratio is what packing goes by."""
    other = [[336, 672], [672, 336]]
    assert opened({**NEXT_FILE, "image_grid_pinpoints": other}, {"image_grid_pinpoints": other}).crops_range == (3, 3)
    for config in ({}, {"image_grid_pinpoints": None}, {"image_grid_pinpoints": NEXT_FILE["image_grid_pinpoints"]}):
        assert opened(NEXT_FILE, config) == opened(NEXT_FILE)
    with pytest.raises(EngineDirError, match="image_grid_pinpoints are not those of"):
        opened({**NEXT_FILE, "image_grid_pinpoints": other})
    with pytest.raises(EngineDirError, match="image_grid_pinpoints are not those of"):
        opened(NEXT_FILE, {"image_grid_pinpoints": other})
    with pytest.raises(EngineDirError, match=r"image_grid_pinpoints of config.json 'x' is no list"):
        opened(NEXT_FILE, {"image_grid_pinpoints": "x"})
    ours = opened(ONEVISION_FILE, {"vision_aspect_ratio": "anyres_max_4"}, ONEVISION)
    assert ours.most == 4
    assert ours.plan(3000, 4000).tokens == Theirs(ONEVISION, SIGLIP_384, {}, 4).tokens(3000, 4000)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_grid_pinpoints": [[336, 500]]}, "336 × 500 is not a multiple of the tile, 336 × 336"),
        ({"image_grid_pinpoints": [[336, 336]] * 5000}, "image_grid_pinpoints has 5000 resolutions, above the limit"),
        ({"image_grid_pinpoints": [[336 * 10**6, 336]]}, "image_grid_pinpoints 336000000 is not between 1 and 16384"),
        (
            {"image_grid_pinpoints": [[336 * 40, 336 * 40]]},
            "has 1600 tiles of 336 × 336 pixels, above the limit of 256",
        ),
        ({"image_grid_pinpoints": [[-336, 336]]}, "image_grid_pinpoints -336 is not between"),
        ({"image_grid_pinpoints": [[0, 336]]}, "image_grid_pinpoints 0 is not between"),
        ({"image_grid_pinpoints": [[336.0, 336]]}, r"image_grid_pinpoints 336\.0 is not between"),
        ({"image_grid_pinpoints": [[True, 336]]}, "image_grid_pinpoints True is not between"),
        ({"image_grid_pinpoints": [[10**5000, 336]]}, "not a valid image processor|not JSON"),
        ({"image_grid_pinpoints": []}, r"image_grid_pinpoints \[\] is no list of resolutions"),
        ({"image_grid_pinpoints": {"336": 672}}, "image_grid_pinpoints .* is no list of resolutions"),
        ({"image_grid_pinpoints": "(1x1),...,(6x6)"}, "image_grid_pinpoints .* is no list of resolutions"),
        ({"image_grid_pinpoints": [336, 672]}, "image_grid_pinpoints: 336 is no resolution"),
        ({"image_grid_pinpoints": [[336, 672, 3]]}, r"image_grid_pinpoints: \[336, 672, 3\] is no resolution"),
        ({"image_grid_pinpoints": [["336", "672"]]}, "image_grid_pinpoints '336' is not between"),
        ({"size": {"shortest_edge": 224}}, "the overview of 224 × 224|becomes|do_center_crop"),
        ({"crop_size": 224}, "tiles are 224 × 224 pixels, the vision graph takes 336 × 336"),
        ({"crop_size": {"height": 336, "width": 300}}, "becomes 336 × 300 pixels, the vision graph takes 336 × 336"),
        ({"crop_size": {"height": 336}}, "crop_size None is not between"),
        ({"size": {"height": 400, "width": 300}, "do_center_crop": False}, "overview of 400 × 300 becomes 400 × 300"),
        ({"size": {"shortest_edge": 336, "longest_edge": 400}}, "size .* is not supported"),
        ({"size": []}, r"size \[\] is no size"),
        ({"size": {"shortest_edge": 10**9}}, "size 1000000000 is not between"),
        ({"resample": 77}, "resample 77"),
        ({"do_pad": "yes"}, "do_pad 'yes' is neither true nor false"),
        ({"do_resize": "false"}, "do_resize 'false' is neither"),
        ({"image_mean": [0.5]}, "image_mean has not a value for each of 3 channels"),
        ({"image_std": [0.1, 0, 0.1]}, "image_std"),
        ({"rescale_factor": 3e38}, "beyond every float32"),
        (
            {"image_processor_type": "CLIPImageProcessor"},
            "image processor 'CLIPImageProcessor' does not fit this model",
        ),
        ({"image_processor_type": "LlavaOnevisionImageProcessor"}, "does not fit this model"),
        ({"image_processor_type": 3}, "image_processor_type is no text"),
    ],
)
def test_settings_that_are_refused(change: dict[str, Any], named: str) -> None:
    if change.get("size") == {"shortest_edge": 224}:
        change = {**change, "do_center_crop": False}
    with pytest.raises(EngineDirError, match=named) as caught:
        # As Python objects: JSON itself refuses numbers of thousands of digits.
        processor_from_files_of({**NEXT_FILE, **change})
    assert str(caught.value).startswith(FILE)
    assert caught.value.hint
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def processor_from_files_of(values: dict[str, Any]) -> Any:
    try:
        text = json.dumps(values)
    except ValueError:
        return processor_from_settings(NEXT, {**values, **CLIP_336.settings()}, FILE)
    return opened(text, {"image_grid_pinpoints": values["image_grid_pinpoints"]})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vision_aspect_ratio": "anyres"}, "vision_aspect_ratio 'anyres' is not supported"),
        ({"vision_aspect_ratio": "anyres_max_0"}, "vision_aspect_ratio"),
        ({"vision_aspect_ratio": "anyres_max_99999"}, "vision_aspect_ratio"),
        ({"vision_aspect_ratio": 9}, "vision_aspect_ratio 9"),
        ({"image_mean": [120, 110, 100]}, "image_mean .* is no colour to pad with"),
        ({"size": {"shortest_edge": 224}}, "tiles are 224 × 224 pixels"),
    ],
)
def test_settings_of_onevision_that_are_refused(change: dict[str, Any], named: str) -> None:
    values = {**ONEVISION_FILE, **SIGLIP_384.settings(), **change}
    with pytest.raises(EngineDirError, match=named):
        processor_from_settings(ONEVISION, values, FILE)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"crop": None}, "no 'crop'"),
        ({"crop": [336, 336]}, "crop is no object"),
        ({"crop": {"height": 336, "width": 336}}, "no 'patch'"),
        ({"crop": {"height": 336, "width": 336, "patch": [0, 14]}}, "crop.patch 0"),
        ({"crop": {"height": 336, "width": 336, "patch": [14, 400]}}, "crop.patch 400"),
        ({"crop": {"height": 336, "width": 300, "patch": [14, 14]}}, "336 × 300 pixels are not square"),
        ({"crop": {"height": 10**9, "width": 10**9, "patch": [1, 1]}}, "crop.height 1000000000"),
        (
            {"crop": {"height": 336, "width": 336, "patch": [1, 1]}},
            "5 crops of 112896 patches, above the limit of 131072",
        ),
        ({"layout": "mine"}, "layout 'mine' is none of model, paper"),
        ({"layout": ["paper"]}, "layout .* is none of"),
    ],
)
def test_a_damaged_config(change: dict[str, Any], named: str) -> None:
    kept = Theirs(NEXT, CLIP_336, NEXT_SETTINGS).ours().settings()
    with pytest.raises(EngineDirError, match=named) as caught:
        processor_from_settings(NEXT, {**kept, **change}, "config.json")
    assert str(caught.value).startswith("config.json: ")


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_settings_of_nobody_are_one_line(name: str, data: st.DataObject) -> None:
    """Whatever a setting is, the processor is made or refused."""
    cases = {kind: Theirs(kind, SHAPE, values) for kind, values in CASES.values()}
    kept = cases[name].ours().settings() if name in cases else {"size": 28, "crop_size": 28, **SHAPE.settings()}
    key = data.draw(st.sampled_from(sorted(kept)))
    scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
    value = data.draw(
        st.recursive(scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=6), v))
    )
    with contextlib.suppress(EngineDirError):
        processor_from_settings(name, {**kept, key: value}, "config.json").plan(50, 60)


def test_names_that_are_not_known() -> None:
    with pytest.raises(EngineDirError, match=r"config.json: image processor 'qwen' is not known"):
        processor_from_settings("qwen", {}, "config.json")
    with pytest.raises(EngineDirError, match=r"preprocessor_config.json is missing"):
        processor_from_files({}, CropShape(336, 336, (14, 14)), {}, [NEXT])
    with pytest.raises(EngineDirError, match=r"preprocessor_config.json: not JSON"):
        opened("{")
    with pytest.raises(EngineDirError, match=r"preprocessor_config.json: not JSON"):
        opened("[" * 100_000)
