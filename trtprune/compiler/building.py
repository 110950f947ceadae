"""``build``: checkpoint → graphs → engine directory, all or nothing.

Orchestrates; knows no architecture (``models``), no method (``pruning``) and no file format beyond ``config.json``.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from trtprune._version import __version__
from trtprune.arguments import arg
from trtprune.checkpoint import SIDE_FILES
from trtprune.checkpoint.of_build import CLIP_CONFIG, CLIP_TOKENIZER, MODEL_CONFIG
from trtprune.compiler.calibration import calibrated, calibration_digest
from trtprune.compiler.output import check_source, find_target, old_files
from trtprune.compiler.plan import Plan, plan_build
from trtprune.compiler.request import BuildRequest, BuildSettings
from trtprune.compiler.staging import replacing_directory
from trtprune.compiler.texts import check_texts
from trtprune.compiler.weights import place_weights
from trtprune.engine_dir import (
    CONFIG_NAME,
    FULL_CHECK_BYTES,
    QUANTIZATION,
    SCHEMA_VERSION,
    WEIGHTS,
    ComponentInfo,
    EngineDir,
    KvInfo,
    ModelInfo,
    TensorSpec,
    VisionInfo,
    digest_file,
    digest_weights,
    open_engine_dir,
)
from trtprune.engine_dir.graphs import count_operators, read_graph, weight_locations
from trtprune.engine_dir.roles import DECODER
from trtprune.errors import BuildError, EngineDirError
from trtprune.reports.reporter import SILENT, Report, Reporter, reporter_of
from trtprune.tensor_names import SALIENCY, cached_layers

if TYPE_CHECKING:
    from trtprune.compiler.quantized import QuantizedWeights
    from trtprune.text.info import TextInfo

__all__ = ["build"]


@overload
def build(request: BuildRequest, /, *, report: Report | None = None) -> EngineDir: ...


@overload
def build(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    report: Report | None = None,
    **settings: Unpack[BuildSettings],
) -> EngineDir: ...


def build(
    model: BuildRequest | str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    report: Report | None = None,
    **settings: Any,
) -> EngineDir:
    """Builds an engine directory, or finds the finished one again.

        build("llava-1.5-7b", "out", keep=64, method="divprune")
        build(BuildRequest("llava-1.5-7b", "out", keep=64, method="divprune"))

    Args:
        model: Alias (``"llava-1.5-7b"``, ``"demo"``), hub id, or directory of a transformers checkpoint; or, alone, a
            :class:`~trtprune.compiler.request.BuildRequest`.
        output: The directory to write; it appears whole or not at all.
        report: Called with (component, message) during the work; by default these lines go to the logger ``trtprune``,
            and downloads draw a bar in a terminal or notebook.
        **settings: The other fields of :class:`~trtprune.compiler.request.BuildRequest`, which says what each of them
            is: ``keep``, ``keep_range``, ``method``, ``options``, ``backend``, ``dtype``, ``force``, …

    Returns:
        The parsed engine directory.

    Raises:
        CheckpointError, BudgetError, BuildError, BackendError: each naming the file or flag at fault.
    """
    if not isinstance(model, BuildRequest):
        if output is None:
            raise TypeError("build() needs an output beside the model")
        return _build(BuildRequest(model, output, **settings), reporter_of(report))
    if output is not None or settings:
        raise TypeError("build() takes a BuildRequest alone; dataclasses.replace() changes one")
    return _build(model, reporter_of(report))


def _signature() -> inspect.Signature:
    """A build's arguments one by one, for help() and notebooks, which do not know the keys of ``settings``."""
    request = [*inspect.signature(BuildRequest).parameters.values()]
    report = inspect.signature(build).parameters["report"]
    return inspect.Signature([*request, report], return_annotation="EngineDir")


build.__dict__["__signature__"] = _signature()


def _build(request: BuildRequest, report: Reporter) -> EngineDir:
    target = find_target(request.output, request.force)
    plan = plan_build(request, report)
    if plan.checkpoint.weights is not None:
        check_source(target, plan.checkpoint.path)
    finished = None if request.force else _reusable(target, plan)
    if finished is not None:
        report("build", f"{target} already holds this build (digest {plan.digest[:12]}); --force builds it again")
        return finished
    texts = check_texts(plan.checkpoint, plan.model, report)
    with replacing_directory(target, lambda: old_files(target)) as staging:
        engine_dir = _write(plan, texts, staging, report)
        (staging / CONFIG_NAME).write_text(engine_dir.to_json(), encoding="utf-8")
    return open_engine_dir(os.path.abspath(request.output), verify="none")


def _reusable(target: Path, plan: Plan) -> EngineDir | None:
    """The finished build at ``target``, if it is the same one; None if the place is free."""
    if not (target / CONFIG_NAME).exists():
        return None
    try:
        found = open_engine_dir(target)
    except EngineDirError as error:
        raise BuildError(f"{error.marked_message}", hint="--force replaces this engine directory") from None
    if found.build_digest != plan.digest:
        have = f"{found.model.id}, {found.pruning.method}, keep {found.pruning.keep}, {found.backend}, {found.dtype}"
        if found.weight_dtype is not None:
            have += f", {found.weight_dtype} weights"
        raise BuildError(f"{target}: holds another build ({have})", hint="--force replaces it, or choose another -o")
    files = [target / WEIGHTS / name for name in found.weight_files()]
    if plan.request.weights == "copy" and any(file.stat().st_nlink > 1 for file in files):
        old_files(target)
        return None
    return found


def _write(plan: Plan, texts: TextInfo, staging: Path, report: Reporter) -> EngineDir:
    (staging / WEIGHTS).mkdir(parents=True)
    quantized = _plan_quantized(plan)
    components, locations = _write_graphs(plan, quantized, staging, report)
    files = {component.onnx: digest_file(staging / component.onnx) for component in components}
    if quantized is not None:
        tensors = plan.model.weight_tensors()
        smoothing = calibrated(
            plan.request,
            plan.checkpoint,
            tensors,
            quantized.smoothable,
            staging,
            report,
            lambda own: _build(own, SILENT),
        )
        quantized.write(plan.checkpoint, staging / WEIGHTS, lambda text: report("weights", text), smoothing)
    if plan.clip is not None:
        locations |= {f"weights/{name}" for name in plan.clip.files}
    files |= _place_weights(plan, staging, sorted(locations), report)
    files |= _place_texts(plan, staging)
    chain, engines = tuple(component.name for component in components), None
    kv = _kv_info(plan, components)
    if plan.engines is not None:
        from trtprune.compiler.engines import build_engines

        built, engine_files, engines = build_engines(plan, components, staging, report)
        components = list(built)
        files |= engine_files
    engine_dir = EngineDir(
        schema_version=SCHEMA_VERSION,
        backend=plan.backend,
        lowering={name: str(form) for name, form in vars(plan.lowering).items()},
        dtype=plan.dtype,
        model=_model_info(plan),
        vision=_vision_info(plan),
        text=texts,
        positions=plan.positions,
        pruning=plan.pruning,
        components=tuple(components),
        chain=chain,
        kv=kv,
        built_with=_built_with(plan),
        build_digest=plan.digest,
        files=files,
        weight_dtype=plan.weight_dtype,
        engines=engines,
        generation=plan.generation,
        root=staging,
    )
    if engines is not None:
        from trtprune.backends.tensorrt.shapes import cache_bytes

        size = cache_bytes(engine_dir) * engines.max_batch_size
        rows = f"{engines.max_batch_size} row{'s' if engines.max_batch_size > 1 else ''}"
        report("kv cache", f"{rows} of {kv.capacity:,} tokens: {size / 1e6:,.1f} MB on the GPU")
    return engine_dir


def _write_graphs(
    plan: Plan, quantized: QuantizedWeights | None, staging: Path, report: Reporter
) -> tuple[list[ComponentInfo], set[str]]:
    """Writes the graphs; the components in the order of the chain, and the weight files that they refer to."""
    from trtprune.compiler.graphs import describe, make_graphs

    components, used = [], set()
    for part, graph in make_graphs(plan, quantized).items():
        name = part.name
        relative = f"onnx/{name}.onnx"
        describe(graph, plan, name)
        # OpenVINO's graphs cannot have functions; TensorRT finds its plugins by the functions' names.
        graph.save(staging / relative, inline=plan.backend == "onnxruntime" and plan.provider == "openvino")
        inputs, outputs, locations, nodes = _read_back(staging / relative)
        used |= locations
        components.append(ComponentInfo(name, part.role, part.segment, relative, None, inputs, outputs, (), plan.dtype))
        report(name, f"exported, {nodes} nodes")
    return components, used


def _kv_info(plan: Plan, components: Sequence[ComponentInfo]) -> KvInfo:
    spec, value_bytes = plan.spec, 4 if plan.dtype == "float32" else 2
    return KvInfo(
        capacity=plan.capacity,
        bytes_per_token=2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * value_bytes,
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=plan.dtype,
        segment_layers=_segment_layers(components),
    )


def _segment_layers(components: Sequence[ComponentInfo]) -> tuple[int, ...]:
    segments = [component for component in components if component.role == DECODER and component.segment is not None]
    return tuple(cached_layers(spec.name for spec in segment.inputs) for segment in segments)


def _plan_quantized(plan: Plan) -> QuantizedWeights | None:
    """The files of quantised matrices; raises BuildError if none is there for products of 8-bit integers."""
    planned = _quantized_files(plan)
    matrices = planned.matrices.values() if planned else ()
    if plan.request.activation_dtype == "int8" and not any(matrix.int8_by_channel for matrix in matrices):
        raise BuildError(
            f"{arg('activation_dtype', 'int8')}: the decoder has no int8 matrix with a scale an output channel",
            hint=f"add {arg('weight_dtype', 'int8')}",
        )
    return planned


def _quantized_files(plan: Plan) -> QuantizedWeights | None:
    if plan.weight_dtype is None and not plan.checkpoint.stored:
        return None
    from trtprune.compiler.carried import Forms
    from trtprune.compiler.quantized import plan_quantized

    used = plan.model.used_tensors()
    linears = plan.model.linear_weights()
    return plan_quantized(
        plan.checkpoint,
        linears={name: used[name] for name in linears},
        used=used,
        int8_only=frozenset(name for name, sensitive in linears.items() if sensitive),
        forms=Forms.of(plan.backend, plan.dtype, plan.engines.target.names if plan.engines else ()),
        weight_dtype=plan.weight_dtype,
        scaled=plan.model.scaled_features() if plan.request.activation_dtype == "int8" else (),
    )


def _model_info(plan: Plan) -> ModelInfo:
    """Where the model comes from, and its facts: the fields of the same names."""
    origin: dict[str, Any] = {
        "id": plan.checkpoint.id,
        "revision": plan.checkpoint.revision,
        "digest": plan.checkpoint.digest(),
        "family": plan.model.family,
    }
    facts = {field.name: getattr(plan.spec, field.name) for field in fields(ModelInfo) if field.name not in origin}
    return ModelInfo(**origin, **facts)


def _vision_info(plan: Plan) -> VisionInfo:
    processor = plan.model.processor
    return VisionInfo(
        processor=processor.name,
        settings=processor.settings(),
        tokens=processor.tokens_range,
        crops=processor.crops_range,
        newlines=plan.newlines,
        saliency=tuple(name for name in SALIENCY if name in plan.pruning.needs),
    )


def _built_with(plan: Plan) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"trtprune": __version__, "provider": plan.provider}
    if plan.checkpoint.scheme is not None:
        versions[QUANTIZATION] = plan.checkpoint.scheme.label
    if plan.clip is not None:
        versions["clip"] = plan.clip.checkpoint.id
    if plan.request.activation_dtype == "int8":
        versions["calibration"] = calibration_digest(plan.request.calibration)
    if plan.engines is not None:
        versions[plan.backend] = plan.engines.target.version
    runtimes = ("openvino",) if plan.provider == "openvino" else ()
    for package in ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", *runtimes):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _read_back(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], set[str], int]:
    """Facts from the written file itself, so that the config cannot differ from its graph."""
    import onnx

    model = read_graph(path)

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        kind = value.type.tensor_type
        name = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        shape = tuple(d.dim_param if d.HasField("dim_param") else d.dim_value for d in kind.shape.dim)
        return TensorSpec(value.name, name, shape)

    graph, nodes = model.graph, sum(count_operators(model).values())
    return tuple(map(spec, graph.input)), tuple(map(spec, graph.output)), weight_locations(model), nodes


def _place_weights(plan: Plan, staging: Path, locations: list[str], report: Reporter) -> dict[str, str]:
    names = [location.partition("/")[2] for location in locations]
    for location, name in zip(locations, names, strict=True):
        if not location.startswith("weights/") or "/" in name:
            raise BuildError(f"graph refers to {location!r}, which is not in weights/", hint="report this as a bug")
    folder = staging / WEIGHTS
    # The files of a quantised build exist already.
    missing = {name: _weight_file(plan, name) for name in names if not (folder / name).exists()}
    outcome = place_weights(missing, folder, plan.request.weights)
    size = sum((folder / name).stat().st_size for name in names)
    files = {}
    for name in names:
        files[f"{WEIGHTS}/{name}"] = digest_weights(folder / name)
        # Above this, hashing would take longer than the build; the digest names its kind.
        if size <= FULL_CHECK_BYTES:
            files[f"{WEIGHTS}/{name}"] += " " + digest_file(folder / name)
    report("weights", f"{size / 1e6:,.0f} MB {outcome or 'in all'}")
    return files


def _weight_file(plan: Plan, name: str) -> Path:
    """The path of the weight file that graphs call ``name``."""
    if plan.clip is not None and name in plan.clip.files:
        return plan.clip.checkpoint.weight_file(plan.clip.files[name])
    return plan.checkpoint.weight_file(name)


def _place_texts(plan: Plan, staging: Path) -> dict[str, str]:
    # With the model's own config beside its weights a build can be the source of another build.
    (staging / MODEL_CONFIG).write_text(json.dumps(plan.checkpoint.config, indent=2) + "\n", encoding="utf-8")
    files = {MODEL_CONFIG: digest_file(staging / MODEL_CONFIG)}
    if plan.clip is not None:
        text = json.dumps(plan.clip.checkpoint.config, indent=2) + "\n"
        for name, content in ((CLIP_CONFIG, text), (CLIP_TOKENIZER, plan.clip.tokenizer)):
            (staging / name).write_text(content, encoding="utf-8")
            files[name] = digest_file(staging / name)
    for name in SIDE_FILES:
        data = plan.checkpoint.text_bytes(name)
        if data is not None:
            (staging / name).write_bytes(data)
            files[name] = digest_file(staging / name)
    return files
