"""``trtprune eval`` from Python: questions, methods and budgets in, figures out, and every answer on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.errors import InputError
from trtprune.eval.loaders import load_data
from trtprune.eval.parts import ANSWERS, Share, answer_files, answers_file
from trtprune.eval.planning import MethodBudget, Subject, fitting, plan_points, subjects
from trtprune.eval.progress import Meter
from trtprune.eval.report import Evaluation, evaluate_marks, write_files
from trtprune.eval.rows import DataSet, Row, collect
from trtprune.eval.runner import Builds, run
from trtprune.eval.store import Store, refuse_if_written
from trtprune.reports.figures import plot_wanted
from trtprune.variants import Variants, warnings_only
from trtprune.variants.planning import parse_methods

if TYPE_CHECKING:
    from trtprune.engine_dir import EngineDir

__all__ = ["ANSWERS", "PICTURE", "evaluate"]

PICTURE = "accuracy.png"
ROUNDING = ("activations", "precision")
"""Options of providers that change answers, and not only where they are computed."""
LISTED = 10
"""Left-out rows that are named one by one."""


def evaluate(
    directory: str | os.PathLike[str],
    data: str | os.PathLike[str] | Sequence[Row] | DataSet,
    output: str | os.PathLike[str],
    *,
    methods: str | None = None,
    keeps: Sequence[int] | None = None,
    metric: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    images: Path | None = None,
    strict: bool = False,
    max_new_tokens: int = 16,
    prompt_suffix: str | None = None,
    stop: Sequence[str] = (),
    controls: bool = False,
    force: bool = False,
    so_far: bool = False,
    part: str | None = None,
    plot: bool | str | os.PathLike[str] | None = None,
    others: Sequence[str | os.PathLike[str]] = (),
    model: str | os.PathLike[str] | None = None,
    clip: str | os.PathLike[str] | None = None,
    provider: str | None = None,
    provider_options: Mapping[str, str] | None = None,
    threads: int | None = None,
    verify: str = "auto",
    max_pixels: int | None = None,
    command: str = "",
    report: Callable[[str, str], None] = lambda what, message: None,
) -> Evaluation:
    """Answers every question with all visual tokens and with each method and budget, and compares the marks.

    What ``output`` holds already is not asked again, whatever methods and budgets it is of: a run that was ended goes
    on where it was, and further methods can be added.

    Args:
        directory: Engine directory; methods it was not built with are built from it on the way.
        data: See :func:`trtprune.eval.loaders.load_data`; or the questions.
        output: Directory of results.jsonl (answers), report.json, report.csv and accuracy.png.
        methods: ``adafv,divprune:center=true``, or ``all``; None: as built.
        keeps: Budgets; None: a third and a ninth of all tokens, and as built.
        metric: Instead of the data's own.
        limit: Questions, drawn with ``seed``.
        seed: Of that draw, of method ``random``, of wrong pictures and of the bootstrap.
        images: Folder of the pictures, where it is not the usual one.
        strict: Rows that cannot be used are an error.
        max_new_tokens: Longest answer.
        prompt_suffix: A line behind every question, instead of the one the set has; "" for none.
        stop: Texts that end an answer.
        controls: Ask each question about a wrong and about a grey picture, too.
        force: Start anew where ``output`` holds answers.
        so_far: Ask nothing, report on the answers that ``output`` holds.
        part: ``1/2`` asks the first of two shares of the pictures, for processes side by side with one ``output``; its
            answers go to results-1of2.jsonl. Without it the answers of all parts count, and the report is written.
        plot: Draw accuracy.png, or this file, which needs matplotlib; None: if that is there.
        others, model, provider, provider_options, threads, verify, max_pixels: As for
            :class:`trtprune.variants.Variants`.
        clip: The CLIP checkpoint of the vision tower, for methods that read its text; see :func:`trtprune.build`.
        command: For the report.
        report: Told (what, message).

    Raises:
        BudgetError: for a method, option or budget that cannot be served, or if nothing is pruned.
        CheckpointError: for a ``clip`` that is none, or none of this model's tower.
        InputError: for data that cannot be used, or an ``output`` that holds something else.
        BackendError: if something needed is not installed.
    """
    folder = Path(output)
    share = None if part is None else Share.parse(part)
    picture = folder / PICTURE if plot is None or isinstance(plot, bool) else Path(plot)
    draw = share is None and plot_wanted(plot if plot is None else plot is not False, "--plot", picture)
    answers = answers_file(folder, part)
    beside = [path for path in answer_files(folder) if path != answers]
    _check_files(folder, answers, beside, share, force, so_far)
    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {max_new_tokens}: must be at least 1")
    if methods is not None:
        parse_methods(methods)  # a typo should not cost the reading of a large set
    questions = _questions(data, metric, limit, seed, strict, prompt_suffix is None, images)
    _say_rejected(questions, report)

    def ask(row: Row) -> str:
        return f"{row.question}\n{prompt_suffix}" if prompt_suffix else row.question

    with Variants(
        directory,
        others=others,
        provider=provider,
        threads=threads,
        provider_options=provider_options,
        verify=verify,
        max_pixels=max_pixels,
        model=model,
        build_options=None if clip is None else {"clip": clip},
        report=warnings_only(report),
    ) as variants:
        report("data", f"{len(questions.rows):,} questions of {questions.name}")
        points = plan_points(variants, methods, keeps, report)
        settings: dict[str, Any] = {
            "metric": questions.metric,
            "prompt_suffix": prompt_suffix,
            "max_new_tokens": max_new_tokens,
            "stop": list(stop),
            "seed": seed,
        }
        rules = variants.base.generation.rules()
        if rules:
            settings["generation"] = rules
            report("answers", f"greedy, with the checkpoint's {', '.join(rules)}")
        engine = _engine(variants.base)
        fingerprint = {
            "engine": engine["build_digest"],
            "provider": provider or variants.base.built_with.get("provider", variants.base.backend),
            "data": questions.digest,
            **settings,
        }
        rounding = {name: value for name, value in (provider_options or {}).items() if name in ROUNDING}
        if rounding:
            fingerprint["provider_options"] = rounding
        if clip is not None:
            fingerprint["clip"] = _digest_of_clip(clip, report)
        with Store(answers, fingerprint, force=force, beside=beside) as store:
            usable, unfit = _fitting(variants, points, questions, ask, max_new_tokens, strict)
            asked = subjects(usable.rows, controls=controls, seed=seed)
            if share:
                asked = share.of_subjects(asked)
                usable = _asked_in(asked, usable, share)
            missing, total = _count(points, asked, store)
            report("answers", _plan_line(points, usable, missing, total))
            if store.dropped:
                report("answers", f"{store.path}: the last line was cut off and is asked again")
            unread: dict[str, str] = {}
            if not so_far:
                builds = Builds(variants, max_new_tokens=max_new_tokens, stop=stop)
                with Meter(total, total - missing) as meter:
                    unread = run(
                        points, asked, store, builds.open,
                        ask=ask, metric=usable.metric_of, strict=strict, advance=meter.advance,
                    )  # fmt: skip
            figures, notes = evaluate_marks(store, usable, points, seed=seed, unread=unread)
    if so_far and missing:
        notes.append(f"{total - missing:,} of {total:,} answers: --so-far asked nothing; n says of how many questions")
    if share:
        notes.append(
            f"part {share} of the pictures: the same command without --part counts all parts and writes the report"
        )
    left_out = unfit | unread
    for key, reason in list(left_out.items())[:LISTED]:
        report("left out", f"{key}: {reason}")
    if left_out:
        notes.append(f"{len(left_out)} questions were left out of all runs")
    if questions.rejected:
        notes.append(f"{len(questions.rejected)} rows of the data could not be used")
    facts = {
        "name": questions.name,
        "digest": questions.digest,
        "rows": len(questions.rows),
        "metric": questions.metric,
        "rejected": [{"line": item.line, "reason": item.reason} for item in questions.rejected],
        "left_out": left_out,
    }
    evaluation = Evaluation(command, engine, facts, settings, tuple(figures), tuple(notes))
    if share is None:
        write_files(evaluation, folder)
    if draw:
        from trtprune.eval.plot import draw_accuracy

        draw_accuracy(evaluation, picture)
    return evaluation


def _check_files(
    folder: Path, answers: Path, beside: Sequence[Path], share: Share | None, force: bool, so_far: bool
) -> None:
    """Refuses what would lose answers, or give some of them twice."""
    if so_far and (force or share or not (beside or answers.is_file())):
        if share:
            raise InputError("--so-far reports on all parts", hint="leave out --part")
        reason = "--force leaves nothing to report on" if force else f"{folder} holds no answers"
        raise InputError(f"--so-far: {reason}", hint="leave out --so-far")
    if force and (share or beside):
        reason = f"{beside[0]} holds answers of a part" if beside else "a part cannot start the others anew"
        raise InputError(f"--force: {reason}", hint="choose another -o, or remove the old answers")
    if not so_far:
        # Parts are disjoint, a whole run and a part are not.
        for path in beside:
            if share is None or path.name == ANSWERS:
                refuse_if_written(path)


def _asked_in(asked: Sequence[Subject], questions: DataSet, share: Share) -> DataSet:
    """The questions of a part."""
    mine = {question.row.id for subject in asked for question in subject.asked if not question.control}
    if not mine:
        raise InputError(f"--part {share}: there are fewer pictures than parts", hint="fewer parts")
    return replace(questions, rows=tuple(row for row in questions.rows if row.id in mine))


def _questions(
    data: Any, metric: str | None, limit: int | None, seed: int, strict: bool, suffix: bool, images: Path | None
) -> DataSet:
    if isinstance(data, str | os.PathLike):
        return load_data(
            os.fspath(data), metric=metric, limit=limit, seed=seed, strict=strict, suffix=suffix, images=images
        )
    if isinstance(data, DataSet):
        found = replace(data, metric=metric) if metric else data
    else:
        found = collect("questions", enumerate(data, 1), metric=metric or "exact", strict=strict)
    return found.sample(limit, seed)


def _say_rejected(questions: DataSet, report: Callable[[str, str], None]) -> None:
    if questions.rejected:
        report("data", f"{len(questions.rejected)} rows cannot be used (--strict makes that an error)")
    for item in questions.rejected[:LISTED]:
        report("data", f"{item.line}: {item.reason}")
    if len(questions.rejected) > LISTED:
        report("data", f"… and {len(questions.rejected) - LISTED} more, all of them in report.json")


def _digest_of_clip(clip: str | os.PathLike[str], report: Callable[[str, str], None]) -> str:
    from trtprune.models.clip_text import open_clip
    from trtprune.reports.downloads import progress_of

    return open_clip(clip, progress=progress_of(report, "clip")).digest


def _engine(base: EngineDir) -> dict[str, Any]:
    return {"model": base.model.id, "digest": base.model.digest, "build_digest": base.build_digest}


def _fitting(
    variants: Variants,
    points: Sequence[MethodBudget],
    questions: DataSet,
    ask: Callable[[Row], str],
    max_new_tokens: int,
    strict: bool,
) -> tuple[DataSet, dict[str, str]]:
    """The questions that can be answered unpruned, and why the others cannot."""
    base = points[0].variant
    vlm = variants.open(base)
    rows, bad = fitting(
        questions.rows,
        ask,
        vlm.encoder,
        visual_tokens=vlm.config.model.visual_tokens,
        max_new_tokens=max_new_tokens,
        capacity=min(variants.config(point.variant).kv.capacity for point in points),
        positions=vlm.config.model.max_positions,
    )
    # The run opens what it needs, in its own order.
    variants.release(base)
    if bad and (strict or not rows):
        key, error = next(iter(bad.items()))
        count = f"{'--strict: ' if strict else ''}{len(bad)} of {len(questions.rows)} questions"
        raise InputError(
            f"{count} cannot be asked without pruning, first {key}: {error.marked_message}",
            hint=error.marked_hint,
        )
    return replace(questions, rows=tuple(rows)), {key: error.message for key, error in bad.items()}


def _count(points: Sequence[MethodBudget], asked: Sequence[Subject], store: Store) -> tuple[int, int]:
    """Answers that are missing, and all."""
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
