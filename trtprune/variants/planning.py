"""The cells of a comparison; all refusals come from here, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trtprune import pruning
from trtprune.errors import BudgetError
from trtprune.pruning.base import WITH_CLS, TowerTraits
from trtprune.variants import Variant, parse_variants

if TYPE_CHECKING:
    from trtprune.engine_dir import EngineDir
    from trtprune.variants import Variants

__all__ = ["ALL", "choose_budgets", "choose_variants", "parse_methods", "plan_cells"]

ALL = "all"


def choose_variants(methods: str | None, own: Variant, *, tower: TowerTraits = WITH_CLS) -> tuple[list[Variant], bool]:
    """The methods to measure, and whether they were named one by one; ``none`` is always measured and not in the list.

    Args:
        methods: ``a,b:option=value``; ``all``; None: as built.
        own: The build's.
        tower: What its vision tower is.

    Raises:
        BudgetError: for an unknown method or option.
    """
    if methods is None:
        found, named = [own], True
    else:
        found, named = parse_methods(methods, tower=tower)
        if not named:
            # The build's own method gets its options of the build.
            every = [own if name == own.method else Variant.make(name, tower=tower) for name in pruning.names()]
            found = list(dict.fromkeys([*every, *found]))
    return [variant for variant in found if variant.method != "none"], named


def parse_methods(methods: str, *, tower: TowerTraits = WITH_CLS) -> tuple[list[Variant], bool]:
    """The methods of ``--methods`` beside ``all``, and whether ``all`` is missing: ``all,divprune:center=true``.

    Raises:
        BudgetError: for an unknown method or option.
    """
    first, _, rest = methods.partition(",")
    if first.strip() != ALL:
        return parse_variants(methods, tower=tower), True
    return parse_variants(rest, tower=tower) if rest.strip() else [], False


def choose_budgets(keeps: Sequence[int] | None, base: EngineDir) -> list[int]:
    """Budgets, largest first: the given ones, or a third and a ninth of all visual tokens and the build's own.

    All tokens are the unpruned line, which is always measured.

    Raises:
        BudgetError: for a budget that the model cannot have.
    """
    total = base.model.visual_tokens
    chosen = list(keeps) if keeps is not None else [round(total / 3), round(total / 9), base.pruning.keep]
    for keep in chosen:
        if not 1 <= keep <= total:
            raise BudgetError(f"--keep {keep}: an image has {total} visual tokens", hint=f"1 to {total}")
    return sorted({keep for keep in chosen if keep < total}, reverse=True)


def plan_cells(
    variants: Variants, chosen: Sequence[Variant], budgets: Sequence[int], *, named: bool
) -> tuple[list[tuple[Variant, int]], list[str]]:
    """(method, budget) of every cell, and the omitted ones with reasons.

    Raises:
        BudgetError: for a budget that one of the methods cannot serve, if they were ``named``.
    """
    cells, left_out = [], []
    for variant in chosen:
        for keep in budgets:
            try:
                _check(variants, variant, keep)
            except BudgetError as error:
                if named:
                    raise
                left_out.append(f"{variant.label} {keep}: {error.flag_message}")
                continue
            cells.append((variant, keep))
    return cells, left_out


def _check(variants: Variants, variant: Variant, keep: int) -> None:
    base, method = variants.base, pruning.get(variant.method)
    if variant == variants.own:
        low, high = base.pruning.keep_range
        if not low <= keep <= high:
            raise BudgetError(
                f"--keep {keep}: outside {low} to {high}, the --keep-range of {base.root}",
                hint="build with a wider --keep-range",
            )
    method.check_budget(keep, base.model.visual_tokens, base.kv.num_layers, dict(variant.options))
