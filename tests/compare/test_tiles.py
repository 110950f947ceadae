"""compare, of builds whose images are several crops: every component beside transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit import compare_kit as kit
from tests.kit import tiled
from tests.kit.runtime_kit import picture
from trtprune.compare import Draw, Question, Running, compare
from trtprune.compare.draw import random_feeds
from trtprune.compare.results import Comparison
from trtprune.compare.tolerance import defaults
from trtprune.engine_dir import open_engine_dir
from trtprune.errors import InputError


@pytest.fixture(scope="module", params=tiled.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def out(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    return tiled.build(tiled.checkpoint(folder / "source", family), folder / "out", weights="copy")


def against(out: Path, **settings: Any) -> Comparison:
    """The build beside its checkpoint in transformers."""
    return compare(out, "transformers", checkpoint=str(out.parent / "source"), **settings)


def test_against_transformers(out: Path, family: str) -> None:
    found = against(out, draw=Draw(iterations=3))
    assert found.passed, [o for c in found.components for o in c.outputs if not o.passed]
    assert [c.name for c in found.components] == ["vision", "pack", "embed", "pruner", "decoder"]
    packed = {o.name for o in found.components[1].outputs}
    with_cls = family in ("llava-next", "internvl")
    saliency = "cls_attention" if with_cls else "mean_query_attention"
    assert packed == {"packed_image_features", f"packed_{saliency}"}


def test_random_images_differ_in_their_crops(out: Path) -> None:
    made = open_engine_dir(out)
    for name in ("pack", "pruner"):
        feeds, _ = random_feeds(made, made.component(name), Draw(iterations=8), ("float32", "float32"))
        assert len({feed["image_features"].shape for feed in feeds}) > 1
        if name == "pack":
            least, most = made.vision.crops
            assert all(least <= len(feed["image_features"]) <= most for feed in feeds)
        else:  # no newline token is chosen from, and the budget is one that the graph can meet
            assert all(1 <= feed["keep"][0] <= feed["image_features"].shape[1] for feed in feeds)


def test_a_real_question(out: Path, tmp_path: Path) -> None:
    paths = []
    for seed, size in enumerate([(220, 90), (50, 50)]):
        picture(seed, size).save(tmp_path / f"{seed}.png")
        paths.append(str(tmp_path / f"{seed}.png"))
    one = against(out, question=Question((paths[0],), "Why?"))
    two = against(out, question=Question(tuple(paths), "Why?"))
    for found in (one, two):
        assert found.passed
        assert not found.notes
        assert {"pack", "pruner"} <= {c.name for c in found.components}
    # An image that is not pruned: the pruner is not reached, and that is said.
    kept = against(out, question=Question((paths[0],), "Why?"), draw=Draw(keep=open_engine_dir(out).vision.tokens[1]))
    assert kept.notes == ("pruner is not compared: this question does not reach it (nothing is pruned)",)


def test_what_a_method_computes_inside_the_decoder_has_no_counterpart(tmp_path: Path, out: Path, family: str) -> None:
    inside = tmp_path / "inside"
    tiled.build(out.parent / "source", inside, method="sparsevlm", options={"schedule": "1:20"}, keep=None)
    found = compare(inside, "transformers", checkpoint=str(out.parent / "source"))
    assert found.passed
    assert [c.name for c in found.components] == ["vision", "pack", "embed", "decoder.0", "decoder.1"]
    assert {note.split()[0] for note in found.notes} == {"raters", "pruner.0"}


@pytest.mark.parametrize("family", ["llava-next", "llava-onevision"], indirect=True)
def test_a_wrong_newline_is_found(out: Path, tmp_path: Path, family: str) -> None:
    copy = tiled.build(out.parent / "source", tmp_path / "wrong", weights="copy")
    name = next(n for n in kit_names(copy) if n.endswith("image_newline"))
    kit.disturb_weight(copy, name)
    found = compare(copy, checkpoint=str(out.parent / "source"), components=["pack"], running=Running(verify="none"))
    assert not found.passed


def kit_names(out: Path) -> list[str]:
    from trtprune.checkpoint.safetensors import read_header

    return [name for path in (out / "onnx/weights").glob("*.safetensors") for name in read_header(path).tensors]


def test_saved_inputs_of_pack_have_no_size(out: Path, tmp_path: Path) -> None:
    saved = tmp_path / "pack.json"
    against(out, components=["pack"], draw=Draw(seed=5), save_inputs=saved)
    assert json.loads(saved.read_text())
    assert against(out, components=["pack"], draw=Draw(seed=5), load_inputs=saved).passed
    with pytest.raises(InputError, match="packs an image by its size"):
        against(out, components=["pack"], draw=Draw(seed=7), load_inputs=saved)


def test_attention_of_a_crop_is_judged_by_the_crop() -> None:
    found = defaults("float32", 2928, 576)
    assert np.isclose(found.of("cls_attention")[1], 1e-4 / 576)
    assert found.of("packed_cls_attention") == found.of("cls_attention")
    assert np.isclose(found.of("rater_attention")[1], 1e-4 / 2928)
