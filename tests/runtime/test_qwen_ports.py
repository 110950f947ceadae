"""Builds of Qwen2.5-VL beside what published code for that model selects, retold in float64 from its formulas.

Attention, features and embeddings come from transformers' modules; nothing of trtprune selects in the oracles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture
from tests.models.test_packed import Maps
from trtprune.runtime import Vlm

SIZES = [(200, 130), (300, 40), (56, 84), (170, 171), (90, 260), (240, 200)]
"""(width, height) of the images."""
QUESTION = "What is on the table left of it?"
OBJECT_LAYER = 2
"""In the tiny tower, as layer 16 in the real one, a layer in which patches attend to the whole image."""


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    case = tiny.Tiny(family="qwen2.5-vl", seed=21, max_positions=1024)
    return Kit.make(tmp_path_factory.mktemp("ports") / "qwen2.5-vl", case)


def seen(kit: Kit, vlm: Vlm, image: Any) -> tuple[Maps, int]:
    """The tower's maps, and the visual tokens in a row."""
    prepared = vlm.pipeline.processor.prepare(image)
    rows, columns = (int(n) for n in prepared.plan.grid[-1, 1:] + 1)
    grid = torch.tensor([[1, 2 * rows, 2 * columns]])
    return Maps(kit.model, torch.from_numpy(prepared.pixel_values), grid), columns


def hiprune(maps: Maps, columns: int, keep: int, alpha: float) -> tuple[set[int], bool]:
    """Danielement321/HiPrune@6e83a12, ``Qwen2_5_VL/qwen2_5_vl_HiPrune.py``, and whether it selects a token twice.

    A block's attention, the mean over heads, is summed over queries and meant over the four patches of a token.  1 is
    taken off the deep attention of anchors and neighbours, which need not suffice: the sums are 1 on average.
    """

    def received(layer: int) -> np.ndarray:
        return maps.received(layer) * maps.patches / 4

    shallow, deep = received(OBJECT_LAYER - 1), received(len(maps.layers) - 1)
    last = len(deep) - 1
    anchors = np.argsort(-shallow, kind="stable")[: round(keep * alpha / 5)]
    steps = (0, -1, 1, -columns, columns)
    chosen = {min(max(int(anchor) + step, 0), last) for anchor in anchors for step in steps}
    deep[sorted(chosen)] -= 1
    rest = {int(token) for token in np.argsort(-deep, kind="stable")[: keep - len(chosen)]}
    return chosen | rest, bool(chosen & rest)


@pytest.mark.parametrize("alpha", [0.1, pytest.param(0.5, marks=pytest.mark.slow)])
def test_hiprune(kit: Kit, alpha: float) -> None:
    options = {"object_layer": OBJECT_LAYER, "alpha": alpha}
    vlm = kit.load(f"hiprune-{alpha}", method="hiprune", keep=16, options=options)
    equal = 0
    for number, size in enumerate(SIZES):
        image = picture(number, size)
        view = vlm.look(image, QUESTION)
        maps, columns = seen(kit, vlm, image)
        for keep in range(5, view.features.visual_tokens):
            wanted, twice = hiprune(maps, columns, keep, alpha)
            got = set(vlm.select(view, keep=keep).tolist())
            # A token that the code takes twice leaves it one short; here the next one fills the place.
            assert wanted < got if twice else wanted == got, (size, keep)
            equal += not twice
    assert equal > 100


def divprune(features: np.ndarray, keep: int) -> list[int]:
    """Tencent/AngelSlim@67394ce ``algorithm/divprune.py``, on the merged tokens."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    picks = [int(distance.min(axis=1).argmax())]
    nearest = distance[picks[0]].copy()
    while len(picks) < keep:
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance[picks[-1]])
    return sorted(picks)


def mmtok(features: np.ndarray, tower: np.ndarray, text: np.ndarray, keep: int) -> list[int]:
    """Ironieser/MMTok@d1522cd ``core/semantic_selector.py`` with what ``qwen/`` gives it.

    The tower's features are those before the merger, meant over the four patches of a token.  The code looks up the
    words that are left of the question without stop words; here all of its tokens, as the build reads them.
    """

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)

    def shares(rows: np.ndarray, columns: np.ndarray, temperature: float) -> np.ndarray:
        logits = unit(rows) @ unit(columns).T / temperature
        power = np.exp(logits - logits.max(axis=1, keepdims=True))
        return power / power.sum(axis=1, keepdims=True) / len(rows)

    cover = np.concatenate([shares(text, features, 0.02), 0.5 * shares(tower, tower, 0.2)])
    best, picks = np.zeros(len(cover)), []
    for _ in range(keep):
        gain = np.maximum(cover - best[:, None], 0).sum(axis=0)
        gain[picks] = -np.inf
        picks.append(int(gain.argmax()))
        best = np.maximum(best, cover[:, picks[-1]])
    return sorted(picks)


@pytest.mark.parametrize("name", ["divprune", "mmtok"])
def test_greedy(kit: Kit, name: str) -> None:
    vlm = kit.load(name, method=name, keep=16)
    for number, size in enumerate(SIZES):
        image = picture(10 + number, size)
        view = vlm.look(image, QUESTION)
        maps, _ = seen(kit, vlm, image)
        features = maps.features.astype(np.float64)
        ids = torch.from_numpy(view.prompt.ids[view.prompt.span("question")])
        text = kit.model.get_input_embeddings()(ids).detach().double().numpy()
        oracles: dict[str, Callable[[int], list[int]]] = {
            "divprune": lambda keep, features=features: divprune(features, keep),
            "mmtok": lambda keep, f=features, maps=maps, text=text: mmtok(f, maps.last.mean(1).numpy(), text, keep),
        }
        for keep in (1, 2, 5, view.features.visual_tokens // 2, view.features.visual_tokens - 1):
            if keep >= 1:
                assert vlm.select(view, keep=keep).tolist() == oracles[name](keep), (size, keep)


@pytest.mark.slow
def test_mean_query_stands_for_all(kit: Kit) -> None:
    """``received=all`` is AngelSlim's score up to a factor, ``mean`` its score for large images."""
    for received, row in (("all", Maps.received), ("mean", Maps.mean_query)):
        vlm = kit.load(f"fastervlm-{received}", method="fastervlm", keep=16, options={"received": received})
        for number, size in enumerate(SIZES):
            image = picture(20 + number, size)
            view = vlm.look(image, QUESTION)
            maps, _ = seen(kit, vlm, image)
            deep = max(kit.model.config.vision_config.fullatt_block_indexes)
            keep = view.features.visual_tokens // 2
            wanted = np.sort(np.argsort(-row(maps, deep), kind="stable")[:keep]).tolist()
            assert vlm.select(view, keep=keep).tolist() == wanted
