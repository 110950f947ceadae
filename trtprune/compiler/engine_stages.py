"""The tokens of an image in each segment of a decoder that prunes, over all budgets and all images of a build."""

from __future__ import annotations

from dataclasses import replace

from trtprune.backends.tensorrt.profiles import Stage
from trtprune.engine_dir import PruningInfo
from trtprune.schedules import ScheduleInfo

__all__ = ["find_stages"]

MERGES = ("recycled", "merged")


def find_stages(info: PruningInfo, fewest: int, most: int) -> tuple[Stage, ...]:
    """The stages of an image of ``fewest`` to ``most`` visual tokens; empty for a method that does not cut the decoder.

    Where all images have the same number of tokens the ranges are exact.  Else they are bounds that follow from the
    average over the layers: a schedule for each budget and each number would take minutes.
    """
    schedule = info.schedule
    if schedule is None:
        return ()
    stages = _exact(schedule, info, most)
    return stages if fewest == most else _widened(schedule, info, stages, fewest, most)


def _exact(schedule: ScheduleInfo, info: PruningInfo, visual_tokens: int) -> tuple[Stage, ...]:
    """The stages of an image of ``visual_tokens``, over all budgets."""
    points = len(schedule.points)

    def counts(kept: int, before: int) -> dict[str, int]:
        merged = zip(MERGES, schedule.merged_counts(before - kept), strict=True)
        return {"keep": kept, **{name: n for name, n in merged if n}}

    # Each budget's way through the segments: tokens that enter, and what the point behind is told.
    ways: list[list[tuple[int, dict[str, int]]]] = []
    if schedule.ranked:  # anything from one token on, one less at each point at the most
        for before, kept in ((visual_tokens, visual_tokens // 4), (visual_tokens, 1), (2, 1)):
            start = (visual_tokens, counts(kept, visual_tokens))
            ways.append([start, *((before, counts(kept, before)) for _ in range(points - 1)), (before, {})])
        ways.append([(visual_tokens, counts(visual_tokens - 1, visual_tokens))] * points + [(visual_tokens, {})])
    else:
        low, high = info.keep_range
        for keep in (info.keep, *range(low, high + 1)):
            way = schedule.schedule(keep, visual_tokens)
            entering = (visual_tokens, *way.after)
            told = [counts(kept, before) for kept, before in zip(way.kept, entering, strict=False)]
            ways.append(list(zip(entering, [*told, {}], strict=True)))

    def spread(numbers: list[int]) -> tuple[int, int, int]:
        return min(numbers), numbers[0], max(numbers)

    stages = [
        Stage(
            spread([way[k][0] for way in ways]),
            {name: spread([way[k][1][name] for way in ways if name in way[k][1]]) for name in ways[0][k][1]},
        )
        for k in range(points + 1)
    ]
    return tuple(replace(stage, lost=visual_tokens - stage.tokens[2]) for stage in stages)


def _widened(
    schedule: ScheduleInfo, info: PruningInfo, stages: tuple[Stage, ...], fewest: int, most: int
) -> tuple[Stage, ...]:
    """The stages of images of any number of tokens; ``stages`` are those of the largest image."""
    high = info.keep_range[1]
    # Images of up to this many tokens lose none, and where ranks decide, any image may.
    whole = most if schedule.ranked else min(high, most) if fewest <= high else 0
    first = max(fewest, high + 1)  # the smallest image that loses tokens at the largest budget
    entries = [(fewest, 0)]  # the most tokens in each segment, and the fewest that were lost before it
    for k in range(1, len(stages)):
        cut = min(max(stages[k].tokens[2], _most_behind(schedule, k, high, first)), most - 1)
        lost = 0 if whole else max(0, first - _most_behind(schedule, k, high, first))
        entries.append((max(cut, whole), lost))
    limits = [most, *(tokens for tokens, _ in entries[1:])]
    widened = []
    for k, stage in enumerate(stages):
        counts = {}
        for name, (_, typical, largest) in stage.counts.items():
            if name == "keep":
                counts[name] = (1, typical, max(largest, min(limits[k + 1], limits[k] - 1)))
            else:
                ends = [schedule.merged_counts(removed)[MERGES.index(name)] for removed in (1, limits[k] - 1)]
                counts[name] = (ends[0], typical, ends[1])
        least = fewest if k == 0 else min(2, stage.tokens[0])
        widened.append(Stage((least, stage.tokens[1], limits[k]), counts, entries[k][1]))
    return tuple(widened)


def _most_behind(schedule: ScheduleInfo, segment: int, keep: int, visual_tokens: int) -> int:
    """The most tokens of an image in a segment behind the first, of all images of at least ``visual_tokens``.

    Counts do not rise from segment to segment, so that the segments up to this one have at least as many each, and the
    sum over the layers is what the budget allows.
    """
    if schedule.rule == "fixed":
        return schedule.with_counts(visual_tokens, schedule.counts).after[segment - 1]
    edges = [*(point + schedule.nominal_shift for point in schedule.points), schedule.depth]
    # The nearest schedule's average exceeds the budget by less than what one more token at each point adds.
    allowed = (keep + len(schedule.points) + 1) * schedule.depth - visual_tokens * edges[0]
    return max(1, allowed // (edges[segment] - edges[0]))
