"""``compare``: candidate against reference, component by component.

The candidate is the engine directory; the reference its own graphs in ONNX Runtime, the checkpoint in transformers, or
another engine directory.  Both get the same inputs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from trtprune import pruning
from trtprune.compare._require import polygraphy
from trtprune.compare.checks import check_same_model, choose_components
from trtprune.compare.draw import open_processor, random_feeds, teach_caches
from trtprune.compare.inputs import check_feeds, check_keep, fit_profile, load_feeds, narrow
from trtprune.compare.results import Comparison, ComponentResult
from trtprune.compare.settings import CompareKeywords, CompareSettings
from trtprune.compare.tolerance import Tolerance, defaults
from trtprune.engine_dir import EngineDir, open_engine_dir
from trtprune.errors import InputError
from trtprune.reports.reporter import SILENT, Report
from trtprune.runtime.images import CropShape
from trtprune.tensor_names import KEPT_INDICES

if TYPE_CHECKING:
    from trtprune.compare.numerics import Feed
    from trtprune.compare.sides import Side
    from trtprune.engine_dir import ComponentInfo

__all__ = ["compare", "default_against"]

PRECISION = ("float32", "float16", "bfloat16")


def default_against(made: EngineDir) -> str:
    """The default reference: an engine's own graphs, or the checkpoint for graphs."""
    return "onnxruntime" if any(component.engine for component in made.components) else "transformers"


def compare(
    directory: str | Path,
    against: str | None = None,
    settings: CompareSettings | None = None,
    *,
    report: Report = SILENT,
    **keywords: Unpack[CompareKeywords],
) -> Comparison:
    """Compares an engine directory with a reference.

    Args:
        directory: The candidate.
        against: ``"onnxruntime"``, ``"transformers"``, or another engine directory; None: see :func:`default_against`.
        settings: Components, inputs and tolerances.
        report: Called with (component, message).
        **keywords: Fields of :class:`~trtprune.compare.settings.CompareSettings` that replace those of ``settings``.

    Raises:
        TrtpruneError: naming the flag or file at fault.
    """
    settings = replace(settings or CompareSettings(), **keywords)
    polygraphy()
    made = open_engine_dir(directory, verify=settings.running.verify)
    check_keep(made, settings.draw.keep)
    against = against or default_against(made)
    candidate, reference, other = _sides(made, against, settings)
    if other is not None:
        check_keep(other, settings.draw.keep if settings.draw.keep is not None else made.pruning.keep)
    chosen, notes = choose_components(made, candidate, reference, settings.components, other)
    dtypes = (candidate.dtype, reference.dtype)
    feeds, names, source = _feeds(made, chosen, other, dtypes, settings)
    chosen, idle = _with_runs(chosen, feeds)
    notes += idle
    for component in chosen:
        for feed in feeds[component.name]:
            fit_profile(component, feed)
            if other is not None:
                fit_profile(other.component(component.name), feed)
    base = defaults(max(dtypes, key=PRECISION.index), made.model.visual_tokens, _crop_features(made))
    tolerance = settings.tolerance.over(base)
    _check_names(settings.tolerance, chosen, layerwise=settings.layerwise)
    results = []
    drawn = settings.load_inputs is None and settings.question is None
    for component in chosen:
        if drawn:
            teach_caches(reference.runner(component), feeds[component.name], dtypes)
        work = _Work(made, component, candidate, reference, feeds[component.name], names[component.name], tolerance)
        save_inputs, save_outputs = (
            _path(path, component.name, len(chosen)) for path in (settings.save_inputs, settings.save_outputs)
        )
        own = replace(settings, save_inputs=save_inputs, save_outputs=save_outputs)
        result = _compare_one(work, own, report)
        results.append(result)
        report(component.name, _line(result))
    return Comparison(str(directory), against, source, dtypes, tuple(results), tuple(notes))


def _sides(made: EngineDir, against: str, settings: CompareSettings) -> tuple[Side, Side, EngineDir | None]:
    from trtprune.compare.sides import EngineSide, GraphSide, native_side

    running, checkpoint = settings.running, settings.checkpoint
    if checkpoint is not None and against != "transformers":
        raise InputError(f"--checkpoint goes with --against transformers, not {against}", hint="leave it out")
    if against == "onnxruntime":
        return EngineSide(made), GraphSide(made, running), None
    if against == "transformers":
        from trtprune.checkpoint.origin import find_checkpoint
        from trtprune.compare.packing import image_plans
        from trtprune.compare.transformers_side import TransformersSide

        found = find_checkpoint(made, checkpoint, allow_other=settings.allow_other_weights)
        images = settings.question.images if settings.question is not None else ()
        plans = image_plans(made, settings.draw, images)
        return GraphSide(made, running), TransformersSide(made, found.path, running.threads, plans), None
    path = Path(against)
    if not path.exists():
        raise InputError(
            f"--against {against}: no such directory",
            hint="onnxruntime, transformers, unpruned, or another engine directory",
        )
    other = open_engine_dir(path, verify=running.verify)
    check_same_model(made, other, allow_other=settings.allow_other_weights)
    candidate, reference = native_side(made, running), native_side(other, running)
    if candidate.name == reference.name:  # two builds in directories of the same name
        candidate.name, reference.name = f"{candidate.name} (candidate)", f"{reference.name} (reference)"
    return candidate, reference, other


def _feeds(
    made: EngineDir,
    chosen: Sequence[ComponentInfo],
    other: EngineDir | None,
    dtypes: Sequence[str],
    settings: CompareSettings,
) -> tuple[dict[str, list[Feed]], dict[str, list[str]], str]:
    """Inputs by component, a description of each, and their origin."""
    draw, question, load_inputs = settings.draw, settings.question, settings.load_inputs
    if load_inputs is not None:
        loaded = load_feeds(load_inputs)
        fitting = [c for c in chosen if {spec.name for spec in c.inputs} == loaded[0].keys()]
        if len(chosen) > 1 and not fitting:
            has = ", ".join(sorted(loaded[0]))[:200]
            raise InputError(f"--load-inputs {load_inputs}: no component takes {has}", hint="see trtprune inspect")
        component = (fitting or chosen)[0]
        check_feeds(component, loaded, load_inputs)
        names = [f"saved {i}" for i in range(len(loaded))]
        return {component.name: loaded}, {component.name: names}, str(load_inputs)
    if question is not None:
        from trtprune.compare.recorded import record
        from trtprune.compare.sides import GraphSide

        side = GraphSide(made, settings.running)
        found, labels = record(
            made,
            side.backend,
            question.images,
            question.prompt,
            keep=draw.keep,
            decode_steps=draw.decode_steps,
            system=question.system,
        )
        for component in chosen:
            for feed in found[component.name]:
                feed |= {n: narrow(a, dtypes) for n, a in feed.items() if a.dtype.kind == "f"}
        return found, labels, "a question"
    feeds, names_of = {}, {}
    for component in chosen:
        feeds[component.name], names_of[component.name] = random_feeds(made, component, draw, dtypes)
    return feeds, names_of, f"random, seed {draw.seed}"


def _with_runs(
    chosen: Sequence[ComponentInfo], feeds: Mapping[str, Sequence[Feed]]
) -> tuple[list[ComponentInfo], list[str]]:
    """The components with inputs, and notes on those that a real question does not reach."""
    idle = [c.name for c in chosen if c.name in feeds and not feeds[c.name]]
    notes = [f"{name} is not compared: this question does not reach it (nothing is pruned)" for name in idle]
    return [component for component in chosen if feeds.get(component.name)], notes


def _crop_features(made: EngineDir) -> int:
    """Features of a crop, over which the attention in the tower spreads; of a packed tower the most of an image."""
    shape = open_processor(made).shape
    return shape.features if isinstance(shape, CropShape) else made.model.visual_tokens


def _check_names(tolerance: Tolerance, chosen: Sequence[ComponentInfo], *, layerwise: bool) -> None:
    """Refuses a tolerance for an unknown output, which would have no effect."""
    outputs = {spec.name for component in chosen for spec in component.outputs}
    flags = {
        "--atol": tolerance.atol,
        "--rtol": tolerance.rtol,
        "--check-error-stat": tolerance.stat,
        "--error-quantile": tolerance.quantile,
    }
    for flag, values in flags.items():
        for name in values:
            if name and name not in outputs and not layerwise:
                raise InputError(
                    f"{flag} {name}: nothing that is compared has an output of that name",
                    hint=f"outputs: {', '.join(sorted(outputs))}"[:300],
                )


def _path(path: Path | None, component: str, count: int) -> Path | None:
    """The path of a component's file (or directory); with several components each has its own."""
    if path is None or count == 1:
        return path
    return path.with_name(f"{path.stem}.{component}{path.suffix}")


@dataclass(frozen=True)
class _Work:
    """One component to compare.

    Attributes:
        made: The candidate's directory.
        component: The component.
        candidate, reference: What runs it.
        feeds: Its inputs, one a run.
        names: What each of them is.
        tolerance: With the defaults of the dtypes.
    """

    made: EngineDir
    component: ComponentInfo
    candidate: Side
    reference: Side
    feeds: Sequence[Feed]
    names: Sequence[str]
    tolerance: Tolerance


def _compare_one(work: _Work, settings: CompareSettings, report: Report) -> ComponentResult:
    from trtprune.compare import numerics
    from trtprune.compare.layerwise import find_layer

    made, component, feeds = work.made, work.component, work.feeds
    sides = work.candidate, work.reference
    report(component.name, f"{len(feeds)} run{'s' if len(feeds) > 1 else ''} of {sides[0].name} and {sides[1].name}")
    runners = [side.runner(component) for side in sides]
    saved = {"save_inputs": settings.save_inputs, "save_outputs": settings.save_outputs}
    results = numerics.run_both(runners[0], runners[1], feeds, **saved)
    times = numerics.runtimes(results)
    invalid = numerics.validate(results) if settings.validate else ()
    if any(spec.name == KEPT_INDICES for spec in component.outputs):
        merges = pruning.get(made.pruning.method).merges
        results = numerics.selection_as_mask(results, made.model.visual_tokens, merges=merges)
    results, alone = numerics.in_common(results)
    if alone:
        report(component.name, f"not compared, since one side only has it: {', '.join(alone)}")
    outputs = numerics.judge(results, work.tolerance, work.names)
    del results  # two copies of every cache; the comparison of layers needs the memory
    layers = None
    if settings.layerwise:
        layers = find_layer(
            *sides,
            component,
            feeds,
            work.names,
            work.tolerance,
            hidden_size=made.model.row_width,
            report=lambda text: report(component.name, text),
        )
    return ComponentResult(
        component.name,
        all(output.passed for output in outputs) and not invalid,
        tuple(outputs),
        tuple(work.names),
        times,
        runners[0].name,
        runners[1].name,
        invalid,
        layers,
        _repeat(made, component, (settings.save_inputs, settings.save_outputs), work.tolerance),
    )


def _repeat(
    made: EngineDir, component: ComponentInfo, saved: tuple[Path | None, Path | None], tolerance: Tolerance
) -> str | None:
    """The command that repeats a component in ONNX Runtime with Polygraphy alone, if inputs were saved."""
    if saved[0] is None:
        return None
    run = ["polygraphy", "run", str(made.root / component.onnx), "--onnxrt", "--load-inputs", str(saved[0])]
    if saved[1] is not None:
        run += ["--load-outputs", str(saved[1])]
        for flag, values in (("--atol", tolerance.atol), ("--rtol", tolerance.rtol)):
            names = [name for name in values if not name or any(o.name == name for o in component.outputs)]
            run += [flag, *(f"{name}:{values[name]:g}" if name else f"{values[name]:g}" for name in names)]
        run += ["--check-error-stat", tolerance.stat[""]]
    return shlex.join(run)


def _line(result: ComponentResult) -> str:
    worst = [output.name for output in result.outputs if not output.passed]
    if not worst:
        return "PASSED"
    where = f", first at {result.layers.first}" if result.layers is not None and result.layers.first else ""
    return f"FAILED in {', '.join(worst[:3])}{' …' if len(worst) > 3 else ''}{where}"
