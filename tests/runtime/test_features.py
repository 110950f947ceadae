"""Pictures that were looked at already: their features in place of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture, same
from trtprune.errors import BudgetError, InputError
from trtprune.runtime import Features, Request, Vlm


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("features") / "clip", tiny.Tiny(seed=4))


@pytest.fixture(scope="module")
def vlm(kit: Kit) -> Vlm:
    return kit.load("adafv", keep=5)


@pytest.fixture
def blind(vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> Vlm:
    """It cannot look at pictures."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("a picture was looked at")

    monkeypatch.setattr(vlm.chain, "look", refuse)
    monkeypatch.setattr(vlm.pipeline, "processor", None)
    return vlm


@pytest.fixture(scope="module")
def expected(vlm: Vlm) -> list[Any]:
    requests = [Request(picture(1), "Why?"), Request([picture(2), picture(1)], "Which?")]
    return vlm.generate_batch(requests, max_new_tokens=9)


@pytest.fixture(scope="module")
def seen(vlm: Vlm) -> list[Features]:
    return vlm.features([picture(1), picture(2)])


def test_every_way_to_ask(vlm: Vlm, expected: list[Any], seen: list[Features], blind: Vlm) -> None:
    first, second = seen
    assert set(first.extras) == {"cls_attention"}
    assert first.cls is first.extras["cls_attention"]
    assert same(blind.generate(first, "Why?", max_new_tokens=9), expected[0])
    found = blind.generate_batch([Request(first, "Why?"), Request([second, first], "Which?")], max_new_tokens=9)
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert "".join(blind.stream(first, "Why?", max_new_tokens=9)) == expected[0].text
    assert same(blind.chat(first).ask("Why?", max_new_tokens=9), expected[0])
    assert blind.features([second, first]) == [second, first]


def test_beside_a_picture(vlm: Vlm, expected: list[Any], seen: list[Features]) -> None:
    assert same(vlm.generate([seen[1], picture(1)], "Which?", max_new_tokens=9), expected[1])


def test_of_a_build_with_another_method(kit: Kit, expected: list[Any], blind: Vlm) -> None:
    other = kit.load("fastervlm", keep=3, method="fastervlm")
    assert same(blind.generate(other.features([picture(1)])[0], "Why?", max_new_tokens=9), expected[0])


def test_where_the_decoder_prunes(kit: Kit) -> None:
    inside = kit.load("fastv", method="fastv", keep=12)
    seen = inside.features([picture(1)])
    expected = inside.generate(picture(1), "Why?", max_new_tokens=6)
    assert same(inside.generate(Features(seen[0].image, seen[0].plan), "Why?", max_new_tokens=6), expected)


def test_features_of_another_kind(kit: Kit, vlm: Vlm, seen: list[Features]) -> None:
    image = np.asarray(seen[0].image)
    for wrong in (image[:-1], image[:, :-1], image.astype(np.float16)):
        with pytest.raises(InputError, match=r"float32 \[16, 64\]"):
            vlm.generate(dataclasses.replace(seen[0], image=wrong), "Why?")
    with pytest.raises(InputError, match="lack cls_attention, which method adafv needs"):
        vlm.generate(Features(image, seen[0].plan), "Why?")
    plain = kit.load("none", method="none")
    assert plain.generate(Features(image, seen[0].plan), "Why?", max_new_tokens=2).token_ids


def test_selecting_with_what_the_build_returns(vlm: Vlm) -> None:
    """Another method runs on all that the vision graph returns, and says what it lacks."""
    from trtprune import pruning
    from trtprune.show.references import picture_inputs

    view = vlm.look(picture(3), "Why?")

    class Wanting(pruning.Method):
        name = "wanting"
        summary = ""
        needs = frozenset({"cls_attention", "grid"})

        def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
            return np.arange(keep)

    found = picture_inputs(vlm.config, Wanting(), {}, view.features, np.asarray)
    assert found["grid"].tolist() == [[0, row, column] for row in range(4) for column in range(4)]
    np.testing.assert_array_equal(found["cls_attention"], view.features.cls)
    for name in ("vision_keys", "shallow_attention", "clip_text_embeds"):
        Wanting.needs = frozenset({name})
        with pytest.raises(BudgetError, match=f"returns no {name}") as error:
            picture_inputs(vlm.config, Wanting(), {}, view.features, np.asarray)
        assert error.value.hint is not None
        assert "--method wanting" in error.value.hint
    strange = dataclasses.replace(vlm.config, model=dataclasses.replace(vlm.config.model, first_patch=-1))
    Wanting.needs = frozenset({"grid"})
    with pytest.raises(BudgetError, match="not one a patch"):
        picture_inputs(strange, Wanting(), {}, view.features, np.asarray)
