"""Every registered method on every family whose towers or connectors are of another kind than LLaVA's.

A method serves a family, and chooses what its NumPy code chooses from transformers' own modules, or it is refused with
the methods that serve.  What it reads of the tower is computed from transformers' attention, without a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from tests.kit import tiny
from tests.kit.first_layer import first_layer
from tests.kit.in_llm_generate import generate
from tests.kit.runtime_kit import Kit, picture
from tests.kit.vision_maps import expected
from tests.models.test_packed import Maps
from tests.runtime.test_three_axes import numbered, record
from trtprune import pruning
from trtprune.errors import BudgetError
from trtprune.pruning.base import TowerTraits
from trtprune.pruning.inputs import FROM_CLIP, FROM_LAYER
from trtprune.runtime import Vlm
from trtprune.text.template import Turn

QUESTION = "What is left of it?"
KEEP = 7
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A tiny checkpoint of a family, an image for it, and the tower's outputs from transformers."""

    tiny: tiny.Tiny
    oracle: Callable[[Kit, Vlm, Any, int | None], Arrays]
    size: tuple[int, int] = (200, 130)
    has_cls: bool = False
    refused: tuple[str, ...] = ()
    """Methods that need an option here, which the error names."""
    levels: bool = False
    """Whether visual tokens have DeepStack levels, so that none is merged with another."""


def maps_of(kit: Kit, vlm: Vlm, image: Any) -> Maps:
    """The maps of a tower that reads an image's patches in one row."""
    prepared = vlm.pipeline.processor.prepare(image)
    rows, columns = prepared.plan.grid[-1, 1:] + 1
    return Maps(kit.model, torch.from_numpy(prepared.pixel_values), torch.tensor([[1, 2 * rows, 2 * columns]]))


def packed(kit: Kit, vlm: Vlm, image: Any, shallow: int | None) -> Arrays:
    """Of a tower that reads an image's patches in one row."""
    maps = maps_of(kit, vlm, image)
    full = getattr(kit.model.config.vision_config, "fullatt_block_indexes", [kit.tiny.vision_layers - 1])
    deep = max(full)
    found = {
        "image_features": maps.features,
        "mean_query_attention": maps.mean_query(deep),
        "deep_attention": maps.received(deep),
        "vision_features": maps.last.mean(1).numpy(),
        "vision_keys": maps.keys(deep),
    }
    return found if shallow is None else found | {"shallow_attention": maps.received(shallow - 1)}


def tiled(kit: Kit, vlm: Vlm, image: Any, shallow: int | None) -> Arrays:
    """Of crops whose visual tokens lie one behind another."""
    crops = expected(kit.tiny, kit.model, vlm.pipeline.processor.prepare(image).pixel_values, shallow)
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in crops.items()}


FAMILIES = {
    "qwen2.5-vl": Case(tiny.Tiny(family="qwen2.5-vl", seed=11, max_positions=1024), packed),
    "qwen2-vl": Case(tiny.Tiny(family="qwen2-vl", seed=12, max_positions=1024), packed),
    "qwen3-vl": Case(tiny.Tiny(family="qwen3-vl", seed=16, layers=4, max_positions=1024), packed, levels=True),
    "smolvlm": Case(
        tiny.Tiny(
            family="smolvlm",
            tower="smolvlm",
            seed=13,
            feature_layer=4,
            vision_layers=4,
            max_positions=1024,
            more={"scale_factor": 2},
        ),
        tiled,
    ),
    "internvl": Case(
        tiny.Tiny(
            family="internvl",
            tower="internvl",
            decoder="qwen2",
            seed=14,
            feature_layer=-1,
            max_positions=1024,
            image_size=56,
            patch_size=14,
            more={"downsample_ratio": 0.5},
        ),
        tiled,
        has_cls=True,
        refused=("visionzip",),
    ),
}
FAST = ("qwen2.5-vl",)


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Kit]:
    made: dict[str, Kit] = {}

    def kit(family: str) -> Kit:
        if family not in made:
            folder = tmp_path_factory.mktemp("families") / family
            made[family] = Kit.make(folder, FAMILIES[family].tiny)
        return made[family]

    return kit


METHODS = [(name, {}) for name in pruning.names(inside=False) if name != "none"]
METHODS += [("cdpruner", {"relevance": "prompt"})]
METHODS += [(name, {"received": "all"}) for name, _ in METHODS if pruning.get(name).without_cls]


def _id(value: Any) -> str:
    return value if isinstance(value, str) else " ".join(f"{k}={v}" for k, v in value.items()) or "default"


@pytest.mark.parametrize(("name", "options"), METHODS, ids=_id)
@pytest.mark.parametrize("family", [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES])
def test_every_method(kits: Callable[[str], Kit], family: str, name: str, options: dict[str, Any]) -> None:
    kit, case, method = kits(family), FAMILIES[family], pruning.get(name)
    options = options | {option.name: 2 for option in method.options if option.name.endswith("_layer")}
    label = "-".join([name, *map(str, options.values())])
    needs = method.needs_of(method.complete_options(options, TowerTraits(has_cls=case.has_cls)))
    if needs & {*FROM_CLIP}:
        with pytest.raises(BudgetError, match="needs CLIP's text tower") as error:
            kit.load(label, method=name, keep=KEEP, options=options)
        assert "fastervlm" in str(error.value.hint)
        return
    if case.levels and method.merges:
        with pytest.raises(BudgetError, match="3 DeepStack levels, which cannot be merged") as error:
            kit.load(label, method=name, keep=KEEP, options=options)
        able = str(error.value.hint).partition("one of: ")[2].split(", ")
        assert {"divprune", "vispruner", "fastv"} <= {*able}
        assert name not in able
        return
    if name in case.refused:
        with pytest.raises(BudgetError, match="the projector of this model takes 4 patches at once") as error:
            kit.load(label, method=name, keep=KEEP, options=options)
        assert "options={'cls_token': 'drop'}; or method with one of: " in str(error.value.hint)
        options = options | {"cls_token": "drop"}
        needs = method.needs_of(method.complete_options(options, TowerTraits(has_cls=case.has_cls)))
    vlm = kit.load(label, method=name, keep=KEEP, options=options)
    image = picture(3, case.size)
    given = case.oracle(kit, vlm, image, method.tower_layer(options))
    view = vlm.look(image, QUESTION)
    words = kit.model.get_input_embeddings()(torch.from_numpy(view.prompt.ids)).detach().numpy()
    text = words[view.prompt.span(vlm.config.pruning.text_span)]
    candidates = view.features.plan.candidates
    given = {name: array[candidates] for name, array in given.items()}
    if needs & {*FROM_LAYER}:
        given |= first_layer(kit.model, given["image_features"], text)
    given |= {"text_embeds": text, "grid": view.features.plan.grid[candidates], "seed": 5}
    known = {name: array for name, array in given.items() if name in {*needs, "image_features"}}
    kept = method.reference(keep=KEEP, **known, **vlm.config.pruning.options)
    assert 1 < KEEP < len(candidates)
    assert vlm.select(view, keep=KEEP, seed=5).tolist() == candidates[kept].tolist()
    # The saliency of such a tower is named.
    read = {"cls_attention", "mean_query_attention", "deep_attention"} & {*needs}
    assert {*vlm.config.vision.saliency} >= read


INSIDE: dict[str, dict[str, Any]] = {
    "fastv": {"method": "fastv", "keep": 24, "options": {"k": 1}},
    "pyramiddrop": {"method": "pyramiddrop", "keep": 24, "options": {"first": 1}},
    "sparsevlm": {"method": "sparsevlm", "options": {"schedule": "0:18,2:9"}},
    "sparsevlm-2": {"method": "sparsevlm", "options": {"version": "2.0", "heads": 3, "schedule": "0:18,2:9"}},
}


LEVELS = {
    **{name: INSIDE[name] for name in ("fastv", "pyramiddrop")},
    "sparsevlm": {"method": "sparsevlm", "options": {"schedule": "2:12,3:5"}},
    "sparsevlm-0": {"method": "sparsevlm", "options": {"schedule": "0:18,2:9", "recycle": 0}},
    "sparsevlm-2": INSIDE["sparsevlm-2"],
}
"""Where visual tokens have levels to come, none is merged with another."""


@pytest.fixture(scope="module")
def deep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """A decoder of more layers, to be cut."""
    layers = {"qwen2.5-vl": 5, "qwen3-vl": 8}[request.param]
    case = tiny.Tiny(family=request.param, seed=17, layers=layers, max_positions=1024)
    kit = Kit.make(tmp_path_factory.mktemp("families") / f"deep-{request.param}", case)
    kit.model.set_attn_implementation("eager")
    return kit


@pytest.fixture(scope="module")
def deep_internvl(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    case = replace(FAMILIES["internvl"].tiny, seed=18, layers=5)
    kit = Kit.make(tmp_path_factory.mktemp("families") / "deep-internvl", case)
    kit.model.set_attn_implementation("eager")
    return kit


def rows_of(kit: Kit, vlm: Vlm, images: list[Any], ids: np.ndarray) -> tuple[Any, np.ndarray, list[tuple[int, int]]]:
    """The whole prompt's embeddings [S, D], with DeepStack levels behind them [S, (1 + L) · D]; the image, time, row
    and column of each row (-1 for text), and the images' spans."""
    rows, places, spans = [], [], []
    for word, number in zip(kit.model.get_input_embeddings()(torch.from_numpy(ids)).detach(), ids, strict=True):
        if number != tiny.IMAGE_TOKEN_ID:
            rows.append(word[None])
            places.append([-1, 0, 0, 0])
            continue
        image = len(spans)
        grid = vlm.pipeline.processor.prepare(images[image]).plan.grid
        maps = maps_of(kit, vlm, images[image])
        rows.append(torch.from_numpy(maps.features if maps.levels is None else np.hstack((maps.features, maps.levels))))
        spans.append((len(places), len(places) + len(grid)))
        places += [[image, 0, row, column] for _, row, column in grid.tolist()]
    width = max(row.shape[1] for row in rows)
    return torch.cat([pad(row, (0, width - row.shape[1])) for row in rows]), np.array(places), spans


@pytest.mark.parametrize(
    ("deep", "name"),
    [*(("qwen2.5-vl", name) for name in INSIDE), *(("qwen3-vl", name) for name in LEVELS)],
    indirect=["deep"],
)
def test_inside_the_decoder(deep: Kit, name: str) -> None:
    """The published steps between transformers' own layers: the same answer follows, from one image and from two."""
    settings = (LEVELS if deep.tiny.family == "qwen3-vl" else INSIDE)[name]
    vlm = deep.load(f"inside-{name}", max_image_pixels=784 * 40, **settings)
    info, recorder = vlm.config.pruning, record(vlm)
    assert info.schedule is not None
    for count in (1, 2):
        recorder.logits.clear()
        images = [picture(30 + i, size) for i, size in enumerate([(200, 130), (130, 200)][:count])]
        ids = vlm.encoder.encode([Turn("user", QUESTION, count)]).ids
        rows, places, spans = rows_of(deep, vlm, images, ids)
        embeds, *levels = rows.split(deep.tiny.hidden, dim=1)
        assert {stop - start for start, stop in spans} == {35}

        def number(rows: torch.Tensor, places: np.ndarray = places) -> tuple[torch.Tensor, int]:
            positions, following = numbered(places, rows.tolist(), vlm.config.positions.rule)
            return torch.from_numpy(positions), following

        options = {"version": info.options.get("version", "1.0"), "heads": info.options.get("heads", 0)}
        options |= {"levels": levels, "recycle": info.options.get("recycle") != 0}
        kept = list(info.schedule.kept(info.keep, 35))
        points = list(info.schedule.points)
        assert all(number < 35 for number in kept)
        found = generate(deep.model, embeds, spans, 8, info.method, points, kept, number=number, **options)
        result = vlm.generate(images, QUESTION, max_new_tokens=8, ignore_eos=True)
        assert result.token_ids == found.ids
        logits = torch.stack(found.logits).numpy()
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", INSIDE)
def test_inside_the_decoder_of_internvl(deep_internvl: Kit, name: str) -> None:
    """The same with single numbers for positions, and texts around each image."""
    kit = deep_internvl
    vlm = kit.load(f"inside-{name}", **INSIDE[name])
    info, recorder = vlm.config.pruning, record(vlm)
    assert info.schedule is not None
    for count in (1, 2):
        recorder.logits.clear()
        images = [picture(40 + i, (200, 130)) for i in range(count)]
        inputs = kit.inputs(images, QUESTION)
        visual = np.flatnonzero(inputs["input_ids"][0].numpy() == tiny.IMAGE_TOKEN_ID)
        runs = np.split(visual, np.flatnonzero(np.diff(visual) > 1) + 1)
        spans = [(int(run[0]), int(run[-1]) + 1) for run in runs]
        (tokens,) = {stop - start for start, stop in spans}
        assert len(spans) == count
        options = {"version": info.options.get("version", "1.0"), "heads": info.options.get("heads", 0)}
        kept, points = list(info.schedule.kept(info.keep, tokens)), list(info.schedule.points)
        found = generate(kit.model, kit.embeds(inputs)[0], spans, 8, info.method, points, kept, **options)
        result = vlm.generate(images, QUESTION, max_new_tokens=8, ignore_eos=True)
        assert result.token_ids == found.ids
        logits = torch.stack(found.logits).numpy()
        np.testing.assert_allclose(np.concatenate(recorder.logits), logits, rtol=0, atol=3e-4)
