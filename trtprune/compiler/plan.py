"""What a build will be, decided and checked before a byte is written.

Orchestrates; knows no architecture (``models``) and no method (``pruning``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trtprune import pruning
from trtprune._version import __version__
from trtprune.arguments import arg
from trtprune.compiler.texts import check_texts
from trtprune.engine_dir import SCHEMA_VERSION, GenerationInfo, PruningInfo
from trtprune.errors import BuildError, CheckpointError, shown
from trtprune.models.generation_config import check_choice, read_generation
from trtprune.reports.downloads import Report, progress_of, unreported

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint
    from trtprune.compiler.engine_options import EngineOptions
    from trtprune.compiler.engine_plan import EnginePlan, Target
    from trtprune.graph import Lowering
    from trtprune.models import Model, ModelSpec
    from trtprune.models.clip_text import Clip
    from trtprune.pruning import BaseMethod

__all__ = ["Plan", "Report", "plan_build"]

DTYPES = ("float32", "float16", "bfloat16")
BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
WEIGHT_DTYPES = ("int8", "int4")


@dataclass(frozen=True)
class Plan:
    """Everything decided before a byte is written: what is built, from what, with which budget."""

    checkpoint: Checkpoint
    model: Model
    spec: ModelSpec
    method: BaseMethod
    pruning: PruningInfo
    backend: str
    provider: str
    dtype: str
    weight_dtype: str | None
    capacity: int
    lowering: Lowering
    engines: EnginePlan | None
    clip: Clip | None
    generation: GenerationInfo
    digest: str


def plan_build(
    model: str | os.PathLike[str],
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
    revision: str | None = None,
    allow_extra_tensors: bool = False,
    lowering: Mapping[str, str] | None = None,
    engine: EngineOptions | None = None,
    clip: str | os.PathLike[str] | None = None,
    generation_config: str = "checkpoint",
    export_only: bool = False,
    report: Report | None = None,
) -> Plan:
    """Resolves the model and checks every argument against it; writes nothing. Arguments as in ``build``."""
    from trtprune.checkpoint import resolve
    from trtprune.compiler.engine_options import EngineOptions, check_options
    from trtprune.compiler.engine_plan import find_target
    from trtprune.models import open_model

    say = report or unreported
    chosen = pruning.get(method)  # before the model is fetched: a misspelt method should not cost a download
    dtype = _check_target(backend, provider, dtype)
    _check_weight_dtype(weight_dtype, backend, dtype)
    check_choice(generation_config)
    engine = engine or EngineOptions()
    check_options(engine, backend, export_only)
    target = None if backend == "onnxruntime" or export_only else find_target(backend, engine, dtype, weight_dtype)
    chosen_lowering = _lowering(backend, provider, lowering, engine.attention)
    if target is not None:
        chosen_lowering = _for_engines(chosen_lowering, backend, target.names, dtype)
    values = chosen.validate_options(dict(options or {}))

    def unsaid(component: str, message: str) -> None:
        """Where warnings go that are to be repeated."""

    asked = _Asked(chosen, values, keep, keep_range, positions, max_seq_len, engine, target)

    def judge(found: Checkpoint) -> None:
        """What the config alone rules out must not cost a download, or be said of missing weights."""
        opened = open_model(found)
        spec = opened.spec
        asked.decide(spec, clip=clip is not None or found.weights is not None)
        if found.remote:
            # Said again, and with its warnings, when the weights are here.
            _generation(found, spec, generation_config, unsaid)
            check_texts(found, opened, unsaid)

    checkpoint = resolve(os.fspath(model), revision=revision, progress=progress_of(say, "model"), check=judge)
    opened = open_model(checkpoint)
    spec = opened.spec
    for warning in opened.check_weights(allow_extra=allow_extra_tensors):
        say("model", f"warning: {warning}")
    generation = _generation(checkpoint, spec, generation_config, say)
    second = _find_clip(checkpoint, opened, clip, say)
    info, capacity, engines = asked.decide(spec, clip=second is not None)
    digest = hashlib.sha256(
        json.dumps(
            {
                "trtprune": __version__,
                "schema": SCHEMA_VERSION,
                "checkpoint": checkpoint.digest(),
                "pruning": dataclasses.asdict(info),
                "backend": [backend, provider, dtype, weight_dtype, capacity, export_only],
                "lowering": vars(chosen_lowering),
                **({"engines": engines.identity()} if engines is not None else {}),
                **({"clip": second.digest} if second is not None else {}),
                **({"generation": generation_config} if generation_config != "checkpoint" else {}),
            },
            sort_keys=True,
            default=str,
        ).encode()
    ).hexdigest()
    return Plan(
        checkpoint,
        opened,
        spec,
        chosen,
        info,
        backend,
        provider,
        dtype,
        weight_dtype,
        capacity,
        chosen_lowering,
        engines,
        second,
        generation,
        digest,
    )


@dataclass(frozen=True)
class _Asked:
    """What was asked of the budget and of the lengths, with the method's options validated."""

    method: BaseMethod
    options: Mapping[str, Any]
    keep: int | None
    keep_range: tuple[int, int] | None
    positions: str | None
    max_seq_len: int | None
    engine: EngineOptions
    target: Target | None

    def decide(self, spec: ModelSpec, *, clip: bool) -> tuple[PruningInfo, int, EnginePlan | None]:
        """Budget, KV capacity and engines for a model, with or without CLIP's text tower.

        Raises:
            BudgetError, BuildError: naming the flag that this model cannot serve.
        """
        from trtprune.compiler.budget import resolve_budget
        from trtprune.compiler.engine_plan import plan_engines

        info = resolve_budget(
            self.method,
            spec,
            keep=self.keep,
            keep_range=self.keep_range,
            options=self.options,
            positions=self.positions,
            clip=clip,
        )
        if self.target is None:
            return info, _capacity(spec, info, self.max_seq_len), None
        _capacity(spec, info, self.max_seq_len)
        engines = plan_engines(self.engine, self.target, spec, info, self.max_seq_len)
        return info, engines.limits.capacity, engines


def _generation(checkpoint: Checkpoint, spec: ModelSpec, choice: str, say: Report) -> GenerationInfo:
    """How answers are generated, and a line about what is not as one would expect."""
    found = read_generation(checkpoint, spec.vocab_size, choice)
    said = found.said()
    if said:
        say("model", f"{found.source}: " + ", ".join(f"{name} {shown(value)}" for name, value in said.items()))
    if not spec.eos_token_ids:
        say("model", "warning: no eos_token_id in generation_config.json: as in transformers, no token ends an answer")
    return found


def _find_clip(checkpoint: Checkpoint, model: Model, clip: str | os.PathLike[str] | None, say: Report) -> Clip | None:
    """The CLIP checkpoint that was named, or the one that is part of the build the model is taken from."""
    from trtprune.engine_dir import open_engine_dir
    from trtprune.models.clip_text import clip_of_build, open_clip

    if clip is not None:
        found = open_clip(clip, progress=progress_of(say, "clip"))
    elif checkpoint.weights is not None:
        kept = clip_of_build(open_engine_dir(checkpoint.path, verify="none"))
        if kept is None:
            return None
        found = kept
    else:
        return None
    twice = sorted(set(found.files) & set(checkpoint.files))
    if twice:
        raise CheckpointError(f"{checkpoint.path}: {twice[0]} is the name of a file of {arg('clip')}", hint="rename it")
    for warning in model.check_clip(found):
        say("clip", f"warning: {warning}")
    return found


def _check_target(backend: str, provider: str, dtype: str | None) -> str:
    if backend not in BACKENDS:
        raise BuildError(f"{arg('backend', backend)}: unknown", hint=f"one of {', '.join(BACKENDS)}")
    from trtprune.backends.opening import PROVIDERS

    if provider not in PROVIDERS:
        raise BuildError(f"{arg('provider', provider)}: unknown", hint=f"one of {', '.join(PROVIDERS)}")
    if dtype is None:
        return "float32" if backend == "onnxruntime" and provider != "cuda" else "float16"
    aliases = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    dtype = aliases.get(dtype, dtype)
    if dtype not in DTYPES:
        raise BuildError(f"{arg('dtype', dtype)}: unknown", hint=f"one of {', '.join(DTYPES)}")
    if dtype == "bfloat16" and backend == "onnxruntime" and provider != "cuda":
        raise BuildError(
            f"{arg('dtype', 'bfloat16')}: ONNX Runtime has no bfloat16 kernels for provider {provider}",
            hint=f"{arg('dtype', 'float32')} computes in float32 from the same bfloat16 weights",
        )
    return dtype


def _check_weight_dtype(weight_dtype: str | None, backend: str, dtype: str) -> None:
    if weight_dtype is None:
        return
    if weight_dtype not in WEIGHT_DTYPES:
        raise BuildError(
            f"{arg('weight_dtype', weight_dtype)}: unknown",
            hint=f"one of {', '.join(WEIGHT_DTYPES)}; {arg('dtype')} is what the graphs compute in",
        )
    if backend == "onnxruntime" and dtype == "bfloat16":
        raise BuildError(
            f"{arg('weight_dtype', weight_dtype)}: ONNX Runtime dequantises to float32 and float16 only, not to "
            "bfloat16",
            hint=arg("dtype", "float16"),
        )


def _capacity(spec: ModelSpec, info: PruningInfo, max_seq_len: int | None) -> int:
    if max_seq_len is None:
        return spec.max_positions
    if not info.keep < max_seq_len <= spec.max_positions:
        raise BuildError(
            f"{arg('max_seq_len', max_seq_len)}: must lie above {arg('keep')} ({info.keep}) and not above the model's "
            f"{spec.max_positions} positions",
            hint="it counts the kept visual tokens, the prompt and the answer together",
        )
    return max_seq_len


def _lowering(backend: str, provider: str, changes: Mapping[str, str] | None, attention: str | None = None) -> Lowering:
    from trtprune.compiler.engine_options import ATTENTION_FORMS
    from trtprune.graph import Lowering
    from trtprune.graph.lowering import FORMS

    # The GPU and OpenVINO run other spellings fast than ONNX Runtime's CPU kernels do.
    lowering = Lowering.for_backend(backend if backend != "onnxruntime" or provider == "cpu" else provider)
    forms: dict[str, Any] = dict(changes or {})
    for name, form in forms.items():
        if form not in FORMS.get(name, ()):
            spellings = ", ".join(f"{field}={'|'.join(values)}" for field, values in sorted(FORMS.items()))
            raise BuildError(f"{arg('lowering', {name: form})}: unknown", hint=spellings)
    if backend != "onnxruntime":
        wanted = ATTENTION_FORMS[backend][attention or "fused"]
        if forms.setdefault("attention", wanted) != wanted:
            raise BuildError(
                f"{arg('lowering')} attention={forms['attention']}: for engines {arg('attention')} decides this",
                hint=f"{arg('attention')} {'|'.join(ATTENTION_FORMS[backend])}",
            )
    return replace(lowering, **forms)


def _for_engines(lowering: Lowering, backend: str, targets: Sequence[str], dtype: str) -> Lowering:
    if lowering.cache != "op":
        raise BuildError(
            f"{arg('lowering', {'cache': lowering.cache})}: only TensorScatter becomes a cache that TensorRT "
            "updates in place",
            hint="leave it out",
        )
    if backend != "tensorrt-rtx":
        return lowering
    if lowering.vision_attention == "op-float32" and dtype != "float32":
        raise BuildError(
            f"{arg('lowering', {'vision_attention': 'op-float32'})}: TensorRT-RTX has no such attention kernel",
            hint=arg("lowering", {"vision_attention": "primitives-float32"}),
        )
    return replace(lowering, products="primitives") if "sm75" in targets else lowering
