"""The plan of TensorRT engines: GPUs, limits of every input, and a decoder's stages.  Builds nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trtprune.backends.tensorrt.profiles import Limits, Stage, check_limits, default_capacity
from trtprune.compiler.engine_options import DEFAULT_INPUT_LEN, EngineOptions, check_dtype, resolve_targets
from trtprune.engine_dir import PruningInfo

if TYPE_CHECKING:
    from trtprune.models import ModelSpec

__all__ = ["EnginePlan", "Target", "find_stages", "find_target", "plan_engines"]


@dataclass(frozen=True)
class Target:
    """The library that builds, and the GPUs it builds for.

    Attributes:
        version: Version of the library.
        build: Targets for the builder, ``("sm89",)`` or ``("current",)``.
        names: The same for ``config.json``, with the current GPU's capability.
        plugins: Name → version of the plugins that its parser uses for operators of a graph.
    """

    version: str
    build: tuple[str, ...]
    names: tuple[str, ...]
    plugins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EnginePlan:
    """Everything decided about engines before anything is written."""

    options: EngineOptions
    target: Target
    limits: Limits

    def identity(self) -> dict[str, Any]:
        """The facts behind the engines beyond the graphs, for the digest of a build."""
        return {
            "options": self.options.identity(),
            "target": vars(self.target),
            "limits": vars(self.limits),
        }


def find_target(backend: str, options: EngineOptions, dtype: str, weight_dtype: str | None = None) -> Target:
    """The installed library and its targets.

    Raises:
        BackendError: if the library or a GPU it needs is missing, or a plugin library does not fit.
        BuildError: for a compute capability it does not serve, or not in this dtype.
    """
    from trtprune.backends.tensorrt.building import served_capabilities
    from trtprune.backends.tensorrt.flavour import get_log, load_tensorrt
    from trtprune.backends.tensorrt.gpus import find_gpus
    from trtprune.backends.tensorrt.plugins import register_plugins

    trt = load_tensorrt(backend)
    gpus = find_gpus()
    library = f"{'TensorRT' if backend == 'tensorrt' else 'TensorRT-RTX'} {trt.__version__}"
    build = resolve_targets(options.compute_capability, backend, served_capabilities(trt), gpus, library)
    names = (f"sm{gpus[0].sm}",) if build == ("current",) and gpus[0].sm else build
    check_dtype(dtype, weight_dtype, options.attention, names, backend)
    get_log(trt)  # TensorRT keeps its first logger, so this one must be first
    return Target(trt.__version__, build, names, register_plugins(trt))


def plan_engines(
    options: EngineOptions, target: Target, spec: ModelSpec, info: PruningInfo, max_seq_len: int | None
) -> EnginePlan:
    """The limits of the engines; the capacity is ``max_seq_len``, or follows from the limits.

    Raises:
        BuildError, BudgetError: for limits no engine can serve.
    """
    input_len = options.max_input_len
    if input_len is None:
        input_len = min(DEFAULT_INPUT_LEN, max_seq_len or spec.max_positions)
    stages = find_stages(info, spec.visual_tokens)
    capacity = max_seq_len
    if capacity is None:
        most = spec.visual_tokens if stages else info.keep_range[1]
        capacity = default_capacity(spec.max_positions, input_len, options.max_images, most)
    limits = Limits(
        visual_tokens=spec.visual_tokens,
        keep=info.keep,
        keep_range=info.keep_range,
        capacity=capacity,
        max_batch_size=options.max_batch_size,
        max_input_len=input_len,
        max_images=options.max_images,
        stages=stages,
    )
    check_limits(limits, selects=info.method != "none")
    return EnginePlan(options, target, limits)


def find_stages(info: PruningInfo, visual_tokens: int) -> tuple[Stage, ...]:
    """The ranges of an image's tokens in the segments of a decoder, over all budgets; empty for other methods."""
    schedule = info.schedule
    if schedule is None:
        return ()
    points = len(schedule.points)

    def counts(kept: int, before: int) -> dict[str, int]:
        names = ("recycled", "merged")
        merged = zip(names, schedule.merged_counts(before - kept), strict=True)
        return {"keep": kept, **{name: n for name, n in merged if n}}

    # Each budget's numbers in the segments: entering tokens, and the inputs of the prune point behind.
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

    return tuple(
        Stage(
            spread([way[k][0] for way in ways]),
            {name: spread([way[k][1][name] for way in ways if name in way[k][1]]) for name in ways[0][k][1]},
        )
        for k in range(points + 1)
    )
