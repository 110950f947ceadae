"""``build``: checkpoint → graphs → engine directory, all or nothing.

Orchestrates; knows no architecture (``models``), no method (``pruning``) and no file format beyond ``config.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune._version import __version__
from trtprune.checkpoint.of_build import CLIP_CONFIG, CLIP_TOKENIZER, MODEL_CONFIG
from trtprune.compiler.output import check_source, find_target, old_files
from trtprune.compiler.plan import Plan, Report, plan_build
from trtprune.compiler.staging import replacing_directory
from trtprune.compiler.texts import TEXT_FILES, check_texts
from trtprune.compiler.weights import check_way, place_weights
from trtprune.engine_dir import (
    CONFIG_NAME,
    FULL_CHECK_BYTES,
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
from trtprune.reports.downloads import unreported
from trtprune.tensor_names import cached_layers

if TYPE_CHECKING:
    from trtprune.compiler.engine_options import EngineOptions
    from trtprune.compiler.quantized import QuantizedWeights

__all__ = ["build"]


def build(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    keep: int | None = None,
    keep_range: tuple[int, int] | None = None,
    method: str = "adafv",
    options: Mapping[str, Any] | None = None,
    positions: str | None = None,
    backend: str = "onnxruntime",
    provider: str = "cpu",
    dtype: str | None = None,
    weight_dtype: str | None = None,
    max_seq_len: int | None = None,
    weights: str = "auto",
    revision: str | None = None,
    allow_extra_tensors: bool = False,
    lowering: Mapping[str, str] | None = None,
    engine: EngineOptions | None = None,
    clip: str | os.PathLike[str] | None = None,
    generation_config: str = "checkpoint",
    force: bool = False,
    export_only: bool = False,
    report: Report | None = None,
) -> EngineDir:
    """Builds an engine directory, or finds the finished one again.

    Args:
        model: Alias (``"llava-1.5-7b"``, ``"demo"``), hub id, or directory of a transformers checkpoint.
        output: The directory to write; it appears whole or not at all.  Where it is a symbolic link, the folder that
            the link leads to.
        keep: Default budget, visual tokens kept per image (default 64, or all of them for ``none``).
        keep_range: Inclusive limits of the budget at run time (default: 1 to all).
        method: A name from ``trtprune.pruning.names()``; ``options`` are its options.
        positions: ``"compact"`` or ``"original"`` position ids of the kept tokens (default: the method's own).
        backend: ``"onnxruntime"``, ``"tensorrt"`` or ``"tensorrt-rtx"``.
        provider: What the graphs are written for and run on by default: ``cpu``, ``cuda`` (ONNX Runtime), ``openvino``.
        dtype: Compute dtype (default ``float32``; ``float16`` on ``cuda`` and the TensorRT backends).
        weight_dtype: ``"int8"`` or ``"int4"`` stores the decoder's matrices quantised; None as in the checkpoint.
        max_seq_len: KV capacity in tokens, prompt and answer together (default: what the model's positions allow; of
            engines the longest prompt they serve, and 256 tokens or more for the answer).
        weights: ``"copy"``, ``"link"`` (hard links where possible), or ``"auto"``: reflinks, else copies of up to 4 GB,
            else links, which ``onnx`` refuses to load (``trtprune.compiler.weights``).
        lowering: How attention, norm and rotary are written out, over the backend's choice.
        engine: How the TensorRT backends build their engines, and for which GPUs.
        clip: The CLIP checkpoint that the model's vision tower was taken from, for methods that read CLIP's text;
            alias, hub id or directory.  With another method it is only kept in the build, for ``eval`` and ``bench``.
        generation_config: ``"checkpoint"`` takes the settings of the checkpoint's ``generation_config.json`` as
            defaults of every answer; ``"ignore"`` leaves them out, but for the tokens that end an answer.
        export_only: Write the graphs in the spelling of the backend, and no engines.
        force: Build even if the same build is there, and replace another engine directory at ``output``; one that
            holds other files than those of its build is refused.
        report: Called with (component, what happened) as work proceeds; by default these lines go to the logger
            ``trtprune``, and downloads draw a bar where stderr is a terminal or a notebook.

    Returns:
        The parsed engine directory.

    Raises:
        CheckpointError, BudgetError, BuildError, BackendError: each naming the file or flag at fault.
    """
    say = report or unreported
    check_way(weights)
    target = find_target(output, force)
    plan = plan_build(
        model,
        keep=keep,
        keep_range=keep_range,
        method=method,
        options=options,
        positions=positions,
        backend=backend,
        provider=provider,
        dtype=dtype,
        weight_dtype=weight_dtype,
        max_seq_len=max_seq_len,
        revision=revision,
        allow_extra_tensors=allow_extra_tensors,
        lowering=lowering,
        engine=engine,
        clip=clip,
        generation_config=generation_config,
        export_only=export_only,
        report=say,
    )
    if plan.checkpoint.weights is not None:
        check_source(target, plan.checkpoint.path)
    found = None if force else _reusable(target, plan, weights)
    if found is not None:
        say("build", f"{target} already holds this build (digest {plan.digest[:12]}); --force builds it again")
        return found
    check_texts(plan.checkpoint, plan.model, say)
    with replacing_directory(target, lambda: old_files(target)) as staging:
        engine_dir = _write(plan, staging, weights, say)
        (staging / CONFIG_NAME).write_text(engine_dir.to_json(), encoding="utf-8")
    return open_engine_dir(os.path.abspath(output), verify="none")


def _reusable(target: Path, plan: Plan, weights: str) -> EngineDir | None:
    """The finished build at ``target``, if it is this one; None if the place is free."""
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
    if weights == "copy" and any(file.stat().st_nlink > 1 for file in files):
        old_files(target)
        return None
    return found


def _write(plan: Plan, staging: Path, weights: str, say: Report) -> EngineDir:
    from trtprune.compiler.graphs import describe, make_graphs

    (staging / WEIGHTS).mkdir(parents=True)
    quantized = _plan_quantized(plan)
    components = []
    used: set[str] = set()
    graphs = make_graphs(plan, quantized)
    for part, graph in graphs.items():
        name = part.name
        relative = f"onnx/{name}.onnx"
        describe(graph, plan, name)
        # OpenVINO has no functions in its graphs; TensorRT finds its plugins by theirs.
        graph.save(staging / relative, inline=plan.backend == "onnxruntime" and plan.provider == "openvino")
        inputs, outputs, locations, nodes = _read_back(staging / relative)
        used |= locations
        components.append(ComponentInfo(name, part.role, part.segment, relative, None, inputs, outputs, (), plan.dtype))
        say(name, f"exported, {nodes} nodes")
    files = {component.onnx: digest_file(staging / component.onnx) for component in components}
    if quantized is not None:
        quantized.write(plan.checkpoint, staging / WEIGHTS, lambda text: say("weights", text))
    if plan.clip is not None:
        used |= {f"weights/{name}" for name in plan.clip.files}
    files |= _place_weights(plan, staging, sorted(used), weights, say)
    files |= _place_texts(plan, staging)
    spec, dtype_bytes = plan.spec, 4 if plan.dtype == "float32" else 2
    kv = KvInfo(
        capacity=plan.capacity,
        bytes_per_token=2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * dtype_bytes,
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=plan.dtype,
        segment_layers=_segment_layers(components),
    )
    engines = None
    if plan.engines is not None:
        from trtprune.compiler.engines import build_engines

        built, engine_files, engines = build_engines(plan, components, staging, say)
        components = list(built)
        files |= engine_files
    made = EngineDir(
        schema_version=SCHEMA_VERSION,
        backend=plan.backend,
        lowering={name: str(form) for name, form in vars(plan.lowering).items()},
        dtype=plan.dtype,
        model=_model_info(plan),
        vision=_vision_info(plan),
        pruning=plan.pruning,
        components=tuple(components),
        chain=tuple(part.name for part in graphs),
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

        size = cache_bytes(made) * engines.max_batch_size
        rows = f"{engines.max_batch_size} row{'s' if engines.max_batch_size > 1 else ''}"
        say("kv cache", f"{rows} of {kv.capacity:,} tokens: {size / 1e6:,.1f} MB on the GPU")
    return made


def _segment_layers(components: Sequence[ComponentInfo]) -> tuple[int, ...]:
    segments = [component for component in components if component.role == DECODER and component.segment is not None]
    return tuple(cached_layers(spec.name for spec in segment.inputs) for segment in segments)


def _plan_quantized(plan: Plan) -> QuantizedWeights | None:
    if plan.weight_dtype is None:
        return None
    from trtprune.compiler.quantized import plan_quantized

    used = plan.model.used_tensors()
    linears = plan.model.linear_weights()
    return plan_quantized(
        plan.checkpoint,
        linears={name: used[name] for name in linears},
        used=used,
        int8_only=frozenset(name for name, sensitive in linears.items() if sensitive),
        dtype=plan.dtype,
        weight_dtype=plan.weight_dtype,
    )


def _model_info(plan: Plan) -> ModelInfo:
    spec, checkpoint = plan.spec, plan.checkpoint
    return ModelInfo(
        id=checkpoint.id,
        revision=checkpoint.revision,
        digest=checkpoint.digest(),
        family=plan.model.family,
        image_size=spec.image_size,
        patch_grid=spec.patch_grid,
        visual_tokens=spec.visual_tokens,
        has_cls=spec.has_cls,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        max_positions=spec.max_positions,
        image_token=spec.image_token,
        image_token_id=spec.image_token_id,
        eos_token_ids=spec.eos_token_ids,
        keeps_cls_feature=spec.keeps_cls_feature,
        first_patch=spec.first_patch,
    )


def _vision_info(plan: Plan) -> VisionInfo:
    processor = plan.model.processor
    return VisionInfo(
        processor=processor.name,
        settings=processor.settings(),
        tokens=processor.tokens_range,
        crops=processor.crops_range,
        # Inside the decoder newline tokens take part like any visual token, as in the authors' codes.
        newlines="candidates" if plan.method.inside else "drop",
    )


def _built_with(plan: Plan) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"trtprune": __version__, "provider": plan.provider}
    if plan.clip is not None:
        versions["clip"] = plan.clip.checkpoint.id
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
    """What the file itself says: the config cannot disagree with the graph it describes."""
    import onnx

    model = read_graph(path)

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        kind = value.type.tensor_type
        name = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        shape = tuple(d.dim_param if d.HasField("dim_param") else d.dim_value for d in kind.shape.dim)
        return TensorSpec(value.name, name, shape)

    graph, nodes = model.graph, sum(count_operators(model).values())
    return tuple(map(spec, graph.input)), tuple(map(spec, graph.output)), weight_locations(model), nodes


def _place_weights(plan: Plan, staging: Path, locations: list[str], how: str, say: Report) -> dict[str, str]:
    names = [location.partition("/")[2] for location in locations]
    for location, name in zip(locations, names, strict=True):
        if not location.startswith("weights/") or "/" in name:
            raise BuildError(f"graph refers to {location!r}, which is not in weights/", hint="report this as a bug")
    folder = staging / WEIGHTS
    # The files of a quantised build are there already.
    missing = {name: _weight_file(plan, name) for name in names if not (folder / name).exists()}
    outcome = place_weights(missing, folder, how)
    size = sum((folder / name).stat().st_size for name in names)
    files = {}
    for name in names:
        files[f"{WEIGHTS}/{name}"] = digest_weights(folder / name)
        # Beyond this, hashing would take longer than the build; files says which kind it holds.
        if size <= FULL_CHECK_BYTES:
            files[f"{WEIGHTS}/{name}"] += " " + digest_file(folder / name)
    say("weights", f"{size / 1e6:,.0f} MB {outcome or 'in all'}")
    return files


def _weight_file(plan: Plan, name: str) -> Path:
    """Where the file lies that a graph calls ``name``."""
    if plan.clip is not None and name in plan.clip.files:
        return plan.clip.checkpoint.weight_file(plan.clip.files[name])
    return plan.checkpoint.weight_file(name)


def _place_texts(plan: Plan, staging: Path) -> dict[str, str]:
    # With the model's own config beside its weights a build can be built from: with another method, say.
    (staging / MODEL_CONFIG).write_text(json.dumps(plan.checkpoint.config, indent=2) + "\n", encoding="utf-8")
    files = {MODEL_CONFIG: digest_file(staging / MODEL_CONFIG)}
    if plan.clip is not None:
        text = json.dumps(plan.clip.checkpoint.config, indent=2) + "\n"
        for name, content in ((CLIP_CONFIG, text), (CLIP_TOKENIZER, plan.clip.tokenizer)):
            (staging / name).write_text(content, encoding="utf-8")
            files[name] = digest_file(staging / name)
    for name in TEXT_FILES:
        data = plan.checkpoint.text_bytes(name)
        if data is not None:
            (staging / name).write_bytes(data)
            files[name] = digest_file(staging / name)
    return files
