"""The saliency of a tower without a CLS token: any method that takes it reads it in place of the CLS attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from tests.kit.pruning_cases import cases, run, session
from trtprune import pruning
from trtprune.pruning.base import TowerTraits
from trtprune.pruning.inputs import INPUTS
from trtprune.variants import Variant

INPUT = {"cls": "cls_attention", "mean": "mean_query_attention", "all": "deep_attention"}
METHODS = [method.name for method in pruning.all_methods() if method.without_cls]


def fed(case: dict[str, Any], needs: frozenset[str]) -> dict[str, Any]:
    return {name: case[name] for name in (*INPUTS, "text_mask", "seed") if name in needs or name == "text_mask"}


def test_methods_for_a_cls_token_say_what_they_do_without() -> None:
    """None that reads the attention of a CLS token is silent about it, and none of the others has something to say."""
    assert [m.name for m in pruning.all_methods() if "cls_attention" in m.needs] == METHODS
    for method in map(pruning.get, METHODS):
        options = method.complete_options(None, TowerTraits(has_cls=False))
        assert options["received"] == "mean"
        needs = method.needs_of(options)
        assert "mean_query_attention" in needs
        assert not any(name.startswith("cls_") for name in needs)
        assert method.complete_options({"received": "all"}, TowerTraits(has_cls=False))["received"] == "all"
        assert method.complete_options(None, TowerTraits()) == method.validate_options()
        assert any(words.startswith("or, without a CLS token, ") for words in method.describe_needs())


def test_defaults_with_a_packed_tower() -> None:
    """HiPrune's layer is that of its authors' runs: 9 of CLIP's tower, 16 of Qwen2.5-VL's; a choice stays."""
    method = pruning.get("hiprune")
    towers = {9: TowerTraits(), 16: TowerTraits(has_cls=False, packed=True)}
    for layer, tower in towers.items():
        assert method.complete_options(None, tower)["object_layer"] == layer
        assert method.complete_options({"object_layer": "7"}, tower)["object_layer"] == 7
        variant = Variant.make("hiprune", tower=tower)
        assert dict(variant.options)["object_layer"] == layer
    assert pruning.get("vispruner").complete_options(None, towers[16])["received"] == "mean"


@settings(max_examples=25, deadline=None)
@given(cases())
@pytest.mark.parametrize("received", ["mean", "all"])
@pytest.mark.parametrize("name", METHODS)
def test_it_is_read_in_place_of_the_cls_attention(name: str, received: str, case: dict[str, Any]) -> None:
    """The selection is that of the same numbers as CLS attention; the graph's is that of the reference."""
    method = pruning.get(name)
    options = {"received": received} | ({"cls_token": "drop"} if name == "visionzip" else {})
    needs = method.needs_of(method.validate_options(options))
    assert needs == method.needs - {"cls_attention", "cls_feature"} | {INPUT[received]}
    given_ = fed(case, needs)
    features, keep = case["image_features"], case["keep"]
    found, rows = method.pruned(features, keep=keep, **given_, **options)
    as_cls = {**given_, "cls_attention": given_[INPUT[received]]}
    options["received"] = "cls"
    same, same_rows = method.pruned(features, keep=keep, **as_cls, **options)
    np.testing.assert_array_equal(found, same)
    np.testing.assert_array_equal(rows, same_rows)
    options["received"] = received
    indices, _ = run(session(name, tuple(options.items())), case)
    np.testing.assert_array_equal(indices, run(session(name, tuple((options | {"received": "cls"}).items())), {
        **case, "cls_attention": given_[INPUT[received]]})[0])  # fmt: skip
