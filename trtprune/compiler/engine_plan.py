"""The plan of TensorRT engines: GPUs and limits of every input.  Builds nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trtprune.backends.tensorrt.profiles import ImageBounds, Limits, check_limits, default_capacity, entering
from trtprune.compiler.engine_options import DEFAULT_INPUT_LEN, EngineOptions, check_dtype, resolve_targets
from trtprune.compiler.engine_stages import find_stages
from trtprune.engine_dir import PruningInfo

if TYPE_CHECKING:
    from trtprune.runtime.images import Processor

__all__ = ["EnginePlan", "Target", "find_limits", "find_target", "image_bounds", "plan_engines"]


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


def plan_engines(options: EngineOptions, target: Target, limits: Limits) -> EnginePlan:
    """The engines of a build.

    Raises:
        BuildError: for limits no engine can serve.
    """
    check_limits(limits)
    return EnginePlan(options, target, limits)


def image_bounds(processor: Processor, newlines: str) -> ImageBounds:
    """The bounds of a processor's images; ``newlines`` is the newline rule of the build."""
    return ImageBounds(
        processor.tokens_range,
        processor.crops_range,
        processor.most_newlines if newlines != "candidates" else 0,
        newlines_stay=newlines == "keep",
        fixed=processor.fixed_tokens,
        dims=processor.vision_dims,
    )


def find_limits(
    options: EngineOptions, info: PruningInfo, image: ImageBounds, max_positions: int, max_seq_len: int | None
) -> Limits:
    """The limits of a build's engines; the capacity is ``max_seq_len``, or follows from them."""
    input_len = options.max_input_len
    if input_len is None:
        input_len = min(DEFAULT_INPUT_LEN, max_seq_len or max_positions)
    stages = find_stages(info, *image.tokens)
    capacity = max_seq_len
    if capacity is None:
        most = image.tokens[1] if stages else entering(image, info.keep_range[1])
        capacity = default_capacity(max_positions, input_len, options.max_images, most)
    return Limits(
        visual_tokens=image.tokens[1],
        keep=info.keep,
        keep_range=info.keep_range,
        capacity=capacity,
        max_batch_size=options.max_batch_size,
        max_input_len=input_len,
        max_images=options.max_images,
        stages=stages,
        bounds=image,
    )
