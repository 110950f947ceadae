"""The method and the budget of a build, checked against the model before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune import pruning
from trtprune.arguments import arg
from trtprune.engine_dir import POSITIONS, PositionsInfo, PruningInfo
from trtprune.errors import BudgetError
from trtprune.pruning.base import TowerTraits
from trtprune.pruning.inputs import FROM_CLIP, INPUTS, read_of_run
from trtprune.tensor_names import DEEP_ATTENTION, SALIENCY, SHALLOW_ATTENTION

if TYPE_CHECKING:
    from trtprune.engine_dir import EngineDir
    from trtprune.models import ModelSpec
    from trtprune.pruning import BaseMethod

__all__ = [
    "DEFAULT_KEEP",
    "check_keep",
    "check_needs",
    "describe_budget",
    "describe_build",
    "describe_served",
    "resolve_budget",
    "resolve_positions",
]

DEFAULT_KEEP = 64
CLIP_TOWER = "clip_vision_model"


LARGEST_MAP = 2_700_000_000
"""Bytes of the largest attention map that a method may read.

From 6,144 patches on AngelSlim takes the mean query instead; their map of 16 heads has 2.4 GB.  Head by head that is
25,980 patches.
"""


def describe_budget(tokens: int, kept: int) -> str:
    """The line of every command that prunes, e.g. ``576 → 64 visual tokens (11.1 % kept)``."""
    return f"{tokens} → {kept} visual tokens ({100 * kept / tokens:.1f} % kept)"


def describe_build(made: EngineDir) -> str:
    """What a build does with an image's tokens: the budget, or the schedule of a decoder that prunes.

    Where images differ in their visual tokens: ``576 to 2928 → 640 visual tokens (21.9 to 100.0 % kept)``.
    """
    info, (least, most) = made.pruning, made.vision.tokens
    if info.schedule is not None:
        words = info.schedule.describe(info.keep, most)
        return words if least == most else f"{words} (the largest image; the smallest has {least} visual tokens)"
    if least == most:
        return describe_budget(most, info.keep)
    shares = [100 * min(1.0, info.keep / tokens) for tokens in (most, least)]
    kept = " to ".join(dict.fromkeys(f"{share:.1f}" for share in shares))
    return f"{least} to {most} → {info.keep} visual tokens ({kept} % kept)"


def describe_served(made: EngineDir) -> str:
    """The budgets of a build, e.g. ``any budget from 1 to 576``, or a list if there are few; empty for one."""
    info = made.pruning
    low, high = info.keep_range
    if low == high:
        return ""
    if info.schedule is not None:
        served = [keep for keep in info.schedule.served(made.model.visual_tokens) if low <= keep <= high]
        if len(served) <= high - low:
            return "budgets " + ", ".join(map(str, served))
    return f"any budget from {low} to {high}"


def check_keep(made: EngineDir, keep: int | None) -> int:
    """The budget of a run; None: the build's default.

    Raises:
        BudgetError: for a budget that the build does not serve.
    """
    low, high = made.pruning.keep_range
    if keep is None:
        return made.pruning.keep
    if not low <= keep <= high:
        raise BudgetError(
            f"{arg('keep', keep)}: outside {low} to {high}, the {arg('keep_range')} of {made.root}",
            hint=f"choose another {arg('keep')}, or build with a wider {arg('keep_range')}",
        )
    return keep


def check_needs(method: BaseMethod, spec: ModelSpec, options: Mapping[str, Any], *, clip: bool = False) -> None:
    """Refuses a method with an input that this model does not have.

    Raises:
        BudgetError: naming ``--method``, with a hint that lists the methods this model can serve, or the option that
            names a layer.
    """
    missing = _missing(method, options, spec, clip)
    if missing is not None:
        able = _able(spec, clip)
        hint = f"{arg('method')} with one of: {', '.join(able)}"
        if method.name in able:
            own = method.complete_options(None, TowerTraits.of(spec))
            other = {name: value for name, value in own.items() if options.get(name) != value}
            hint = f"{arg('options', other)}; or {hint}"
        else:
            hint = "; or ".join((*_ways_without(method, options, spec, clip), hint))
        if not clip and _missing(method, options, spec, True) is None:
            hint = f"{arg('clip')} CHECKPOINT, the CLIP that the model's vision tower was taken from; or {hint}"
        raise BudgetError(f"{arg('method', method.name)} needs {missing}", hint=hint)
    _check_levels(method, spec, options, clip)
    _check_map(method, spec, options)
    method.check_heads(spec.num_heads, options)
    layer = method.tower_layer(options)
    if layer is not None and layer > spec.tower_layers:
        flag = next((arg("options", {name: layer}) for name in options if name.endswith("_layer")), "the layer")
        raise BudgetError(
            f"{flag}: method {method.name} reads that layer of the vision tower, of which this model uses "
            f"{spec.tower_layers}",
            hint=f"a layer from 1 to {spec.tower_layers}",
        )


def _check_levels(method: BaseMethod, spec: ModelSpec, options: Mapping[str, Any], clip: bool) -> None:
    """Refuses a method that merges visual tokens while they carry DeepStack levels, which have no merged form."""
    if not _merges_levels(method, spec, options):
        return
    ways = []
    if method.without_merging and not _merges_levels(method, spec, {**options, **method.without_merging}):
        ways.append(arg("options", method.without_merging))
    ways.append(f"{arg('method')} with one of: {', '.join(_able(spec, clip))}")
    raise BudgetError(
        f"{arg('method', method.name)} merges visual tokens, and those of this model bring along "
        f"{spec.deepstack_levels} DeepStack levels, which cannot be merged, for the language model's first layers",
        hint="; or ".join(ways),
    )


def _able(spec: ModelSpec, clip: bool) -> list[str]:
    """The methods that serve a model with their own options."""
    own = {method: method.complete_options(None, TowerTraits.of(spec)) for method in pruning.all_methods()}
    return [method.name for method, options in own.items() if _serves(method, options, spec, clip)]


def _serves(method: BaseMethod, options: Mapping[str, Any], spec: ModelSpec, clip: bool) -> bool:
    """Whether a method finds in a model what it needs, and layers to cut the decoder behind."""
    try:
        return _missing(method, options, spec, clip) is None and not _merges_levels(method, spec, options)
    except BudgetError:  # a decoder that is too shallow
        return False


def _merges_levels(method: BaseMethod, spec: ModelSpec, options: Mapping[str, Any]) -> bool:
    if not spec.deepstack_levels or not method.merges_with(options):
        return False
    plan = method.plan(spec.num_layers, options)
    return plan is None or plan.points[0] + 1 < spec.deepstack_levels


def _check_map(method: BaseMethod, spec: ModelSpec, options: Mapping[str, Any]) -> None:
    """Refuses the whole attention map of a tower where the largest image's takes more memory than can be afforded."""
    size = 4 * spec.attention_map
    if size <= LARGEST_MAP or not method.needs_of(options) & {DEEP_ATTENTION, SHALLOW_ATTENTION}:
        return
    ways = [arg("options", {"received": "mean"})] if "received" in options else []
    if spec.image_size is None:
        ways.append(f"a smaller {arg('max_image_pixels')}, for at most {LARGEST_MAP / 1e9:g} GB")
    raise BudgetError(
        f"{arg('method', method.name)} reads the tower's whole attention map, {size / 1e9:,.1f} GB of the model's "
        f"largest image ({spec.visual_tokens} visual tokens)",
        hint="; or ".join(ways) or f"another {arg('method')}",
    )


def _ways_without(method: BaseMethod, options: Mapping[str, Any], spec: ModelSpec, clip: bool) -> list[str]:
    """The options that serve this model, out of those by which the method does without a CLS token or without CLIP."""
    every = {**method.without_cls, **method.without_clip}
    ways = ({name: value} for name, value in every.items() if options.get(name) != value)
    return [arg("options", way) for way in ways if _missing(method, {**options, **way}, spec, clip) is None]


def _missing(method: BaseMethod, options: Mapping[str, Any], spec: ModelSpec, clip: bool) -> str | None:
    """The first input of the method that the model does not have, with the reason; None without one."""
    for name in sorted(method.needs_of(options) & INPUTS.keys()):
        words = INPUTS[name].words
        if name in FROM_CLIP and spec.vision_tower != CLIP_TOWER:
            return f"CLIP's text tower; the vision tower of this model is {spec.vision_tower}, not CLIP's"
        if name in FROM_CLIP and not clip:
            return f"CLIP's text tower ({words}), which the checkpoint has not got and {arg('clip')} was not given"
        if name.startswith("cls_") and not spec.has_cls:
            return f"{words}; the vision tower of this model has none"
        if name == "cls_feature" and spec.square > 1:
            return f"{words}; the projector of this model takes {spec.square**2} patches at once"
        if name in (*SALIENCY, "vision_keys") and not spec.tower_layers:
            return f"{words}; this model uses none of the tower's layers"
    if "grid" in method.needs_of(options) and spec.first_patch != 0:
        first = "the CLS token is one of them" if spec.first_patch < 0 else "the first patch is dropped"
        return f"an image feature for each patch of the grid; in this model {first}"
    return None


def resolve_budget(
    method: BaseMethod,
    spec: ModelSpec,
    *,
    keep: int | None,
    keep_range: tuple[int, int] | None,
    options: Mapping[str, Any],
    clip: bool = False,
) -> PruningInfo:
    """The pruning part of ``config.json``.

    Args:
        method: The method; ``options`` are validated.
        spec: Facts of the model.
        keep, keep_range: The user's values; None: defaults.
        clip: Whether the build has CLIP's text tower.

    Raises:
        BudgetError: naming ``--method``, ``--option``, ``--keep`` or ``--keep-range``.
    """
    total, depth = spec.visual_tokens, spec.num_layers
    check_needs(method, spec, options, clip=clip)
    low, high = keep_range or method.budgets(total, depth, options)
    if keep is None:
        keep = max(low, min(DEFAULT_KEEP, high))
    if not 1 <= low <= high <= total:
        raise BudgetError(
            f"{arg('keep_range', (low, high))}: must lie within 1:{total}",
            hint=f"this model has {total} visual tokens an image",
        )
    if not 1 <= keep <= total:
        raise BudgetError(
            f"{arg('keep', keep)}: out of range, this model has {total} visual tokens an image",
            hint=f"a number from {low} to {high}",
        )
    for budget in (keep, low, high):
        method.check_budget(budget, total, depth, options)
    if not low <= keep <= high:
        raise BudgetError(
            f"{arg('keep', keep)}: outside {arg('keep_range', (low, high))}", hint=f"widen {arg('keep_range')}"
        )
    return PruningInfo(
        method=method.name,
        keep=keep,
        keep_range=(low, high),
        options=dict(options),
        needs=tuple(sorted(read_of_run(method.needs_of(options)))),
        text_span=method.text_span(options),
        schedule=method.plan(depth, options),
    )


def resolve_positions(
    method: BaseMethod, spec: ModelSpec, positions: str | None, options: Mapping[str, Any]
) -> PositionsInfo:
    """The positions part of ``config.json``: the rule as asked, if the method leaves that open, else the method's.

    Args:
        method: The method; ``options`` are validated.
        spec: Facts of the model.
        positions: The user's rule; None: the method's own for such a model.

    Raises:
        BudgetError: naming ``--positions``.
    """
    sections = spec.rotary_sections
    own = method.own_positions(options)
    if own is not None and positions not in (None, own):
        raise BudgetError(f"{arg('positions', positions)}: {method.name} numbers its tokens itself ({own})")
    positions = own or positions or method.positions_of(len(sections))
    # With rows and columns, a merged token has those of the visual token that it stands for.
    if method.merges and positions == "original" and len(sections) == 1:
        raise BudgetError(
            f"{arg('positions', positions)}: {method.name} merges tokens, and a merged one has no place in the picture",
            hint=f"leave out {arg('positions')}, or choose a method that only selects",
        )
    if positions not in POSITIONS:
        raise BudgetError(f"{arg('positions', positions)}: unknown", hint=" or ".join(POSITIONS))
    return PositionsInfo(positions, len(sections), sections, spec.rotary_interleaved)
