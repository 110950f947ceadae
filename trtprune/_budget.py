"""Which method and which budget a model can serve: decided, and refused, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune import pruning
from trtprune.engine_dir import PruningInfo
from trtprune.errors import BudgetError

if TYPE_CHECKING:
    from trtprune.models import ModelSpec
    from trtprune.pruning import Method

__all__ = ["DEFAULT_KEEP", "describe_budget", "resolve_budget"]

DEFAULT_KEEP = 64


def describe_budget(tokens: int, kept: int) -> str:
    """The one line every command that prunes prints, e.g. ``576 → 64 visual tokens (11.1 % kept)``."""
    return f"{tokens} → {kept} visual tokens ({100 * kept / tokens:.1f} % kept)"


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
    if keep is None:
        keep = min(DEFAULT_KEEP, total)
        if keep_range is not None:
            keep = max(keep_range[0], min(keep, keep_range[1]))
    low, high = keep_range or (1, total)
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
    if not low <= keep <= high:
        raise BudgetError(f"--keep {keep}: outside --keep-range {low}:{high}", hint="widen --keep-range")
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
