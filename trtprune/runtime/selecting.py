"""What a method reads of a picture for its NumPy reference, and where each visual token of a picture went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune import pruning
from trtprune.arguments import arg
from trtprune.errors import BudgetError
from trtprune.pruning.inputs import INPUTS
from trtprune.runtime.chain import Features

if TYPE_CHECKING:
    from trtprune.backends.base import Array
    from trtprune.engine_dir import EngineDir
    from trtprune.pruning import Method
    from trtprune.runtime.vlm import View, Vlm

__all__ = ["merged_into", "picture_inputs", "select"]


def select(vlm: Vlm, view: View, *, keep: int, method: str | None, seed: int | None) -> np.ndarray:
    """As :meth:`trtprune.runtime.Vlm.select`."""
    info = vlm.config.pruning
    if method in (None, info.method) and vlm.chain.segments:
        return _select_inside(vlm, view, vlm.chain.check_keep(keep))
    if method is None or method == info.method:
        text = view.text_embeds[view.prompt.span(info.text_span)]
        given = vlm.clip_text.read(view.prompt)
        return vlm.chain.prune(view.features, text, vlm.chain.check_keep(keep), seed or 0, given)[0]
    other = pruning.get(method)
    if isinstance(other, pruning.InLlmMethod):
        raise BudgetError(
            f"{arg('method', method)} prunes inside the decoder, and this build's decoder is not cut for it",
            hint=f"trtprune build --method {method}, and show that build",
        )
    fetch = vlm.chain.memory.to_host
    seen = Features(view.features.image, {**view.features.extras, **vlm.clip_text.read(view.prompt)})
    return other.reference(
        fetch(view.features.image),
        keep=keep,
        text_embeds=fetch(view.text_embeds[view.prompt.span(other.text_span())]),
        seed=seed,
        **picture_inputs(vlm.config, other, seen, fetch),
    )


def _select_inside(vlm: Vlm, view: View, keep: int) -> np.ndarray:
    """What of a viewed picture is left in the decoder's last segment, for the view's prompt."""
    everything = np.arange(vlm.config.model.visual_tokens)
    layout = vlm.lay_out(view.prompt, view.text_embeds, [view.features.image], [everything], keep)
    cache = vlm.chain.pool.take(1, len(layout.ids))
    try:
        vlm.chain.prefill([layout], cache)
        return vlm.chain.selected(cache)[0][0][0]
    finally:
        vlm.chain.pool.give_back(cache)


def picture_inputs(
    config: EngineDir, method: Method, features: Features, fetch: Callable[[Array], np.ndarray]
) -> dict[str, Any]:
    """Everything the method needs but text and seed, on the host.

    Args:
        config: The build that made the features.
        method: With its default options.
        features: Of the picture.
        fetch: Brings an array to the host.

    Raises:
        BudgetError: naming what this build's vision graph does not return.
    """
    hint = f"trtprune build --method {method.name}, and take that build"
    needs = f"{arg('method', method.name)} needs"
    found: dict[str, Any] = {}
    for name, entry in INPUTS.items():
        if name not in method.needs or entry.source == "embed":
            continue
        if name in features.extras:
            found[name] = fetch(features.extras[name])
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
        wanted = method.tower_layer()
        if built != wanted:
            raise BudgetError(
                f"{needs} {INPUTS['shallow_attention'].words}: layer {wanted}; the vision graph "
                f"of {config.root.name} returns that of layer {built}",
                hint=hint,
            )
    if "grid" in method.needs:
        rows, columns = config.model.patch_grid
        if config.model.first_patch != 0 or rows * columns != config.model.visual_tokens:
            raise BudgetError(
                f"{needs} the grid of patches; this model's image features are not one a patch",
                hint="trtprune methods says what each needs",
            )
        found["grid"] = (rows, columns)
    return found


def merged_into(
    vlm: Vlm, view: View, *, keep: int, seed: int | None = None, name: str | None = None
) -> np.ndarray | None:
    """Where each visual token of a viewed picture went, int64 [N]; None if the build's method merges nothing.

    ``name`` is another method, with its default options.

    The number of a token of the same row, one for all of a row; -1 where it went into none. Of a method inside the
    decoder: of the rows that its last segment gets. Found in NumPy from what the graphs read and returned.
    """
    info = vlm.config.pruning
    method = pruning.get(name or info.method)
    options = method.validate_options(info.options if name in (None, info.method) else None)
    fetch = vlm.chain.memory.to_host
    if isinstance(method, pruning.InLlmMethod):
        if not method.merged_counts(vlm.config.model.visual_tokens, options)[1]:
            return None
        trace = _Trace(method, options, vlm.config.model.visual_tokens)
        segments = vlm.chain.segments
        assert segments is not None
        segments.watch = trace
        try:
            vlm.select(view, keep=keep)
        finally:
            segments.watch = None
        return trace.merged_into()
    if not method.merges:
        return None
    seen = Features(view.features.image, {**view.features.extras, **vlm.clip_text.read(view.prompt)})
    return method.merged_into(
        fetch(view.features.image),
        keep=keep,
        text_embeds=fetch(view.text_embeds[view.prompt.span(method.text_span(options))]),
        seed=seed,
        **picture_inputs(vlm.config, method, seen, fetch),
        **options,
    )


class _Trace:
    """Follows the tokens of one image through the prune points of a decoder."""

    def __init__(self, method: pruning.InLlmMethod, options: Mapping[str, Any], tokens: int) -> None:
        self._method, self._options, self._tokens = method, options, tokens
        self._members = [np.array([token]) for token in range(tokens)]
        """Which tokens of the image are in each row, at present."""

    def __call__(self, states: np.ndarray, attention: np.ndarray, kept: np.ndarray) -> None:
        scores = self._method.rate(attention.astype(np.float32), **self._options)
        cluster = self._method.clusters(states.astype(np.float32), scores, kept, **self._options)
        before = self._members
        self._members = [before[place] for place in kept]
        for number in range(int(cluster.max()) + 1):
            self._members.append(np.concatenate([before[place] for place in np.flatnonzero(cluster == number)]))

    def merged_into(self) -> np.ndarray:
        found = np.full(self._tokens, -1, np.int64)
        for members in self._members:
            found[members] = members.min()
        return found
