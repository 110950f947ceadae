"""The TensorRT half of ``build``: what the engines must serve, then an engine for every graph of the chain.

Orchestrates ``backends.tensorrt``; knows no model and no method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune import pruning
from trtprune._engine_options import (
    DEFAULT_INPUT_LEN,
    EngineOptions,
    check_dtype,
    resolve_targets,
)
from trtprune.backends.tensorrt.profiles import Limits, Stage, check_limits, component_profiles, default_capacity
from trtprune.engine_dir import (
    FULL_CHECK_BYTES,
    ComponentInfo,
    EngineInfo,
    PruningInfo,
    digest_file,
    digest_head,
)

if TYPE_CHECKING:
    from trtprune._plan import Plan
    from trtprune.backends.tensorrt.network import Network
    from trtprune.models import ModelSpec

__all__ = ["EnginePlan", "Target", "build_engines", "find_stages", "find_target", "plan_engines"]


@dataclass(frozen=True)
class Target:
    """The library that builds, and the GPUs it builds for.

    Attributes:
        version: Of the library.
        build: For the builder, ``("sm89",)`` or ``("current",)``.
        names: For the config: the same, with the GPU that is current by its capability.
        plugins: Name → version of the plugins that its parser takes where a graph has their operator.
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
        """What the engines depend on beyond the graphs, for the digest of a build."""
        return {
            "options": self.options.identity(),
            "target": vars(self.target),
            "limits": vars(self.limits),
        }


def find_target(backend: str, options: EngineOptions, dtype: str, weight_dtype: str | None = None) -> Target:
    """The installed library and what it is to build for.

    Raises:
        BackendError: if the library or a GPU it needs is missing, or a plugin library does not fit.
        BuildError: for a compute capability it does not serve, or not in this dtype.
    """
    from trtprune._gpu import find_gpus
    from trtprune.backends.tensorrt.building import served_capabilities
    from trtprune.backends.tensorrt.flavour import get_log, load_tensorrt
    from trtprune.backends.tensorrt.plugins import register_plugins

    trt = load_tensorrt(backend)
    gpus = find_gpus()
    library = f"{'TensorRT' if backend == 'tensorrt' else 'TensorRT-RTX'} {trt.__version__}"
    build = resolve_targets(options.compute_capability, backend, served_capabilities(trt), gpus, library)
    names = (f"sm{gpus[0].sm}",) if build == ("current",) and gpus[0].sm else build
    check_dtype(dtype, weight_dtype, options.attention, names, backend)
    get_log(trt)  # the first logger TensorRT is given stays, so let it be this one
    return Target(trt.__version__, build, names, register_plugins(trt))


def plan_engines(
    options: EngineOptions, target: Target, spec: ModelSpec, info: PruningInfo, max_seq_len: int | None
) -> EnginePlan:
    """The limits of the engines; the capacity is ``max_seq_len``, or follows from them.

    Raises:
        BuildError, BudgetError: for limits no engine can serve.
    """
    input_len = options.max_input_len
    if input_len is None:
        input_len = min(DEFAULT_INPUT_LEN, max_seq_len or spec.max_positions)
    stages = find_stages(info, spec.visual_tokens, spec.num_layers)
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


def find_stages(info: PruningInfo, visual_tokens: int, depth: int) -> tuple[Stage, ...]:
    """What becomes of an image in the segments of a decoder that prunes, over all budgets; empty for other methods."""
    method = pruning.get(info.method)
    if not isinstance(method, pruning.InLlmMethod):
        return ()
    options = method.validate_options(info.options)
    points = len(method.points(depth, options))

    def counts(kept: int, before: int) -> dict[str, int]:
        names = ("recycled", "merged")
        merged = zip(names, method.merged_counts(before - kept, options), strict=True)
        return {"keep": kept, **{name: n for name, n in merged if n}}

    # Each budget's way through the segments: tokens that enter, and what the point behind is told.
    ways: list[list[tuple[int, dict[str, int]]]] = []
    if options.get("ratio") == "rank":  # anything from one token on, one less at each point at the most
        for before, kept in ((visual_tokens, visual_tokens // 4), (visual_tokens, 1), (2, 1)):
            start = (visual_tokens, counts(kept, visual_tokens))
            ways.append([start, *((before, counts(kept, before)) for _ in range(points - 1)), (before, {})])
        ways.append([(visual_tokens, counts(visual_tokens - 1, visual_tokens))] * points + [(visual_tokens, {})])
    else:
        low, high = info.keep_range
        for keep in (info.keep, *range(low, high + 1)):
            schedule = method.schedule(keep, visual_tokens, depth, options)
            entering = (visual_tokens, *schedule.after)
            told = [counts(kept, before) for kept, before in zip(schedule.kept, entering, strict=False)]
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


def build_engines(
    plan: Plan, components: Sequence[ComponentInfo], staging: Path, say: Callable[[str, str], None]
) -> tuple[tuple[ComponentInfo, ...], dict[str, str], EngineInfo]:
    """An engine for each component, in ``staging/engines/``.

    Args:
        plan: With ``engines``.
        components: Of the graphs in ``staging/onnx/``, whose weights are in ``staging/weights/``.
        staging: The directory being written.
        say: Told of each engine; its attribute ``live``, if it has one, of what is being done now.

    Returns:
        The components with their engines, the digests of the engine files, and how they were built.

    Raises:
        BackendError, BuildError: naming the component and what TensorRT says.
    """
    from trtprune.backends.tensorrt.building import BuilderSettings, TimingCache, build_engine
    from trtprune.backends.tensorrt.flavour import get_log, load_tensorrt
    from trtprune.backends.tensorrt.network import Network, read_onnx

    assert plan.engines is not None
    options, target, limits = plan.engines.options, plan.engines.target, plan.engines.limits
    trt = load_tensorrt(plan.backend)
    log = get_log(trt)
    shared = {f.name: getattr(options, f.name) for f in fields(BuilderSettings) if f.name != "targets"}
    settings = BuilderSettings(targets=target.build, **shared)
    cache = TimingCache(options.load_timing_cache, options.save_timing_cache)
    live = getattr(say, "live", None)
    plugins: dict[str, str] = {}
    (staging / "engines").mkdir()

    def build_one(component: ComponentInfo) -> ComponentInfo:
        start = time.perf_counter()
        relative = f"engines/{component.name}.engine"
        proto = read_onnx(staging / component.onnx, {"capacity": limits.capacity_of(component.name)})
        # Turing; TensorRT-RTX refuses bfloat16 for it even where it is cast to float16 at once.
        old = plan.backend == "tensorrt-rtx" and "sm75" in target.names
        network = Network(trt, log, proto, staging, component.name, without_bfloat16=old)
        network.check(**_expected(plan, component, proto))
        plugins.update(_plugins_used(network, proto, target.plugins))
        profiles = build_engine(
            network,
            log,
            component_profiles(component.name, component.inputs, limits, plan.backend),
            settings,
            staging / relative,
            timing_cache=cache,
            live=None if live is None else lambda text: live(f"{component.name}: {text}"),
        )
        size, seconds = (staging / relative).stat().st_size, time.perf_counter() - start
        say(component.name, f"engine for {', '.join(target.names)}: {size / 1e6:,.1f} MB in {seconds:.1f} s")
        return replace(component, engine=relative, profiles=tuple(map(dict, profiles)))

    # One after the other, and nothing kept but the description: builder, parser and mapped weights go with each.
    built = tuple(build_one(component) for component in components)
    cache.save()
    paths = {made.engine: staging / made.engine for made in built if made.engine is not None}
    files = {name: digest_head(path) for name, path in paths.items()}
    for name, path in paths.items():
        # As of weights: beyond this, hashing at every load would cost more than it is worth.
        if path.stat().st_size <= FULL_CHECK_BYTES:
            files[name] += " " + digest_file(path)
    info = EngineInfo(
        version=target.version,
        targets=target.names,
        max_batch_size=limits.max_batch_size,
        max_input_len=limits.max_input_len,
        max_images=limits.max_images,
        attention=options.attention,
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility_level,
        weight_streaming=options.weight_streaming,
        plugins=plugins,
    )
    if plugins:
        say("plugins", f"needed to run: {', '.join(f'{name} {version}' for name, version in plugins.items())}")
    return built, files, info


def _expected(plan: Plan, component: ComponentInfo, proto: Any) -> dict[str, int]:
    """How many attention operators and cache writes the network of a component must have.

    Of a component with a cache, as many as it has cached layers, whatever its graph says; of another, as many as the
    graph has, so that none is lost in parsing.
    """
    layers = sum(spec.name.startswith("past_key_values.") and spec.name.endswith(".key") for spec in component.inputs)
    if layers:
        return {
            "attention": layers if plan.lowering.attention.startswith("op") else 0,
            "cache_updates": 2 * layers if plan.lowering.cache == "op" else 0,
        }
    return {"attention": sum(node.op_type == "Attention" for node in proto.graph.node), "cache_updates": 0}


def _plugins_used(network: Network, proto: Any, known: Mapping[str, str]) -> dict[str, str]:
    """The plugins that the parser took for operators of a graph; without them it inlines the operators' bodies."""
    kind = getattr(network.trt.LayerType, "PLUGIN_V3", None)
    if kind is None or kind not in network.layer_types():
        return {}
    operators = {node.op_type for node in proto.graph.node}
    return {name: version for name, version in known.items() if name in operators}
