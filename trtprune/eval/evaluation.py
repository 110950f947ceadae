"""``trtprune eval`` from Python: from questions, methods and budgets to figures, with every answer on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from trtprune.errors import InputError
from trtprune.eval.loaders import load_data
from trtprune.eval.parts import ANSWERS, Files, Share
from trtprune.eval.planning import MethodBudget, Subject, fitting, plan_points, subjects
from trtprune.eval.progress import Meter
from trtprune.eval.report import Evaluation, Figure, evaluate_marks, write_files
from trtprune.eval.rows import DataSet, Row, collect
from trtprune.eval.runner import Builds, run
from trtprune.eval.settings import EvalKeywords, EvalSettings
from trtprune.eval.store import Store
from trtprune.reports.figures import plot_wanted
from trtprune.reports.reporter import SILENT, Report
from trtprune.variants import Variants, warnings_only

if TYPE_CHECKING:
    from trtprune.engine_dir import EngineDir
    from trtprune.runtime import Vlm

__all__ = ["ANSWERS", "PICTURE", "evaluate"]

PICTURE = "accuracy.png"
ROUNDING = ("activations", "kv_cache", "precision", "tower")
"""Options of providers that change answers."""
UNKNOWN = 1 << 40
"""Tokens of the largest image where they are not known without one: more than fits anywhere."""
LISTED = 10
"""The largest number of rejected rows that are named one by one."""


@overload
def evaluate(
    directory: str | os.PathLike[str],
    data: str | os.PathLike[str] | Sequence[Row] | DataSet,
    output: str | os.PathLike[str],
    settings: EvalSettings,
    *,
    command: str = "",
    report: Report = SILENT,
) -> Evaluation: ...


@overload
def evaluate(
    directory: str | os.PathLike[str],
    data: str | os.PathLike[str] | Sequence[Row] | DataSet,
    output: str | os.PathLike[str],
    *,
    command: str = "",
    report: Report = SILENT,
    **keywords: Unpack[EvalKeywords],
) -> Evaluation: ...


def evaluate(
    directory: str | os.PathLike[str],
    data: str | os.PathLike[str] | Sequence[Row] | DataSet,
    output: str | os.PathLike[str],
    settings: EvalSettings | None = None,
    *,
    command: str = "",
    report: Report = SILENT,
    **keywords: Any,
) -> Evaluation:
    """Answers every question with all visual tokens and with each method and budget, and compares the marks.

    Answers in ``output`` are not asked again, whatever their methods and budgets: an interrupted run continues, and
    further methods can be added.

    Args:
        directory: Engine directory; methods it was not built with are built from it on the way.
        data: See :func:`trtprune.eval.loaders.load_data`; or the questions.
        output: Directory of results.jsonl (answers), report.json, report.csv and accuracy.png.
        settings: Methods, budgets, and settings of the answers.
        command: The command line, for the report.
        report: Called with (what, message) during the work.
        **keywords: The fields of :class:`~trtprune.eval.settings.EvalSettings`, in place of ``settings``.

    Raises:
        BudgetError: for a method, option or budget that cannot be served, or if nothing is pruned.
        CheckpointError: for a ``clip`` that is not CLIP, or not the one of this model's tower.
        InputError: for data that cannot be used, or an ``output`` with other content.
        BackendError: if a required package is not installed.
    """
    if settings is None:
        settings = EvalSettings(**keywords)
    elif keywords:
        raise TypeError("evaluate() takes EvalSettings or keywords; dataclasses.replace() changes the former")
    files = Files.of(Path(output), settings.share, force=settings.force, so_far=settings.so_far)
    picture = _picture(files, settings)
    questions = _questions(data, settings)
    _say_rejected(questions, report)
    with _open_variants(directory, settings, report) as variants:
        report("data", f"{len(questions.rows):,} questions of {questions.name}")
        points = plan_points(variants, settings.methods, settings.keeps, report)
        answering = _answering(variants.base, questions, settings, report)
        fingerprint = _fingerprint(variants.base, questions, settings, answering, report)
        with Store(files.answers, fingerprint, force=settings.force, beside=files.beside) as store:
            figures, notes, left_out = _ask(variants, points, questions, store, settings, report)
        engine = _engine(variants.base)
    if files.part:
        notes.append(
            f"part {files.part} of the pictures: the same command without --part counts all parts and writes the report"
        )
    for key, reason in list(left_out.items())[:LISTED]:
        report("left out", f"{key}: {reason}")
    if left_out:
        notes.append(f"{len(left_out)} questions were left out of all runs")
    if questions.rejected:
        notes.append(f"{len(questions.rejected)} rows of the data could not be used")
    facts = _facts(questions, left_out)
    evaluation = Evaluation(command, engine, facts, answering, tuple(figures), tuple(notes))
    if files.part is None:
        write_files(evaluation, files.folder)
    if picture is not None:
        from trtprune.eval.plot import draw_accuracy

        draw_accuracy(evaluation, picture)
    return evaluation


def _picture(files: Files, settings: EvalSettings) -> Path | None:
    """The file of the plot; None without a plot, and for a part, which is not a whole evaluation."""
    plot = settings.plot
    picture = files.folder / PICTURE if plot is None or isinstance(plot, bool) else Path(plot)
    wanted = files.part is None and plot_wanted(plot if plot is None else plot is not False, "--plot", picture)
    return picture if wanted else None


def _open_variants(directory: str | os.PathLike[str], settings: EvalSettings, report: Report) -> Variants:
    return Variants(
        directory,
        settings.running,
        others=settings.others,
        max_pixels=settings.max_pixels,
        model=settings.model,
        build_options=None if settings.clip is None else {"clip": settings.clip},
        report=warnings_only(report),
    )


def _answering(base: EngineDir, questions: DataSet, settings: EvalSettings, report: Report) -> dict[str, Any]:
    """The facts behind the answers beside build and question, for the report and the fingerprint."""
    answering: dict[str, Any] = {
        "metric": questions.metric,
        "prompt_suffix": settings.prompt_suffix,
        "max_new_tokens": settings.max_new_tokens,
        "stop": list(settings.stop),
        "seed": settings.seed,
    }
    rules = base.generation.rules()
    if rules:
        answering["generation"] = rules
        report("answers", f"greedy, with the checkpoint's {', '.join(rules)}")
    return answering


def _fingerprint(
    base: EngineDir, questions: DataSet, settings: EvalSettings, answering: dict[str, Any], report: Report
) -> dict[str, Any]:
    """The facts that must be equal for answers in one file."""
    fingerprint = {
        "engine": base.build_digest,
        "provider": settings.provider or base.built_with.get("provider", base.backend),
        "data": questions.digest,
        **answering,
    }
    rounding = {name: value for name, value in (settings.provider_options or {}).items() if name in ROUNDING}
    if rounding:
        fingerprint["provider_options"] = rounding
    if settings.clip is not None:
        fingerprint["clip"] = _digest_of_clip(settings.clip, report)
    return fingerprint


def _ask(
    variants: Variants,
    points: Sequence[MethodBudget],
    questions: DataSet,
    store: Store,
    settings: EvalSettings,
    report: Report,
) -> tuple[list[Figure], list[str], dict[str, str]]:
    """Asks the questions without an answer in the store.

    Returns:
        The figures, notes for the report, and the reasons of excluded questions by id.
    """
    usable, unfit = _fitting(variants, points, questions, settings)
    asked = subjects(usable.rows, controls=settings.controls, seed=settings.seed)
    share = settings.share
    if share is not None:
        asked = share.of_subjects(asked)
        usable = _asked_in(asked, usable, share)
    missing, total = _count(points, asked, store)
    report("answers", _plan_line(points, usable, missing, total))
    if store.dropped:
        report("answers", f"{store.path}: the last line was cut off and is asked again")
    unread: dict[str, str] = {}
    if not settings.so_far:
        builds = Builds(variants, max_new_tokens=settings.max_new_tokens, stop=settings.stop)
        with Meter(total, total - missing) as meter:
            unread = run(
                points, asked, store, builds.open,
                ask=lambda row: settings.ask(row.question), metric=usable.metric_of, strict=settings.strict,
                advance=meter.advance,
            )  # fmt: skip
    figures, notes = evaluate_marks(store, usable, points, seed=settings.seed, unread=unread)
    if settings.so_far and missing:
        notes.append(f"{total - missing:,} of {total:,} answers: --so-far asked nothing; n says of how many questions")
    return figures, notes, unfit | unread


def _facts(questions: DataSet, left_out: Mapping[str, str]) -> dict[str, Any]:
    """The data, for the report."""
    return {
        "name": questions.name,
        "digest": questions.digest,
        "rows": len(questions.rows),
        "metric": questions.metric,
        "rejected": [{"line": item.line, "reason": item.reason} for item in questions.rejected],
        "left_out": left_out,
    }


def _asked_in(asked: Sequence[Subject], questions: DataSet, share: Share) -> DataSet:
    """The questions of a part."""
    mine = {question.row.id for subject in asked for question in subject.asked if not question.control}
    if not mine:
        raise InputError(f"--part {share}: there are fewer pictures than parts", hint="fewer parts")
    return replace(questions, rows=tuple(row for row in questions.rows if row.id in mine))


def _questions(data: Any, settings: EvalSettings) -> DataSet:
    metric, limit, seed, strict = settings.metric, settings.limit, settings.seed, settings.strict
    if isinstance(data, str | os.PathLike):
        suffix = settings.prompt_suffix is None
        return load_data(
            os.fspath(data), metric=metric, limit=limit, seed=seed, strict=strict, suffix=suffix, images=settings.images
        )
    if isinstance(data, DataSet):
        questions = replace(data, metric=metric) if metric else data
    else:
        questions = collect("questions", enumerate(data, 1), metric=metric or "exact", strict=strict)
    return questions.sample(limit, seed)


def _say_rejected(questions: DataSet, report: Report) -> None:
    if questions.rejected:
        report("data", f"{len(questions.rejected)} rows cannot be used (--strict makes that an error)")
    for item in questions.rejected[:LISTED]:
        report("data", f"{item.line}: {item.reason}")
    if len(questions.rejected) > LISTED:
        report("data", f"… and {len(questions.rejected) - LISTED} more, all of them in report.json")


def _digest_of_clip(clip: str | os.PathLike[str], report: Report) -> str:
    from trtprune.models.clip_text import open_clip
    from trtprune.reports.downloads import progress_of

    return open_clip(clip, progress=progress_of(report, "clip")).digest


def _engine(base: EngineDir) -> dict[str, Any]:
    return {"model": base.model.id, "digest": base.model.digest, "build_digest": base.build_digest}


def _fitting(
    variants: Variants,
    points: Sequence[MethodBudget],
    questions: DataSet,
    settings: EvalSettings,
) -> tuple[DataSet, dict[str, str]]:
    """The questions that can be answered unpruned, and the reasons of the others."""
    base = points[0].variant
    vlm = variants.open(base)
    rows, bad = fitting(
        questions.rows,
        lambda row: settings.ask(row.question),
        vlm.encoder,
        visual_tokens=lambda row: _image_tokens(vlm, row),
        max_new_tokens=settings.max_new_tokens,
        capacity=min(variants.config(point.variant).kv.capacity for point in points),
        positions=vlm.config.model.max_positions,
    )
    # The run opens its builds in its own order.
    variants.release(base)
    if bad and (settings.strict or not rows):
        key, error = next(iter(bad.items()))
        count = f"{'--strict: ' if settings.strict else ''}{len(bad)} of {len(questions.rows)} questions"
        raise InputError(
            f"{count} cannot be asked without pruning, first {key}: {error.marked_message}",
            hint=error.marked_hint,
        )
    return replace(questions, rows=tuple(rows)), {key: error.message for key, error in bad.items()}


def _image_tokens(vlm: Vlm, row: Row | None) -> int:
    """Visual tokens and markers of a row's image; without a row, or for an image that cannot be read, the most of any.

    Where images have markers, whose number follows from the image alone, the most is more than fits anywhere.
    """
    (least, most), processor = vlm.config.vision.tokens, vlm.pipeline.processor
    marked = any(processor.plan(1, 1).markers)
    if row is None and marked:
        return UNKNOWN
    if row is None or (least == most and not marked):
        return most
    try:
        image = vlm.pipeline.load(row.picture())
    except InputError:
        return most  # the run itself says what is wrong with the image
    plan = processor.plan(image.height, image.width)
    return plan.tokens + vlm.encoder.marker_tokens(plan.markers)


def _count(points: Sequence[MethodBudget], asked: Sequence[Subject], store: Store) -> tuple[int, int]:
    """Numbers of missing answers and of all answers."""
    keys = [
        (question.row.id, point.label, point.keep, question.control)
        for point in points
        for subject in asked
        for question in subject.asked
    ]
    return sum(key not in store for key in keys), len(keys)


def _plan_line(points: Sequence[MethodBudget], questions: DataSet, missing: int, total: int) -> str:
    kept = f", {total - missing:,} of them there already" if missing < total else ""
    return f"{len(questions.rows):,} questions, {len(points)} runs: {total:,} answers{kept}"
