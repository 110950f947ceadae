"""Places and token counts of pruning between the decoder's layers, as data and rules.

A method writes a :class:`ScheduleInfo` at build, ``config.json`` has it as ``pruning.schedule``, and a runtime computes
the counts from it for an image with any number of tokens, without knowing the method.  ``docs/engine-directory.md`` has
the rules for other runtimes.  Whole numbers are exact; ratios are float64, computed in the order written here, and
rounded half to even.

There are two averages over the layers.  A pruning layer runs on all its tokens and prunes its output, so the number of
*processed* (and cached) tokens falls one layer later than the *nominal* count of the literature, which counts the
pruning layer itself with its pruned tokens: SparseVLM's "192 tokens" are 192.03 nominally and 206.50 processed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from trtprune.arguments import arg
from trtprune.errors import BudgetError

__all__ = ["RULES", "Schedule", "ScheduleInfo", "merged_counts", "nearest", "wrong_schedule"]

RULES = ("fixed", "powers", "ratios", "equal")
"""The rules for the counts of an image of N tokens, see :class:`ScheduleInfo`."""
MOST_POINTS = 64
"""The largest number of points in a file; ``powers`` costs the square of it in exact arithmetic, for each count."""
MOST_TOKENS = 1 << 20
"""The largest number of visual tokens in a file's counts and ratios."""


@dataclass(frozen=True)
class Schedule:
    """The visual tokens of one image in each layer of the decoder.

    Attributes:
        visual_tokens: N.
        depth: Layers of the decoder.
        points: Layers behind which tokens are pruned, ascending from 0.
        kept: Tokens kept at each point.
        after: Tokens behind each point: the kept ones and the vectors that pruned ones were merged into.
        nominal_shift: 0 if the method's literature counts a pruning layer with its pruned tokens, 1 if not.
    """

    visual_tokens: int
    depth: int
    points: tuple[int, ...]
    kept: tuple[int, ...]
    after: tuple[int, ...]
    nominal_shift: int = 1

    @property
    def per_layer(self) -> tuple[int, ...]:
        """Visual tokens that each layer processes and caches."""
        return self._layers(1)

    @property
    def processed(self) -> float:
        """Visual tokens processed and cached, averaged over the layers."""
        return sum(self.per_layer) / self.depth

    @property
    def nominal(self) -> float:
        """The average as the method's literature counts it, the meaning of ``keep``."""
        # Summed by ranges of layers: a hostile config can have thousands of layers, and a search calls this often.
        edges = [0, *(point + self.nominal_shift for point in self.points), self.depth]
        counts = (self.visual_tokens, *self.after)
        return sum(count * (stop - first) for count, (first, stop) in zip(counts, pairwise(edges), strict=True)) / (
            self.depth
        )

    def _layers(self, shift: int) -> tuple[int, ...]:
        counts, current, behind = [], self.visual_tokens, dict(zip(self.points, self.after, strict=True))
        for layer in range(self.depth):
            if layer - shift in behind:
                current = behind[layer - shift]
            counts.append(current)
        return tuple(counts)

    def describe(self) -> str:
        """The schedule in a command's line, e.g. ``576 → 82, 32, 18 behind layers 2, 6, 15; …``."""
        after, points = ", ".join(map(str, self.after)), ", ".join(map(str, self.points))
        return (
            f"{self.visual_tokens} → {after} behind layers {points}; "
            f"{self.nominal:.1f} a layer as papers count, {self.processed:.1f} processed and cached"
        )


@dataclass(frozen=True)
class ScheduleInfo:
    """The schedule of a method at all budgets and for images of all sizes.

    ``rule`` is one of :data:`RULES`.  Each but the first names a family of counts with one free number f, 1 ≤ f < N.
    The nominal average does not fall with f; of the smallest f whose average reaches the budget (N - 1 if none does)
    and f - 1, the one is taken whose average is nearer to it, f - 1 if both are as near:

    * ``fixed``: ``counts``, whatever the budget.
    * ``powers``: point i = 0, 1, … keeps max(1, ⌊f · (f/N)^i⌋).
    * ``ratios``: point 0 keeps f and point i max(1, round(r_i · f)).  A row of ``ratios`` is an average of
      ``ratio_tokens`` tokens and the counts of the points there; r_i is (count i) / (count 0), linear between the rows'
      averages at ``ratio_tokens`` · keep / N, and constant beyond them.  Where ``exact`` and N is ``ratio_tokens``, a
      budget that has a row takes its counts (the last row, which stands for all tokens, excepted).
    * ``equal``: every point keeps f.

    Any count is then limited to 1 … n - 1, n being the tokens in front of the point.

    Attributes:
        depth: Layers of the decoder.
        points: Layers behind which tokens are pruned, ascending from 0.
        rule, counts, ratios, ratio_tokens, exact: See above.
        nominal_shift: As in :class:`Schedule`.
        recycled: (p, q): of m removed tokens, min(m, ⌊m · p/q⌋ + 1) are merged; p = 0: none.
        per_vector: v: M merged tokens become ⌊M / v⌋ + 1 vectors.
        ranked: Whether the counts follow the rank of each point's attention block (raters × visual tokens).
        scales: Rows (budget, scale, bias), where ranks decide alone: a point keeps min(⌊rank · scale + bias⌋, n - 1),
            at least 1, and all n where the rank is n.  A budget of 0 stands for any.  Empty: the counts are
            proportional to the ranks and meet the budget, see :meth:`rank_counts`.
        option: The build option that moves the points, for messages.
    """

    depth: int
    points: tuple[int, ...]
    rule: str
    counts: tuple[int, ...] = ()
    ratios: tuple[tuple[int, ...], ...] = ()
    ratio_tokens: int = 0
    exact: bool = False
    nominal_shift: int = 1
    recycled: tuple[int, int] = (0, 1)
    per_vector: int = 10
    ranked: bool = False
    scales: tuple[tuple[float, float, float], ...] = ()
    option: str = ""

    @property
    def meets_keep(self) -> bool:
        """Whether the average over the layers is the budget; False if the prompt alone decides the number of tokens."""
        return not self.scales

    # -- the counts of an image ---------------------------------------------------------------------------------

    def schedule(self, keep: int, visual_tokens: int, *, at_most: bool = False) -> Schedule:
        """The counts for an average of ``keep`` of ``visual_tokens`` tokens; for a ranked schedule, with equal ranks.

        Args:
            keep: The budget.
            visual_tokens: N.
            at_most: Whether a budget above the largest average has the counts of that.  An image with hardly more
                tokens than the budget cannot reach it: each point removes a token.

        Raises:
            BudgetError: if the average cannot be reached.
        """
        if self.scales:
            self._scale(keep)
            return self.with_counts(visual_tokens, (visual_tokens - 1,) * len(self.points))
        if self.rule == "fixed":
            if self.counts[0] >= visual_tokens:
                raise BudgetError(
                    f"{arg('keep', keep)}: this schedule keeps {self.counts[0]} tokens of an image of {visual_tokens}: "
                    f"counts must fall, from below {visual_tokens}",
                    hint=f"smaller counts with {arg('options')} {self.option}",
                )
            own = self.with_counts(visual_tokens, self.counts)
            if keep != round(own.nominal):
                raise BudgetError(
                    f"{arg('keep', keep)}: this schedule averages {own.nominal:.1f} tokens a layer",
                    hint=f"leave out {arg('keep')}, or {arg('keep', round(own.nominal))}",
                )
            return own
        row = next((row for row in self.ratios[:-1] if row[0] == keep), None)
        if self.exact and visual_tokens == self.ratio_tokens and row is not None:
            return self.with_counts(visual_tokens, row[1:])
        make = self._family(keep, visual_tokens)
        least, most = make(1), make(max(1, visual_tokens - 1))
        if keep < least.nominal - 0.5 or (keep > most.nominal + 0.5 and not at_most):
            raise self._out_of_reach(keep, least, most)
        return nearest(make, keep, visual_tokens)

    def kept(self, keep: int, visual_tokens: int) -> tuple[int, ...]:
        """Tokens kept at each point.

        All of them if the image has at most ``keep``, and the most that can be if ``keep`` is above what the points
        leave on average.

        Raises:
            BudgetError: if ``keep`` is below every average, as :meth:`schedule`.
        """
        if keep >= visual_tokens:
            return (visual_tokens,) * len(self.points)
        if self.rule == "fixed":
            return self.with_counts(visual_tokens, self.counts).kept
        return self.schedule(keep, visual_tokens, at_most=True).kept

    def rank_counts(self, ranks: Sequence[int], keep: int, visual_tokens: int) -> tuple[int, ...]:
        """Tokens of an image that are kept at each point so far, for a :attr:`ranked` schedule.

        Without :attr:`scales` all tokens are kept where the image has no more than ``keep``; else the counts are
        max(1, ⌊f · rank / largest rank⌋), f from 1 to below N · largest rank found as in :meth:`schedule`.  Points that
        are still to come are taken to find the rank of the last one, and a rank of 0 counts as 1.

        Args:
            ranks: The ranks of the attention blocks of these points; at least one.
            keep, visual_tokens: As in :meth:`schedule`.

        Returns:
            One count for each rank.  The count of an earlier point may change with the ranks of later ones.
        """
        if not self.scales and keep >= visual_tokens:
            return (visual_tokens,) * len(ranks)
        if not self.scales:
            known = [max(1, rank) for rank in ranks]
            expected = known + known[-1:] * (len(self.points) - len(known))
            most = max(expected)

            def make(largest: int) -> Schedule:
                return self.with_counts(visual_tokens, [max(1, largest * rank // most) for rank in expected])

            # Up to the number at which even the lowest rank keeps all tokens.
            return nearest(make, keep, visual_tokens * most).kept[: len(ranks)]
        scale, bias = self._scale(keep)
        before, counts = visual_tokens, []
        for rank in ranks:
            # All tokens stay if the rank is full.
            count = before if rank >= before else int(max(1, min(rank * scale + bias, before - 1)))
            before = count + self.merged_counts(before - count)[1]
            counts.append(count)
        return tuple(counts)

    def merged_counts(self, removed: int) -> tuple[int, int]:
        """The numbers of merged tokens and of their vectors for ``removed`` tokens; (0, 0) if they are dropped."""
        return merged_counts(removed, self.recycled, self.per_vector)

    def with_counts(self, visual_tokens: int, counts: Sequence[int]) -> Schedule:
        """The schedule with ``counts``, each limited to the possible ones at its point."""
        before, kept, after = visual_tokens, [], []
        for count in counts:
            # At least one token is removed at every point, if there is one.
            count = max(1, min(count, before - 1))
            before = count + self.merged_counts(before - count)[1]
            kept.append(count)
            after.append(before)
        return Schedule(visual_tokens, self.depth, self.points, tuple(kept), tuple(after), self.nominal_shift)

    # -- the budgets of a build ---------------------------------------------------------------------------------

    def served(self, visual_tokens: int) -> list[int]:
        """The averages that :meth:`schedule` can reach, ascending."""
        return [keep for keep in range(1, visual_tokens + 1) if self._reaches(keep, visual_tokens)]

    def budgets(self, visual_tokens: int) -> tuple[int, int]:
        """The smallest and the largest average that :meth:`schedule` can reach.

        Raises:
            BudgetError: if it reaches none.
        """
        reached = self.served(visual_tokens)
        if not reached:
            self.schedule(visual_tokens, visual_tokens)  # raises with the reason
        return reached[0], reached[-1]

    def entering(self, keep: int, visual_tokens: int) -> tuple[int, ...] | None:
        """The tokens of an image that enter each segment; None if they are known only in the run."""
        return (visual_tokens, *self.schedule(keep, visual_tokens).after) if self.meets_keep else None

    def describe(self, keep: int, visual_tokens: int) -> str:
        """The schedule of an image in a command's line."""
        if not self.meets_keep:
            layers = ", ".join(map(str, self.points))
            return f"{visual_tokens} visual tokens, cut behind layers {layers} to what the rank of the attention says"
        more = ", shared out anew by the rank of the attention" if self.ranked else ""
        return self.schedule(keep, visual_tokens).describe() + more

    def _reaches(self, keep: int, visual_tokens: int) -> bool:
        try:
            return bool(self.schedule(keep, visual_tokens))
        except BudgetError:
            return False

    # -- rules --------------------------------------------------------------------------------------------------

    def _family(self, keep: int, visual_tokens: int) -> Callable[[int], Schedule]:
        """Free number → schedule."""
        places = range(len(self.points))
        if self.rule == "powers":
            return lambda f: self.with_counts(visual_tokens, [max(1, f ** (i + 1) // visual_tokens**i) for i in places])
        if self.rule == "equal":
            return lambda f: self.with_counts(visual_tokens, [f] * len(places))
        others = self._ratios(self.ratio_tokens * keep / visual_tokens)
        return lambda f: self.with_counts(visual_tokens, [f, *(max(1, round(ratio * f)) for ratio in others)])

    def _ratios(self, average: float) -> list[float]:
        """The counts of all points but the first, divided by that of the first."""
        low = max((row for row in self.ratios if row[0] <= average), default=self.ratios[0])
        high = min((row for row in self.ratios if row[0] >= average), default=self.ratios[-1])
        share = 0.0 if low[0] == high[0] else (average - low[0]) / (high[0] - low[0])
        pairs = zip(low[2:], high[2:], strict=True)
        return [(1 - share) * (a / low[1]) + share * (b / high[1]) for a, b in pairs]

    def _scale(self, keep: int) -> tuple[float, float]:
        for budget, scale, bias in self.scales:
            if budget in (0, keep):
                return scale, bias
        known = ", ".join(f"{budget:g}" for budget, _, _ in self.scales)
        raise BudgetError(
            f"{arg('keep', keep)}: no scale is published for it, only for {known}",
            hint=f"another {arg('keep')}; {arg('options', {'scale': 'budget'})}, which meets any; or scale=NUMBER",
        )

    def _out_of_reach(self, keep: int, least: Schedule, most: Schedule) -> BudgetError:
        bound = f"at least {least.nominal:.0f}" if keep < least.nominal else f"at most {most.nominal:.0f}"
        return BudgetError(
            f"{arg('keep', keep)}: the decoder of {self.depth} layers prunes behind layers "
            f"{', '.join(map(str, self.points))}, and the average over all layers is then {bound} of "
            f"{least.visual_tokens} visual tokens",
            hint=f"such a {arg('keep')}, or other layers with {arg('options')} {self.option}",
        )


def merged_counts(removed: int, share: tuple[int, int], per_vector: int) -> tuple[int, int]:
    """The numbers of merged tokens and of their vectors for ``removed`` tokens; see :class:`ScheduleInfo`."""
    numerator, denominator = share
    if removed < 1 or numerator == 0:
        return 0, 0
    merged = min(removed, removed * numerator // denominator + 1)
    return merged, merged // per_vector + 1


def nearest(make: Callable[[int], Schedule], keep: int, limit: int) -> Schedule:
    """The schedule with the nominal average nearest to ``keep``, at any distance; see :class:`ScheduleInfo`.

    Args:
        make: Function of a number from 1 to below ``limit`` to a schedule whose average does not fall with it.
        keep: The requested average.
        limit: One more than the largest number.
    """
    low, high = 1, limit - 1
    while low < high:
        middle = (low + high) // 2
        if make(middle).nominal < keep:
            low = middle + 1
        else:
            high = middle
    near = [make(number) for number in (low - 1, low) if number >= 1]
    return min(near, key=lambda schedule: abs(schedule.nominal - keep))


def wrong_schedule(info: ScheduleInfo) -> Iterator[str]:
    """The faults of a schedule from a file, one line each, which begins with the field."""
    points, many = info.points, len(info.points)
    if list(points) != sorted(set(points)) or not points or points[0] < 0 or points[-1] >= info.depth - 1:
        yield f"points must be ascending layers from 0 to {info.depth - 2}"
    if many > MOST_POINTS:
        yield f"points must be at most {MOST_POINTS}"
    if info.rule not in RULES:
        yield f"rule must be one of {', '.join(RULES)}"
    if info.rule == "fixed" and (len(info.counts) != many or min(info.counts, default=0) < 1):
        yield f"counts must be {many} numbers from 1 on"
    if info.rule == "ratios":
        averages = [row[0] for row in info.ratios if row]
        rows = all(len(row) == many + 1 and min(row) >= 1 for row in info.ratios)
        if not rows or not averages or averages != sorted(set(averages)) or info.ratio_tokens < 1:
            yield f"ratios must be rows of {many + 1} numbers from 1 on, the first of each ascending"
    if max((info.ratio_tokens, *info.counts, *(number for row in info.ratios for number in row))) > MOST_TOKENS:
        yield f"counts, ratios and ratio_tokens must be at most {MOST_TOKENS}"
    if info.nominal_shift not in (0, 1):
        yield "nominal_shift must be 0 or 1"
    if not 0 <= info.recycled[0] <= info.recycled[1] or info.recycled[1] < 1 or info.per_vector < 1:
        yield "recycled must be a share from 0 to 1, and per_vector at least 1"
    if info.scales and not info.ranked:
        yield "scales are those of ranks"
