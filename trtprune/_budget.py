"""Which method and which budget a model can serve: decided, and refused, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune import pruning
from trtprune.engine_dir import PruningInfo
from trtprune.errors import BudgetError
from trtprune.pruning.in_llm import InLlmMethod

if TYPE_CHECKING:
    from trtprune.engine_dir import EngineDir
    from trtprune.models import ModelSpec
    from trtprune.pruning import Method

__all__ = ["DEFAULT_KEEP", "describe_budget", "describe_build", "resolve_budget"]

DEFAULT_KEEP = 64


def describe_budget(tokens: int, kept: int) -> str:
    """The one line every command that prunes prints, e.g. ``576 → 64 visual tokens (11.1 % kept)``."""
    return f"{tokens} → {kept} visual tokens ({100 * kept / tokens:.1f} % kept)"


def describe_build(made: EngineDir) -> str:
    """What a build does with an image's tokens: the budget, and where the decoder prunes, its schedule."""
    info, tokens = made.pruning, made.model.visual_tokens
    method = pruning.get(info.method)
    if not isinstance(method, InLlmMethod):
        return describe_budget(tokens, info.keep)
    options = method.validate_options(info.options)
    if options.get("ratio") == "rank":
        layers = ", ".join(map(str, method.points(made.kv.num_layers, options)))
        return f"{tokens} visual tokens, cut behind layers {layers} to what the rank of the attention says"
    return method.schedule(info.keep, tokens, made.kv.num_layers, options).describe()


def resolve_budget(
    method: Method,
    spec: ModelSpec,
    *,
    keep: int | None,
    keep_range: tuple[int, int] | None,
    options: Mapping[str, Any],
    positions: str | None,
) -> PruningInfo:
    """The pruning part of the config, or the reason why this model cannot serve it.

    Raises:
        BudgetError: naming ``--method``, ``--keep``, ``--keep-range`` or ``--positions``.
    """
    total = spec.visual_tokens
    if "cls_attention" in method.needs and not spec.has_cls:
        able = ", ".join(m.name for m in pruning.all_methods() if "cls_attention" not in m.needs)
        raise BudgetError(
            f"--method {method.name} needs the attention of a CLS token; the vision tower of this model has none",
            hint=f"--method with one of: {able}",
        )
    if method.name == "none":
        if keep not in (None, total) or (keep_range is not None and keep_range != (total, total)):
            raise BudgetError(
                f"--method none keeps all {total} visual tokens",
                hint="leave out --keep, or choose a method that prunes",
            )
        keep, keep_range = total, (total, total)
    reachable = (1, total)
    if isinstance(method, InLlmMethod):
        reachable = method.budgets(total, spec.num_layers, options)
    if keep is None:
        low, high = keep_range or reachable
        keep = max(low, min(DEFAULT_KEEP, high))
    low, high = keep_range or reachable
    if not 1 <= low <= high <= total:
        raise BudgetError(
            f"--keep-range {low}:{high}: must lie within 1:{total}",
            hint=f"this model has {total} visual tokens an image",
        )
    if not 1 <= keep <= total:
        raise BudgetError(
            f"--keep {keep}: out of range, this model has {total} visual tokens an image",
            hint=f"a number from {low} to {high}",
        )
    if isinstance(method, InLlmMethod):
        for budget in (keep, low, high):
            method.schedule(budget, total, spec.num_layers, options)
    if not low <= keep <= high:
        raise BudgetError(f"--keep {keep}: outside --keep-range {low}:{high}", hint="widen --keep-range")
    if isinstance(method, InLlmMethod):
        own = method.positions_of(options)
        if positions not in (None, own):
            raise BudgetError(f"--positions {positions}: {method.name} numbers its tokens itself ({own})")
        positions = own
    positions = positions or method.positions
    if positions not in ("compact", "original"):
        raise BudgetError(f"--positions {positions}: unknown", hint="compact or original")
    return PruningInfo(
        method=method.name,
        keep=keep,
        keep_range=(low, high),
        options=dict(options),
        positions=positions,
        needs=tuple(sorted(method.needs)),
        text_span=method.text_span(options),
    )
