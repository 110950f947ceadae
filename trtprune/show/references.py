"""Methods by their NumPy references: the selection of a method without a build, and the places of merged tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune import pruning
from trtprune.arguments import arg
from trtprune.errors import BudgetError
from trtprune.pruning.base import TowerTraits
from trtprune.pruning.inputs import INPUTS, takes_newlines
from trtprune.runtime.cut_decoder import CutDecoder

if TYPE_CHECKING:
    from trtprune.backends.base import Array
    from trtprune.engine_dir import EngineDir
    from trtprune.pruning import BaseMethod
    from trtprune.runtime.features import Features
    from trtprune.runtime.viewing import View
    from trtprune.runtime.vlm import Vlm

__all__ = ["merged_into", "picture_inputs", "select"]


def select(vlm: Vlm, view: View, *, keep: int, method: str, seed: int | None = None) -> np.ndarray:
    """Kept indices, int64 [keep], of a viewed image: by the build's own method, or by the reference of another.

    Raises:
        BudgetError: for a budget, or a method, that this build cannot serve.
    """
    if method == vlm.config.pruning.method:
        return vlm.select(view, keep=keep, seed=seed)
    other = pruning.get(method)
    options = other.complete_options(None, TowerTraits.of(vlm.config.model))
    if other.inside:
        raise BudgetError(
            f"{arg('method', method)} prunes inside the decoder, and this build's decoder is not cut for it",
            hint=f"trtprune build --method {method}, and show that build",
        )
    plan, newlines = view.features.plan, _newlines(vlm.config, other.needs_of(options))
    settled, places = plan.without_choice(keep, newlines), plan.choices(newlines)
    if settled is not None:
        return settled
    inputs = {**_reference_inputs(vlm, view, other, places, options), **options}
    kept = other.reference(keep=keep, seed=seed, **inputs)
    return np.where(kept < 0, kept, places[np.maximum(kept, 0)])


def _newlines(config: EngineDir, needs: Collection[str]) -> str:
    """The newline rule of the build, as far as a method that reads these can follow it."""
    rule = config.vision.newlines
    return "drop" if rule == "candidates" and not takes_newlines(needs) else rule


def _reference_inputs(
    vlm: Vlm, view: View, method: BaseMethod, places: np.ndarray, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs of a method's reference from a viewed image and its prompt, on the host.

    Args:
        vlm: The build.
        view: The image, as it sees it.
        method: The method.
        places: The visual tokens that it chooses from.
        options: All of its options.
    """
    with vlm.using():
        fetch = vlm.chain.memory.to_host
        extras = {**view.features.extras, **vlm.pipeline.clip_text.read(view.prompt)}
        seen = replace(view.features, extras=extras)
        inputs = {
            "image_features": fetch(view.features.image),
            **picture_inputs(vlm.config, method, options, seen, fetch),
        }
        by_token = {name for name, entry in INPUTS.items() if entry.dims[0] == "N"} | {"image_features"}
        inputs |= {name: array[places] for name, array in inputs.items() if name in by_token}
        return {"text_embeds": fetch(view.text_embeds[view.prompt.span(method.text_span(options))]), **inputs}


def picture_inputs(
    config: EngineDir,
    method: BaseMethod,
    options: Mapping[str, Any],
    features: Features,
    fetch: Callable[[Array], np.ndarray],
) -> dict[str, Any]:
    """The method's inputs except text and seed, on the host.

    Args:
        config: The build of the features.
        method: The method.
        options: All of its options.
        features: The image's features.
        fetch: Function that copies an array to the host.

    Raises:
        BudgetError: naming a missing output of this build's vision graph.
    """
    hint = f"trtprune build --method {method.name}, and take that build"
    needs = f"{arg('method', method.name)} needs"
    needed = method.needs_of(options)
    found: dict[str, Any] = {}
    by_crop = method.of_each_crop(options)
    for name, entry in INPUTS.items():
        if name not in needed or entry.source in ("embed", ""):
            continue
        given = features.crops if name in by_crop else features.extras
        if name in given:
            found[name] = fetch(given[name])
        elif name.startswith("cls_") and not config.model.has_cls:
            raise BudgetError(
                f"{needs} {entry.words}; the vision tower of this model has no CLS token",
                hint="trtprune methods says what each needs",
            )
        else:
            graph = "vision graph" if entry.source == "vision" else "build"
            raise BudgetError(
                f"{needs} {entry.words}; the {graph} of {config.root.name} returns no {name}",
                hint=hint,
            )
    if "shallow_attention" in found:
        built = pruning.get(config.pruning.method).tower_layer(config.pruning.options)
        wanted = method.tower_layer(options)
        if built != wanted:
            raise BudgetError(
                f"{needs} {INPUTS['shallow_attention'].words}: layer {wanted}; the vision graph "
                f"of {config.root.name} returns that of layer {built}",
                hint=hint,
            )
    if "grid" in needed:
        if config.model.first_patch != 0:
            raise BudgetError(
                f"{needs} the grid of patches; this model's image features are not one a patch",
                hint="trtprune methods says what each needs",
            )
        found["grid"] = features.plan.grid
    return found


def merged_into(
    vlm: Vlm, view: View, *, keep: int, seed: int | None = None, name: str | None = None
) -> np.ndarray | None:
    """The row of each visual token of a viewed image, int64 [N]; None if the method does not merge.

    A row is named by one of its tokens, the same for all of its tokens; -1 for a token in no row.  For a method inside
    the decoder the rows are those of its last segment.  Computed in NumPy from inputs and outputs of the graphs.

    Args:
        vlm: The build.
        view: The image, as it sees it.
        keep, seed: As in :meth:`trtprune.runtime.Vlm.select`.
        name: A method other than the build's, with its default options.
    """
    info = vlm.config.pruning
    method = pruning.get(name or info.method)
    own = info.options if name in (None, info.method) else None
    options = method.complete_options(own, TowerTraits.of(vlm.config.model))
    total = view.features.visual_tokens
    trace = method.trace(total, options)
    if trace is not None:
        decoder = vlm.pipeline.decoder
        assert isinstance(decoder, CutDecoder)
        decoder.watch = trace
        try:
            vlm.select(view, keep=keep)
        finally:
            decoder.watch = None
        return trace.merged_into()
    if method.inside or not method.merges:
        return None
    into = np.full(total, -1)
    plan, newlines = view.features.plan, _newlines(vlm.config, method.needs_of(options))
    if plan.without_choice(keep, newlines) is None:
        places = plan.choices(newlines)
        inputs = {**_reference_inputs(vlm, view, method, places, options), **options}
        targets = method.merged_into(keep=keep, seed=seed, **inputs)
        into[places] = np.where(targets < 0, targets, places[np.maximum(targets, 0)])
    return into
