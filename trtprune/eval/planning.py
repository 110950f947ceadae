"""The plan of an evaluation: points (a method at a budget), and images with the questions about them.

All refusals come from here, before any work.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trtprune import pruning
from trtprune.errors import BackendError, BudgetError, CheckpointError, InputError
from trtprune.runtime.kv_cache import check_length
from trtprune.runtime.pipeline import turns_of
from trtprune.variants import Variant
from trtprune.variants.planning import choose_budgets, choose_variants, plan_cells

if TYPE_CHECKING:
    from trtprune.eval.rows import Row
    from trtprune.runtime.prompt import PromptEncoder
    from trtprune.variants import Variants

__all__ = [
    "CONTROLS",
    "GREY",
    "UNPRUNED",
    "WRONG",
    "MethodBudget",
    "Subject",
    "Trial",
    "fitting",
    "plan_points",
    "subjects",
]

UNPRUNED = "none"
WRONG, GREY = "wrong", "grey"
CONTROLS = (WRONG, GREY)
"""Blind controls: the question with another question's image, and with a grey one."""


@dataclass(frozen=True)
class MethodBudget:
    """A method at a budget.

    Attributes:
        variant: The build's method and options.
        keep: The budget.
        label: Its name in results; the unpruned run is "none", whatever its build.
    """

    variant: Variant
    keep: int
    label: str

    @property
    def inside(self) -> bool:
        """Whether it prunes inside the decoder, and therefore has a decoder of its own."""
        return pruning.get(self.variant.method).inside


@dataclass(frozen=True)
class Trial:
    """A question about an image, and the kind of a control; empty for the question's own image."""

    row: Row
    control: str = ""


@dataclass
class Subject:
    """An image with all questions about it.

    Attributes:
        source: A row with this image; None for the grey image.
        seed: Seed of methods that draw at random: an image's tokens are drawn once, for all questions about it.
        asked: The questions.
    """

    source: Row | None
    seed: int
    asked: list[Trial] = field(default_factory=list)


def plan_points(
    variants: Variants, methods: str | None, keeps: Sequence[int] | None, report: Callable[[str, str], None]
) -> list[MethodBudget]:
    """The points: the unpruned run first, then those with the same decoder, then those that prune inside theirs.

    Args:
        variants: Variants of the engine directory.
        methods: ``a,b:option=value``; ``all``; None: as built.
        keeps: Budgets; None: a third and a ninth of all tokens, and as built.
        report: Called with (what, message) about methods that are missing in ``all``.

    Raises:
        BudgetError: for an unknown method, an option or a budget that cannot be served, or if nothing is pruned.
    """
    total = variants.base.model.visual_tokens
    chosen, named = choose_variants(methods, variants.own, tower=variants.tower)
    budgets = choose_budgets(keeps, variants.base)
    if not chosen:
        what = f"--methods {methods}" if methods else f"{variants.base.root} (method none)"
        raise BudgetError(f"{what}: prunes nothing, there is nothing to report", hint="--methods with one that prunes")
    if not budgets:
        given = ",".join(map(str, keeps)) if keeps else str(variants.base.pruning.keep)
        raise BudgetError(
            f"--keep {given}: keeps all {total} visual tokens, there is nothing to report", hint="a smaller --keep"
        )
    cells, left_out = plan_cells(variants, chosen, budgets, named=named)
    unable = set()
    wanted = list(dict.fromkeys(variant for variant, _ in cells))
    # Each takes seconds; without lines a terminal would stay empty for a long time.
    new = [variant.label for variant in wanted if not variants.there(variant)]
    if new:
        report("build", f"{len(new)} more on these weights: {', '.join(new)}")
    for variant in wanted:
        try:
            variants.config(variant)
        except BudgetError as error:
            if named:
                raise
            left_out.append(f"{variant.label}: {error.flag_message}")
            unable.add(variant)
    for reason in left_out:
        report("left out", reason)
    points = [MethodBudget(variant, keep, variant.label) for variant, keep in cells if variant not in unable]
    if not points:
        raise BudgetError("--keep: no method can serve any of the budgets", hint="trtprune methods")
    base = MethodBudget(_unpruned(variants), total, UNPRUNED)
    variants.config(base.variant)
    return [base, *(p for p in points if not p.inside), *(p for p in points if p.inside)]


def _unpruned(variants: Variants) -> Variant:
    """The variant with all tokens: method none; if that cannot be built, the base, if it serves all tokens."""
    base, none = variants.base, Variant.make("none")
    try:
        variants.config(none)
    except (BackendError, CheckpointError):
        method = pruning.get(base.pruning.method)
        passes = method.passes_all(method.validate_options(base.pruning.options))
        if not passes or base.pruning.keep_range[1] < base.model.visual_tokens:
            raise
        return variants.own
    return none


def subjects(rows: Sequence[Row], *, controls: bool, seed: int) -> list[Subject]:
    """Images in the order of the rows; the grey one last.

    Args:
        rows: The questions.
        controls: Whether each is also asked about another image and about a grey one.
        seed: Seed of the choice of other images and of the subjects' seeds.
    """
    found: dict[Any, Subject] = {}
    for row in rows:
        if row.picture_key not in found:
            found[row.picture_key] = Subject(row, zlib.crc32(f"{seed} {row.id}".encode()))
        found[row.picture_key].asked.append(Trial(row))
    if not controls:
        return list(found.values())
    grey = Subject(None, seed)
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        keys = list(dict.fromkeys(row.picture_key for row in members))
        # Images from the same part of the set, so that only the image is wrong and not its kind.
        if len(keys) < 2:
            keys = list(found)
        if len(keys) < 2:
            raise InputError("--controls: all questions are about one picture; there is no wrong one")
        random.Random(f"trtprune controls {seed} {group}").shuffle(keys)
        following = dict(zip(keys, [*keys[1:], keys[0]], strict=True))
        for row in members:
            found[following[row.picture_key]].asked.append(Trial(row, WRONG))
            grey.asked.append(Trial(row, GREY))
    return [*found.values(), grey]


def fitting(
    rows: Sequence[Row],
    ask: Callable[[Row], str],
    encoder: PromptEncoder,
    *,
    visual_tokens: Callable[[Row | None], int],
    max_new_tokens: int,
    capacity: int,
    positions: int,
) -> tuple[list[Row], dict[str, InputError]]:
    """The rows whose prompt can be answered without pruning, and the reasons of the others by id.

    A row that only fits when pruned cannot be paired; it is missing in all runs.

    Args:
        rows: The questions.
        ask: Function of a row to the question.
        encoder: Tokenizer and chat template.
        visual_tokens: Function of a row to the visual tokens of its image, and of None to the most of any image.
        max_new_tokens: Tokens of an answer.
        capacity: Capacity of the KV cache.
        positions: Number of positions of the model.
    """
    good, bad = [], {}
    for row in rows:
        try:
            words = len(encoder.encode(turns_of(ask(row), 1, None)).ids) - 1
            # An image is opened only where the largest would not fit.
            for image in (None, row):
                try:
                    check_length(words + visual_tokens(image), max_new_tokens, capacity, whole_images=True)
                    check_length(words + visual_tokens(image), max_new_tokens, positions, "positions")
                    break
                except InputError:
                    if image is not None:
                        raise
        except InputError as error:
            bad[row.id] = error
        else:
            good.append(row)
    return good, bad
