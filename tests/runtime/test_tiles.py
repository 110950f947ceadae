"""LLaVA-NeXT and LLaVA-OneVision from an image to an answer: the runtime against transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture, record
from tests.kit.vision_maps import expected
from tests.models.test_tiles import CASES, POINTS
from trtprune import BudgetError, BuildError, CheckpointError, InputError, Request, pruning
from trtprune.backends.running import Running
from trtprune.pruning.inputs import FROM_LAYER
from trtprune.variants import Variant, Variants

TOKENS = 32
TOLERANCE = 1e-4
# (width, height) of the images of a prompt: squares, thin ones, one pixel, larger than all tiles together.
PROMPTS: list[tuple[str, list[tuple[int, int]]]] = [
    ("Why?", [(90, 70)]),
    ("What is left of it?", [(31, 300)]),
    ("Which?", [(1, 1)]),
    ("Same?", [(400, 380), (7, 500)]),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda t: f"{t.family}-{t.tower}-{t.decoder}-{t.seed}")
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    more: dict[str, Any] = {"image_grid_pinpoints": POINTS}
    if request.param.family == "llava-onevision":
        more["vision_aspect_ratio"] = "anyres_max_2"
    return Kit.make(tmp_path_factory.mktemp("tiles"), replace(request.param, more=more, max_positions=1024))


def images_of(sizes: Sequence[tuple[int, int]]) -> list[Any]:
    return [picture(seed, size) for seed, size in enumerate(sizes)]


def rows_left(ids: np.ndarray, kept: Sequence[Sequence[int]], totals: Sequence[int]) -> np.ndarray:
    """Rows of an unpruned prompt that remain; ``totals`` are the visual tokens of each image."""
    mask = ids != tiny.IMAGE_TOKEN_ID
    places = np.split(np.flatnonzero(~mask), np.cumsum(totals)[:-1])
    for image, indices in zip(places, kept, strict=True):
        mask[image[list(indices)]] = True
    return np.flatnonzero(mask)


def test_unpruned(kit: Kit) -> None:
    """Ids and logits of 32 greedy tokens."""
    vlm = kit.load("none", method="none")
    recorder = record(vlm)
    for question, sizes in PROMPTS:
        images = images_of(sizes)
        inputs = kit.inputs(images, question)
        expected, logits = kit.generate(TOKENS, **inputs)
        recorder.logits.clear()
        result = vlm.generate(images, question, max_new_tokens=TOKENS)
        assert result.prompt_tokens == inputs["input_ids"].shape[1]
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=TOLERANCE)
        assert result.token_ids == expected


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_pruned(kit: Kit, positions: str) -> None:
    """transformers continues from the rows that the pruner left, numbered as the build says."""
    vlm = kit.load(positions, method="random", keep=9, positions=positions)
    recorder = record(vlm)
    for question, sizes in PROMPTS:
        images = images_of(sizes)
        plans = [vlm.pipeline.processor.plan(h, w, len(sizes)) for w, h in sizes]
        recorder.logits.clear()
        result = vlm.generate(images, question, max_new_tokens=TOKENS, seed=3)
        for plan, kept in zip(plans, result.kept_indices, strict=True):
            assert len(kept) == 9
            assert not plan.newlines[kept].any()
        inputs = kit.inputs(images, question)
        rows = rows_left(inputs["input_ids"][0].numpy(), result.kept_indices, [plan.tokens for plan in plans])
        embeds = kit.embeds(inputs)[:, rows]
        extra = {"position_ids": torch.from_numpy(rows)[None]} if positions == "original" else {}
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        expected, logits = kit.generate(TOKENS, inputs_embeds=embeds, attention_mask=mask, **extra)
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=TOLERANCE)
        assert result.token_ids == expected


def test_a_batch_answers_as_one_by_one(kit: Kit) -> None:
    """Images of different crop counts in one batch."""
    vlm = kit.load("batch", method="fastervlm" if kit.tiny.tower == "clip" else "divprune", keep=12)
    requests = [Request(images_of(sizes), question) for question, sizes in PROMPTS]
    together = vlm.generate_batch(requests, max_new_tokens=8)
    for request, (question, sizes), result in zip(requests, PROMPTS, together, strict=True):
        alone = vlm.generate(request.images, question, max_new_tokens=8)
        assert (result.token_ids, result.kept_indices) == (alone.token_ids, alone.kept_indices), sizes


def test_a_budget_above_what_an_image_has(kit: Kit) -> None:
    """The image stays as it is, newline tokens included; one with more is cut."""
    vlm = kit.load("large", method="random", keep=40)
    whole = kit.load("none", method="none")
    small, large = (5, 600), (400, 380)
    assert vlm.pipeline.processor.plan(600, 5).candidates.size <= 40
    one = vlm.generate(picture(1, small), "Why?", max_new_tokens=8)
    assert one.token_ids == whole.generate(picture(1, small), "Why?", max_new_tokens=8).token_ids
    assert one.kept_tokens == one.visual_tokens
    two = vlm.generate(picture(1, large), "Why?", max_new_tokens=8)
    assert (two.kept_tokens, two.visual_tokens > 40) == (40, True)


def test_newline_tokens_of_kept_lines_stay(kit: Kit) -> None:
    """newlines=keep: those of lines with a kept token, in their places, beside the budget."""
    image = picture(0, (90, 70))
    dropping = kit.load("dropped", method="random", keep=9)
    keeping = kit.load("newlines", method="random", keep=9, newlines="keep")
    (chosen,) = dropping.generate(image, "Why?", max_new_tokens=1, seed=1).kept_indices
    result = keeping.generate(image, "Why?", max_new_tokens=TOKENS, seed=1)
    inputs = kit.inputs([image], "Why?")
    total = int((inputs["input_ids"] == tiny.IMAGE_TOKEN_ID).sum())
    plan = dropping.pipeline.processor.plan(70, 90)
    ends = {int(plan.newline[i]) for i in chosen if plan.newline[i] >= 0}
    assert ends
    assert result.kept_indices == [sorted({*chosen, *ends})]
    embeds = kit.embeds(inputs)[:, rows_left(inputs["input_ids"][0].numpy(), result.kept_indices, [total])]
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    assert result.token_ids == kit.generate(TOKENS, inputs_embeds=embeds, attention_mask=mask)[0]


def test_the_layout_of_papers(kit: Kit) -> None:
    """Every crop gives all of its patches, and there is no newline token."""
    if kit.tiny.family != "llava-next":
        with pytest.raises(CheckpointError, match="layout='paper': not offered for this model"):
            kit.load("paper", method="none", layout="paper")
        return
    vlm = kit.load("paper", method="none", layout="paper")
    assert vlm.config.vision.tokens == (3 * 16, 5 * 16)
    result = vlm.generate(picture(0, (90, 70)), "Why?", max_new_tokens=2)
    assert result.visual_tokens == result.kept_tokens == 5 * 16
    with pytest.raises(BuildError, match="newlines='keep': this model has no newline tokens"):
        kit.load("no-newlines", method="random", keep=9, layout="paper", newlines="keep")


def test_newlines_of_a_method_inside_the_decoder(kit: Kit) -> None:
    with pytest.raises(BuildError, match="newlines='drop': fastv prunes inside the decoder"):
        kit.load("inside", method="fastv", options={"k": 1}, keep=40, newlines="drop")


def test_every_method_chooses_as_its_reference(kit: Kit) -> None:
    """Graph and NumPy see the same candidates: no newline token, and what shows the image before padding."""
    question, size, refused = "What is left of it?", (90, 70), set()
    cases = [(method, {}) for method in pruning.all_methods()]
    for method, given in [*cases, (pruning.get("cdpruner"), {"relevance": "prompt"})]:
        options = {"object_layer": 1} if method.name == "hiprune" else given
        if method.inside or method.name == "none":
            continue
        try:
            vlm = kit.load("-".join([method.name, *given]), method=method.name, keep=12, options=options)
        except BudgetError:
            refused.add(method.name)
            continue
        view = vlm.look(picture(0, size), question)
        if method.needs & {*FROM_LAYER}:
            # What it reads of the decoder is computed in its graph alone.
            assert len(vlm.select(view, keep=12)) == 12
            continue
        plan = view.features.plan
        candidates = plan.candidates
        assert len(candidates) < plan.tokens
        extras = {name: np.asarray(array) for name, array in view.features.extras.items()}
        inputs = {name: array if name == "cls_feature" else array[candidates] for name, array in extras.items()}
        span = view.prompt.span(vlm.config.pruning.text_span)
        inputs |= {"text_embeds": np.asarray(view.text_embeds)[span], "grid": plan.grid[candidates], "seed": 0}
        known = {name: inputs[name] for name in vlm.config.pruning.needs if name in inputs}
        features = np.asarray(view.features.image)[candidates]
        places = method.reference(features, keep=12, **{**known, **vlm.config.pruning.options})
        expected = np.where(places < 0, places, candidates[places])
        assert vlm.select(view, keep=12).tolist() == expected.tolist(), method.name
    assert refused == {"cdpruner", "trim"}


def test_newline_tokens_as_candidates(kit: Kit) -> None:
    """divprune chooses among all tokens, as its authors do; what reads the tower cannot."""
    vlm = kit.load("among", method="divprune", keep=12, newlines="candidates")
    assert vlm.config.vision.newlines == "candidates"
    question = "Why?"
    for seed, size in enumerate([(90, 70), (31, 300), (400, 380)]):
        image = picture(seed, size)
        view = vlm.look(image, question)
        features = np.asarray(view.features.image)
        total = len(features)
        for keep in (1, 12, total - 1):
            wanted = pruning.get("divprune").reference(features, keep=keep)
            assert vlm.select(view, keep=keep).tolist() == wanted.tolist(), (size, keep)
        # With one left out, what is left out is a token like another: all newline tokens are the same row.
        assert view.features.plan.newlines[wanted].sum() >= view.features.plan.newlines.sum() - 1
        result = vlm.generate(image, question, keep=12, max_new_tokens=8)
        assert result.kept_tokens == 12
        inputs = kit.inputs([image], question)
        rows = rows_left(inputs["input_ids"][0].numpy(), result.kept_indices, [total])
        embeds = kit.embeds(inputs)[:, rows]
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        assert result.token_ids == kit.generate(8, inputs_embeds=embeds, attention_mask=mask)[0]
        whole = vlm.generate(image, question, keep=min(total, vlm.config.pruning.keep_range[1]), max_new_tokens=1)
        assert whole.kept_tokens == total
    with pytest.raises(BuildError, match=r"newlines='candidates': method adafv reads .*_attention, which newline"):
        kit.load("tower", method="adafv", keep=9, newlines="candidates")


def test_further_methods_see_the_same_tokens(kit: Kit) -> None:
    """A variant of a build has its layout and its rule for newline tokens."""
    settings: dict[str, Any] = {"newlines": "keep"}
    if kit.tiny.family == "llava-next":
        settings = {"layout": "paper"}
    base = kit.load("base", method="random", keep=9, **settings).config
    with Variants(base.root, Running(threads=1)) as variants:
        other = variants.config(Variant.make("divprune"))
        assert other.vision == replace(base.vision, saliency=())
    among = kit.load("among-base", method="divprune", keep=9, newlines="candidates").config
    with Variants(among.root, Running(threads=1)) as variants:
        rules = [variants.config(Variant.make(m, tower=variants.tower)).vision.newlines for m in ("dart", "adafv")]
        assert rules == ["candidates", "drop"]


@pytest.mark.parametrize("size", [(90, 70), (31, 300), (7, 500)])
def test_visionzip_of_each_crop(kit: Kit, size: tuple[int, int]) -> None:
    """Rows and indices are the reference's; where the tower has a CLS token, a row of each crop is transformers'."""
    has_cls = kit.tiny.tower != "siglip"
    vlm = kit.load("zipped", method="visionzip", keep=12, options={"crops": "each"})
    question, image = "Why?", picture(0, size)
    view = vlm.look(image, question)
    plan = view.features.plan
    candidates = plan.candidates
    needs = {*vlm.config.pruning.needs} - {"cls_feature", "grid"}
    inputs = {name: np.asarray(view.features.extras[name])[candidates] for name in needs}
    inputs["grid"] = plan.grid[candidates]
    if has_cls:
        pixels = kit.inputs([image], question)["pixel_values"].flatten(0, 1)[: plan.crops]
        inputs["cls_feature"] = expected(kit.tiny, kit.model, pixels.numpy())["cls_feature"]
    features = np.asarray(view.features.image)[candidates]
    method = pruning.get("visionzip")
    places, rows = method.pruned(features, keep=12, **{**inputs, **vlm.config.pruning.options})
    assert (places < 0).sum() == (len({*plan.grid[candidates, 0].tolist()}) if has_cls else 0)
    wanted = np.where(places < 0, places, candidates[np.maximum(places, 0)])
    kept, found = vlm.pipeline.pruner.prune(view.features, None, 12, 0)  # type: ignore[union-attr]
    assert kept.tolist() == wanted.tolist() == vlm.select(view, keep=12).tolist()
    np.testing.assert_allclose(np.asarray(found), rows, rtol=0, atol=TOLERANCE)
    assert vlm.generate(image, question, max_new_tokens=2).kept_indices == [wanted.tolist()]


def test_a_share_of_each_image(kit: Kit) -> None:
    """keep_ratio is a budget of each image's own; a request's has priority over the call's."""
    vlm = kit.load("share", method="random", keep=9)
    sizes = [(90, 70), (300, 31)]
    plans = [vlm.pipeline.processor.plan(h, w, len(sizes)) for w, h in sizes]
    result = vlm.generate(images_of(sizes), "Same?", keep_ratio=0.25, max_new_tokens=2)
    assert [len(kept) for kept in result.kept_indices] == [round(0.25 * plan.tokens) for plan in plans]
    requests = [Request(images_of(sizes), "Same?", keep_ratio=0.1), Request(images_of(sizes), "Same?", keep=3)]
    first, second = vlm.generate_batch(requests, keep_ratio=0.25, max_new_tokens=2)
    assert [len(kept) for kept in first.kept_indices] == [max(1, round(0.1 * plan.tokens)) for plan in plans]
    assert [len(kept) for kept in second.kept_indices] == [3, 3]
    with pytest.raises(InputError, match=r"keep=3 and keep_ratio=0.5 exclude each other"):
        vlm.generate(images_of(sizes), "Same?", keep=3, keep_ratio=0.5)
    for wrong in (0, 1.5, -1, float("nan"), True, "a"):
        with pytest.raises(InputError, match="keep_ratio"):
            vlm.generate(images_of(sizes), "Same?", keep_ratio=wrong)
    narrow = kit.load("narrow", method="random", keep=9, keep_range=(8, 12))
    with pytest.raises(BudgetError, match="outside 8 to 12"):
        narrow.generate(images_of(sizes), "Same?", keep_ratio=0.9)


def test_no_padding_is_kept_before_the_image(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An image that is padded to a square: padding only fills up what all of the image leaves of a budget."""
    kit = Kit.make(tmp_path_factory.mktemp("pads") / "model", tiny.Tiny(image_size=84))
    path = kit.path / "preprocessor_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"image_processor_type": "LlavaImageProcessor", "do_pad": True})
    )
    for method in ("adafv", "divprune", "visionzip"):
        vlm = kit.load(f"pads-{method}", method=method, keep=9)
        for size in ((90, 30), (30, 90), (60, 60)):
            view = vlm.look(picture(2, size), "Why?")
            padding = set(np.flatnonzero(view.features.plan.padding))
            assert bool(padding) == (size[0] != size[1])
            for keep in (1, 9, 12, 13, 20, 35, 36):
                kept = {int(i) for i in vlm.select(view, keep=keep) if i >= 0}
                real = set(range(36)) - padding
                assert not kept & padding or kept > real, (method, size, keep)
                assert len(kept) <= keep
