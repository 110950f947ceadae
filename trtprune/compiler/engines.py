"""The TensorRT half of ``build``: an engine for every graph of the chain, by the plan of ``engine_plan``.

Orchestrates ``backends.tensorrt``; knows no model and no method.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.backends.tensorrt.profiles import component_profiles
from trtprune.engine_dir import (
    FULL_CHECK_BYTES,
    ComponentInfo,
    EngineInfo,
    digest_file,
    digest_head,
)
from trtprune.tensor_names import cached_layers

if TYPE_CHECKING:
    from trtprune.backends.tensorrt.network import Network
    from trtprune.compiler.plan import Plan
    from trtprune.reports.reporter import Reporter

__all__ = ["build_engines"]


def build_engines(
    plan: Plan, components: Sequence[ComponentInfo], staging: Path, report: Reporter
) -> tuple[tuple[ComponentInfo, ...], dict[str, str], EngineInfo]:
    """An engine for each component, in ``staging/engines/``.

    Args:
        plan: A plan with ``engines``.
        components: Components of the graphs in ``staging/onnx/``.
        staging: The directory that is written.
        report: Takes a line an engine, and what is being done now.

    Returns:
        The components with their engines, the digests of the engine files, and their build settings.

    Raises:
        BackendError, BuildError: naming the component, with TensorRT's message.
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
    plugins: dict[str, str] = {}
    (staging / "engines").mkdir()

    def build_one(component: ComponentInfo) -> ComponentInfo:
        start = time.perf_counter()
        relative = f"engines/{component.name}.engine"
        proto = read_onnx(staging / component.onnx, {"capacity": limits.capacity_of(component.segment)})
        # Turing; TensorRT-RTX refuses bfloat16 for it even if it is cast to float16 at once.
        old = plan.backend == "tensorrt-rtx" and "sm75" in target.names
        network = Network(trt, log, proto, staging / "onnx", component.name, without_bfloat16=old)
        network.check(**_expected(plan, component, proto))
        plugins.update(_plugins_used(network, proto, target.plugins))
        profiles = build_engine(
            network,
            log,
            component_profiles(component.part, component.inputs, limits, plan.backend),
            settings,
            staging / relative,
            timing_cache=cache,
            live=lambda text: report.live(f"{component.name}: {text}"),
        )
        size, seconds = (staging / relative).stat().st_size, time.perf_counter() - start
        report(component.name, f"engine for {', '.join(target.names)}: {size / 1e6:,.1f} MB in {seconds:.1f} s")
        return replace(component, engine=relative, profiles=tuple(map(dict, profiles)))

    # One after another, and only descriptions are kept: builder, parser and mapped weights are released each time.
    built = tuple(build_one(component) for component in components)
    cache.save()
    if plugins:
        report("plugins", f"needed to run: {', '.join(f'{name} {version}' for name, version in plugins.items())}")
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
    return built, _digests(built, staging), info


def _digests(components: Sequence[ComponentInfo], staging: Path) -> dict[str, str]:
    """The digest of each engine file."""
    files = {}
    for name in (component.engine for component in components):
        if name is not None:
            path = staging / name
            files[name] = digest_head(path)
            # As for weights: above this, hashing at every load would take too long.
            if path.stat().st_size <= FULL_CHECK_BYTES:
                files[name] += " " + digest_file(path)
    return files


def _expected(plan: Plan, component: ComponentInfo, proto: Any) -> dict[str, int]:
    """The required numbers of attention operators and cache writes in the network of a component.

    With a cache, the number of cached layers, whatever the graph says; otherwise the graph's number, so that none is
    lost in parsing.
    """
    layers = cached_layers(spec.name for spec in component.inputs)
    if layers:
        return {
            "attention": layers if plan.lowering.attention.startswith("op") else 0,
            "cache_updates": 2 * layers if plan.lowering.cache == "op" else 0,
        }
    return {"attention": sum(node.op_type == "Attention" for node in proto.graph.node), "cache_updates": 0}


def _plugins_used(network: Network, proto: Any, known: Mapping[str, str]) -> dict[str, str]:
    """The plugins that the parser used for operators of a graph; without them it inlines the operators' bodies."""
    kind = getattr(network.trt.LayerType, "PLUGIN_V3", None)
    if kind is None or kind not in network.layer_types():
        return {}
    operators = {node.op_type for node in proto.graph.node}
    return {name: version for name, version in known.items() if name in operators}
