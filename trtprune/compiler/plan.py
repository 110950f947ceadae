"""The plan of a build, decided and checked before a byte is written.

Orchestrates; knows no architecture (``models``) and no method (``pruning``).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trtprune import pruning
from trtprune._version import __version__
from trtprune.arguments import arg
from trtprune.compiler.calibration import calibration_digest, calibration_requests
from trtprune.compiler.lowering import choose_lowering
from trtprune.compiler.request import NEWLINES
from trtprune.compiler.texts import check_texts
from trtprune.engine_dir import SCHEMA_VERSION, GenerationInfo, PositionsInfo, PruningInfo
from trtprune.errors import BuildError, CheckpointError, shown
from trtprune.models.generation_config import read_generation
from trtprune.pruning.base import TowerTraits
from trtprune.pruning.inputs import takes_newlines
from trtprune.reports.downloads import progress_of
from trtprune.tensor_names import SALIENCY

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint
    from trtprune.compiler.engine_plan import EnginePlan, Target
    from trtprune.compiler.request import BuildRequest
    from trtprune.graph import Lowering
    from trtprune.graph.lowering import Pieces
    from trtprune.models import Model, ModelSpec
    from trtprune.models.clip_text import Clip
    from trtprune.pruning import BaseMethod
    from trtprune.reports.reporter import Report, Reporter

__all__ = ["Plan", "plan_build"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All decisions before a byte is written.

    Attributes:
        request: The request.
        checkpoint: The source.
        model: The checkpoint as a model of its family, which builds its graphs.
        spec: The model's facts.
        method: The pruning method.
        pruning: Budget and options.
        positions: The position rule and the axes of a position.
        dtype: The graphs' compute dtype.
        capacity: Capacity of the KV cache in tokens.
        lowering: Forms of the operations.
        engines: Limits and targets of TensorRT engines; None without engines.
        clip: The CLIP checkpoint for the build's text tower; None without one.
        generation: Default settings of answers.
        digest: SHA-256 of the facts behind the build's content, in hexadecimal digits.
    """

    request: BuildRequest
    checkpoint: Checkpoint
    model: Model
    spec: ModelSpec
    method: BaseMethod
    pruning: PruningInfo
    positions: PositionsInfo
    dtype: str
    capacity: int
    lowering: Lowering
    engines: EnginePlan | None
    clip: Clip | None
    generation: GenerationInfo
    newlines: str
    digest: str

    @property
    def backend(self) -> str:
        """The library that runs the graphs or their engines."""
        return self.request.backend

    @property
    def provider(self) -> str:
        """The target of the graphs."""
        return self.request.provider

    @property
    def weight_dtype(self) -> str | None:
        """The stored type of the decoder's matrices; None: the checkpoint's."""
        return self.request.weight_dtype

    @property
    def pieces(self) -> Pieces | None:
        """How graphs put lists in order that are too long for one TopK of the backend; None where none is."""
        from trtprune.backends.tensorrt.profiles import MAX_TOPK
        from trtprune.graph.lowering import Pieces

        if self.backend == "onnxruntime":
            return None
        info = self.pruning
        longest = self.method.longest_order(self.spec.visual_tokens, info.keep_range[1], info.options)
        return Pieces.of(longest, MAX_TOPK)


def plan_build(request: BuildRequest, report: Reporter) -> Plan:
    """Resolves the model and checks every setting with it; writes nothing.

    Raises:
        CheckpointError, BudgetError, BuildError, BackendError: each naming the file or flag at fault.
    """
    from trtprune.checkpoint import resolve
    from trtprune.compiler.engine_plan import find_target
    from trtprune.models import open_model

    engine, dtype = request.engine_options, request.compute_dtype
    if request.activation_dtype == "int8":
        calibration_requests(request.calibration)  # before a download
    target = find_target(request.backend, engine, dtype, request.weight_dtype) if request.builds_engines else None
    lowering = choose_lowering(request, target)
    limits = _Limits(request, target)

    def judge(checkpoint: Checkpoint) -> None:
        """Checks that need the config only, so that an error comes before a download."""
        model = open_model(checkpoint, request.layout, request.pixel_bounds)
        limits.decide(model, clip=request.clip is not None or checkpoint.weights is not None)
        if checkpoint.remote:
            # Repeated with its warnings when the weights are read.
            _generation(checkpoint, model.spec, request.generation_config, _unsaid)
            check_texts(checkpoint, model, _unsaid)

    checkpoint = resolve(
        os.fspath(request.model), revision=request.revision, progress=progress_of(report, "model"), check=judge
    )
    model = open_model(checkpoint, request.layout, request.pixel_bounds)
    spec = model.spec
    for warning in model.check_weights(allow_extra=request.allow_extra_tensors):
        report("model", f"warning: {warning}")
    _check_stored(request, checkpoint, report)
    generation = _generation(checkpoint, spec, request.generation_config, report)
    clip = _find_clip(checkpoint, model, request.clip, report)
    info, positions, capacity, engines = limits.decide(model, clip=clip is not None)
    _say_saliency(info, spec, limits.method, report)
    _say_tokens(request, model, report)
    newlines = _newlines(request, model, limits.method, info.needs)
    content = {
        "checkpoint": checkpoint.digest(),
        "pruning": asdict(info),
        "positions": asdict(positions),
        "backend": [request.backend, request.provider, dtype, request.weight_dtype, capacity, request.export_only],
        "lowering": vars(lowering),
        **({"engines": engines.identity()} if engines is not None else {}),
        **({"clip": clip.digest} if clip is not None else {}),
        **({"tokens": [request.layout, newlines]} if model.processor.has_newlines else {}),
        **({"image": model.processor.settings()} if request.pixel_bounds is not None else {}),
        **({"calibration": calibration_digest(request.calibration)} if request.activation_dtype == "int8" else {}),
        **({"generation": request.generation_config} if request.generation_config != "checkpoint" else {}),
    }
    return Plan(
        request=request,
        checkpoint=checkpoint,
        model=model,
        spec=spec,
        method=limits.method,
        pruning=info,
        positions=positions,
        dtype=dtype,
        capacity=capacity,
        lowering=lowering,
        engines=engines,
        clip=clip,
        generation=generation,
        newlines=newlines,
        digest=_digest(content),
    )


def _newlines(request: BuildRequest, model: Model, method: BaseMethod, needs: Collection[str]) -> str:
    """The newline rule of the build: ``keep``, ``drop`` or ``candidates``; ``needs`` are those of its method.

    Raises:
        BuildError: naming ``--newlines``, for a model without newline tokens, or a method that leaves no choice.
    """
    flag = arg("newlines", request.newlines)
    if request.newlines is not None and not model.processor.has_newlines:
        raise BuildError(f"{flag}: this model has no newline tokens", hint=f"leave out {arg('newlines')}")
    if method.inside:
        if request.newlines is not None:
            raise BuildError(
                f"{flag}: {method.name} prunes inside the decoder, where newline tokens take part like the rest",
                hint=f"leave out {arg('newlines')}",
            )
        return "candidates"
    if request.newlines == "candidates" and not takes_newlines(needs):
        read = ", ".join(name for name in needs if not takes_newlines([name]))
        every = (m for m in pruning.all_methods() if not m.inside and m.name != "none")
        able = [m.name for m in every if takes_newlines(m.needs_of(m.validate_options()))]
        raise BuildError(
            f"{flag}: method {method.name} reads {read}, which newline tokens do not have",
            hint=f"leave out {arg('newlines')}, or {arg('method')} with one of: {', '.join(able)}",
        )
    return request.newlines or NEWLINES[0]


def _say_saliency(info: PruningInfo, spec: ModelSpec, method: BaseMethod, say: Report) -> None:
    """A line about what a method reads of a tower without a CLS token."""
    names = [name for name in SALIENCY if name in info.needs]
    if not spec.has_cls and method.without_cls and names:
        say("pruner", f"the vision tower has no CLS token: {method.name} goes by {', '.join(names)}")


def _say_tokens(request: BuildRequest, model: Model, say: Report) -> None:
    """A line about engines for the largest images of a checkpoint that hardly bounds them."""
    if request.builds_engines and model.spec.image_size is None and request.max_image_pixels is None:
        most = model.processor.tokens_range[1]
        say("vision", f"engines serve images of up to {most:,} visual tokens; {arg('max_image_pixels')} bounds them")


def _check_stored(request: BuildRequest, checkpoint: Checkpoint, say: Report) -> None:
    """Lines about a quantised checkpoint; raises BuildError for a compute dtype that its matrices cannot have."""
    scheme = checkpoint.scheme
    if scheme is None:
        return
    if request.backend == "onnxruntime" and request.compute_dtype == "bfloat16":
        raise BuildError(
            f"{arg('dtype', 'bfloat16')}: ONNX Runtime dequantises to float32 and float16 only, and the checkpoint is "
            f"quantised ({scheme.label})",
            hint=arg("dtype", "float16"),
        )
    say("model", f"quantised checkpoint: {scheme.label}; {len(checkpoint.stored):,} matrices")
    for note in scheme.notes:
        say("model", f"warning: {note}")


def _unsaid(component: str, message: str) -> None:
    """A report without warnings, which are repeated later."""


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps({"trtprune": __version__, "schema": SCHEMA_VERSION, **content}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class _Limits:
    """Budget, KV capacity and engine limits of a request, for any model."""

    request: BuildRequest
    target: Target | None

    @property
    def method(self) -> BaseMethod:
        """The pruning method."""
        return pruning.get(self.request.method)

    def decide(self, model: Model, *, clip: bool) -> tuple[PruningInfo, PositionsInfo, int, EnginePlan | None]:
        """Budget, positions, KV capacity and engines for a model, with or without CLIP's text tower.

        Raises:
            BudgetError, BuildError: naming the flag that this model cannot serve.
        """
        from trtprune.compiler.budget import resolve_budget, resolve_positions
        from trtprune.compiler.engine_plan import find_limits, image_bounds, plan_engines

        request, spec = self.request, model.spec
        info = resolve_budget(
            self.method,
            spec,
            keep=request.keep,
            keep_range=request.keep_range,
            options=self.method.complete_options(request.options, TowerTraits.of(spec)),
            clip=clip,
        )
        positions = resolve_positions(self.method, spec, request.positions, info.options)
        capacity = _capacity(spec, info, request.max_seq_len)
        if self.target is None:
            return info, positions, capacity, None
        options = request.engine_options
        image = image_bounds(model.processor, _newlines(request, model, self.method, info.needs))
        limits = find_limits(options, info, image, spec.max_positions, request.max_seq_len)
        engines = plan_engines(options, self.target, limits)
        return info, positions, engines.limits.capacity, engines


def _generation(checkpoint: Checkpoint, spec: ModelSpec, choice: str, say: Report) -> GenerationInfo:
    """The settings of generation, with a line about unexpected ones."""
    found = read_generation(checkpoint, spec.vocab_size, choice)
    said = found.said()
    if said:
        say("model", f"{found.source}: " + ", ".join(f"{name} {shown(value)}" for name, value in said.items()))
    if not spec.eos_token_ids:
        say("model", "warning: no eos_token_id in generation_config.json: as in transformers, no token ends an answer")
    return found


def _find_clip(checkpoint: Checkpoint, model: Model, clip: str | os.PathLike[str] | None, say: Report) -> Clip | None:
    """The given CLIP checkpoint, or the one in the build that is the model's source."""
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
