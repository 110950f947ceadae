"""Every method that a tiny checkpoint can serve, from a picture to an answer, against transformers.

What the decoder is fed must be the method's NumPy code on transformers' features, and the answer what transformers says
to that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import trtprune
from tests.kit import tiny, trt_kit
from tests.kit.first_layer import first_layer
from tests.kit.runtime_kit import Kit, picture, same
from tests.kit.vision_maps import expected
from trtprune import pruning
from trtprune.engine_dir import Part
from trtprune.errors import BudgetError
from trtprune.pruning.inputs import FROM_CLIP, FROM_LAYER, FROM_VISION
from trtprune.runtime import Vlm
from trtprune.text.template import Turn

TOKENS = 8
KEEP = 6
QUESTION = "What is on the table left of it?"
TOWERS = {
    "clip": tiny.Tiny(seed=41, feature_layer=[-2, 1]),
    "dinov2": tiny.Tiny(seed=42, tower="dinov2", decoder="qwen2", image_size=70),
    "siglip": tiny.Tiny(seed=43, tower="siglip", decoder="mistral", strategy="full", text={"sliding_window": None}),
}
METHODS = [name for name in pruning.names(inside=False) if not pruning.get(name).needs & set(FROM_CLIP)]
# On the other towers and on engines, methods that read what no method did before them.
READING = [name for name in METHODS if pruning.get(name).needs & ({*FROM_VISION, "grid"} - {"cls_attention"})]
# Where the tower has no CLS token, what the method goes by in its place is an option.
WITHOUT_CLS = [name for name in METHODS if pruning.get(name).without_cls]
CASES = [
    *(("clip", name, None) for name in METHODS),
    *(("clip", name, received) for name in WITHOUT_CLS for received in ("mean", "all")),
    *(("dinov2", name, None) for name in READING),
    *(("siglip", name, None) for name in dict.fromkeys([*READING, *WITHOUT_CLS])),
    *(("siglip", name, "all") for name in WITHOUT_CLS),
]


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kit]:
    folder = tmp_path_factory.mktemp("zoo")
    return {name: Kit.make(folder / name, t) for name, t in TOWERS.items()}


def options_of(method: pruning.Method, received: str | None = None) -> dict[str, Any]:
    """Defaults, but for layers: the tiny towers have three."""
    layers = {option.name: 2 for option in method.options if option.name.endswith("_layer")}
    return layers | ({"received": received} if received else {})


def build(kit: Kit, name: str, received: str | None) -> Vlm:
    options = options_of(pruning.get(name), received)
    return kit.load(f"{name}-{received}", method=name, keep=None if name == "none" else KEEP, options=options)


def reference(kit: Kit, vlm: Vlm, image: Any, seed: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """The method's NumPy code on transformers' features: indices, rows, and the decoder's input [1, S, D]."""
    method = pruning.get(vlm.config.pruning.method)
    options: dict[str, Any] = dict(vlm.config.pruning.options)
    inputs = kit.inputs([image], QUESTION)
    maps = expected(kit.tiny, kit.model, inputs["pixel_values"].numpy(), method.tower_layer(options))
    prompt = vlm.encoder.encode([Turn("user", QUESTION, 1)])
    embeds = kit.model.get_input_embeddings()
    with torch.no_grad():
        words = embeds(torch.from_numpy(prompt.ids))
        text = words[torch.from_numpy(np.atleast_1d(prompt.span(method.text_span(options))))].numpy()
    given = {name: value[0] for name, value in maps.items()}
    if method.needs & set(FROM_LAYER):
        given |= first_layer(kit.model, given["image_features"], text)
    kept, rows = method.pruned(
        keep=vlm.config.pruning.keep,
        text_embeds=text,
        seed=seed,
        grid=vlm.config.model.patch_grid,
        **given,
        **options,
    )
    place = int(prompt.image_positions[0])
    parts = [words[:place], torch.from_numpy(rows), words[place + 1 :]]
    return kept, rows, torch.cat(parts)[None]


class Inputs:
    """A decoder session that remembers what it was fed."""

    def __init__(self, vlm: Vlm) -> None:
        self.session: Any = vlm.chain.session("decoder")
        self.embeds: list[np.ndarray] = []
        vlm.chain._sessions[Part("decoder")] = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, inputs: Any, cache: Any = None) -> Any:
        self.embeds.append(np.array(inputs["inputs_embeds"]))
        return self.session.run(inputs, cache)


@pytest.mark.parametrize(("tower", "name", "received"), CASES)
def test_from_a_picture_to_an_answer(kits: dict[str, Kit], tower: str, name: str, received: str | None) -> None:
    kit = kits[tower]
    vlm = build(kit, name, received)
    # No more than is needed is made.
    needs = {*vlm.config.pruning.needs}
    outputs = {spec.name for spec in vlm.config.component("vision").outputs}
    assert outputs == {"image_features", *(needs & set(FROM_VISION))} | (
        {"cls_attention"} if tower != "siglip" else set()
    )
    inputs = Inputs(vlm)
    for seed, image in enumerate((picture(5), picture(9, (60, 120)))[: 2 if tower == "clip" else 1]):
        inputs.embeds.clear()
        result = vlm.generate(image, QUESTION, max_new_tokens=TOKENS, seed=seed)
        kept, rows, embeds = reference(kit, vlm, image, seed)
        assert result.kept_indices == [kept.tolist()]
        assert len(rows) == result.kept_tokens == vlm.config.pruning.keep
        np.testing.assert_allclose(inputs.embeds[0], embeds.numpy(), rtol=0, atol=1e-4)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        ids, _ = kit.generate(TOKENS, inputs_embeds=embeds, attention_mask=mask)
        assert result.token_ids == ids


@pytest.mark.parametrize("name", READING)
def test_on_engines(kits: dict[str, Kit], name: str) -> None:
    """The same answers where features and all that comes with them stay on a device."""
    kit = kits["clip"]
    out = trt_kit.make_dir(kit, name, method=name, keep=KEEP, max_images=2, options=options_of(pruning.get(name)))
    vlm, _ = trt_kit.load(out)
    twin = trtprune.load(out, provider="cpu", threads=1)
    images = [picture(5), picture(9, (60, 120))]
    expected_answer = twin.generate(images, QUESTION, max_new_tokens=TOKENS)
    assert same(vlm.generate(images, QUESTION, max_new_tokens=TOKENS), expected_answer)
    seen = vlm.features(images)
    assert set(seen[0].extras) == set(twin.features(images[:1])[0].extras)
    assert not isinstance(seen[0].image, np.ndarray)
    assert same(vlm.generate(seen, QUESTION, max_new_tokens=TOKENS), expected_answer)


@pytest.mark.parametrize("name", [name for name in READING if pruning.get(name).merges])
def test_merged_tokens_have_no_positions(kits: dict[str, Kit], name: str) -> None:
    with pytest.raises(BudgetError, match=f"positions='original': {name} merges tokens"):
        kits["clip"].load(f"{name}-original", method=name, keep=KEEP, positions="original")
