"""The command ``trtprune compare``: options in Polygraphy's spelling, its RUNNING and PASSED lines, exit code 1."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtprune.backends.running import Running
from trtprune.cli.console import echo_json, log_options, logger
from trtprune.cli.flags import Command, Gathered, Options, option
from trtprune.cli.options import DIRECTORY, JSON, KEEP, OUTPUT, PATH, RUN, Loading, plot_options
from trtprune.errors import InputError

if TYPE_CHECKING:
    from trtprune.compare import Question
    from trtprune.compare.answers import Agreement, Case

__all__ = ["compare"]

NAMED = "[NAME:]VALUE"
REFERENCE, REAL, RANDOM, TOLERANCE = "Reference", "A real input", "Random inputs", "Tolerance"
UNPRUNED_GROUP = "Answers, with --against unpruned"
UNPRUNED = "unpruned"


@dataclass(frozen=True)
class _Flags:
    """What is compared with what; ``random`` are those of random inputs, the fields of a ``Draw``."""

    against: str | None
    checkpoint: str | None
    allow_other_weights: bool
    components: tuple[str, ...]
    images: tuple[str, ...]
    prompts: tuple[str, ...]
    system: str | None
    load_inputs: Path | None
    random: dict[str, int]
    keep: int | None
    atol: tuple[str, ...]
    rtol: tuple[str, ...]
    check_error_stat: tuple[str, ...]
    error_quantile: tuple[str, ...]
    validate: bool
    layerwise: bool
    requests: Path | None
    max_new_tokens: int
    stop: tuple[str, ...]
    min_agreement: float | None
    save_inputs: Path | None
    save_outputs: Path | None
    running: Running


@dataclass(frozen=True)
class _Output:
    """Where results go beside the terminal."""

    report: Path | None
    plot: Path | None
    as_json: bool


_RANDOM: Options = (
    option(
        "--seed", type=click.IntRange(0), default=1, show_default=True, group=RANDOM, help="The seed of random inputs."
    ),
    option(
        "--iterations",
        type=click.IntRange(1),
        metavar="N",
        default=1,
        show_default=True,
        group=RANDOM,
        help="The number of random inputs for each component.",
    ),
    option(
        "--batch-size",
        type=click.IntRange(1),
        metavar="N",
        default=1,
        show_default=True,
        group=RANDOM,
        help="The number of rows of a random input.",
    ),
    option(
        "--text-tokens",
        type=click.IntRange(1),
        metavar="N",
        default=16,
        show_default=True,
        group=RANDOM,
        help="The number of text tokens of a random prompt.",
    ),
    option(
        "--decode-steps",
        type=click.IntRange(0),
        metavar="N",
        default=2,
        show_default=True,
        group=RANDOM,
        help="The number of single tokens that follow a random prompt.",
    ),
)
_FLAGS: Options = (
    option(
        "--against",
        metavar="REFERENCE",
        group=REFERENCE,
        help="What is compared with: onnxruntime (engines beside their own graphs), transformers (graphs beside the "
        "checkpoint), another engine directory, or unpruned (answers).  [default: onnxruntime with engines, else "
        "transformers]",
    ),
    option(
        "--checkpoint",
        aliases=["--model"],
        group=REFERENCE,
        help="The checkpoint for transformers: a directory, alias or hub id.  [default: as recorded at build]",
    ),
    option(
        "--allow-other-weights",
        is_flag=True,
        group=REFERENCE,
        help="Accept a reference with other weights of the same sizes.",
    ),
    option(
        "--component",
        "components",
        metavar="NAME",
        multiple=True,
        group=REFERENCE,
        help="A component to compare: vision, embed, clip_text, pruner or decoder; repeatable.  [default: all]",
    ),
    option(
        "--image",
        "images",
        metavar="PICTURE",
        multiple=True,
        group=REAL,
        help="A picture; repeat it for several in one prompt.",
    ),
    option(
        "--prompt", "prompts", metavar="TEXT", multiple=True, group=REAL, help="The question; repeatable with unpruned."
    ),
    option("--system", metavar="TEXT", group=REAL, help="The system message."),
    option("--load-inputs", type=PATH, group=REAL, help="A file of inputs that --save-inputs, or Polygraphy, wrote."),
    Gathered("random", dict, _RANDOM),
    KEEP,
    option(
        "--atol",
        metavar=NAMED,
        multiple=True,
        group=TOLERANCE,
        help="The absolute tolerance, of all outputs or of one; repeatable.  [default: 1e-4; float16, bfloat16: 1e-2]",
    ),
    option(
        "--rtol",
        metavar=NAMED,
        multiple=True,
        group=TOLERANCE,
        help="The relative tolerance, likewise.  [default: 1e-5; float16, bfloat16: 1e-2]",
    ),
    option(
        "--check-error-stat",
        metavar=NAMED,
        multiple=True,
        group=TOLERANCE,
        help="The error that is held to the tolerances: max, mean, median, elemwise or quantile.  [default: elemwise; "
        "float16, bfloat16: mean]",
    ),
    option(
        "--error-quantile",
        metavar=NAMED,
        multiple=True,
        group=TOLERANCE,
        help="The quantile that quantile takes.  [default: 0.99]",
    ),
    option(
        "--validate",
        is_flag=True,
        group=TOLERANCE,
        help="Fail where an output has NaN or infinity, whatever the tolerance.",
    ),
    option(
        "--layerwise",
        is_flag=True,
        group=TOLERANCE,
        help="Find the first tensor inside a graph that is beyond tolerance.",
    ),
    option(
        "--requests",
        type=PATH,
        group=UNPRUNED_GROUP,
        help='Questions as JSON lines {"image": …, "prompt": …, "answer": …}.',
    ),
    option(
        "--max-new-tokens",
        type=click.IntRange(1),
        metavar="N",
        default=64,
        show_default=True,
        group=UNPRUNED_GROUP,
        help="The largest length of an answer in tokens.",
    ),
    option(
        "--stop", metavar="TEXT", multiple=True, group=UNPRUNED_GROUP, help="A text at which answers end; repeatable."
    ),
    option(
        "--min-agreement",
        type=click.FloatRange(0, 1),
        metavar="0-1",
        group=UNPRUNED_GROUP,
        help="The share of answers that must be the same.",
    ),
    option(
        "--save-inputs",
        type=PATH,
        group=OUTPUT,
        help="The file for inputs, in Polygraphy's JSON; with several components FILE.COMPONENT.json.",
    ),
    option("--save-outputs", type=PATH, group=OUTPUT, help="The file for the outputs of both sides, likewise."),
    plot_options("Draw the error after every layer, to FILE or error.png; implies --layerwise."),
    option("--report", type=PATH, group=OUTPUT, help="Write everything that was found to this file as JSON."),
    JSON,
    Gathered("running", Running, RUN),
)


@click.command(cls=Command, short_help="Compare an engine directory with a reference: numbers, or answers.")
@DIRECTORY
@Gathered("flags", _Flags, _FLAGS, apart=("report", "plot", "as_json"))
@log_options
def compare(directory: Path, flags: _Flags, report: Path | None, plot: Any, as_json: bool) -> None:
    """Compare an engine directory with a reference: numbers within tolerance, or the same answers.

    \b
    trtprune compare out
    trtprune compare out --against transformers --layerwise --plot error.png
    trtprune compare out-float16 --against out-float32
    trtprune compare out --against unpruned --requests questions.jsonl
    """
    command = shlex.join(["trtprune", *sys.argv[1:]])
    start = time.perf_counter()
    picture = Path("error.png") if plot is True else plot or None
    for flag, path in (("--report", report), ("--plot", picture)):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{flag} {path}: there is no directory {path.parent}", hint="make it first")
    out = _Output(report, picture, as_json)
    logger.info("[I] RUNNING | Command: %s", command)
    if flags.against == UNPRUNED:
        passed = _answers(directory, flags, out)
    else:
        passed = _numbers(directory, flags, out)
    runtime = time.perf_counter() - start
    if passed:
        # Answers are compared with those of other settings: without a required agreement, nothing was asserted.
        asserted = flags.against != UNPRUNED or flags.min_agreement is not None
        logger.info("[I] %s | Runtime: %.3fs | Command: %s", "PASSED" if asserted else "DONE", runtime, command)
    else:
        logger.error("[E] FAILED | Runtime: %.3fs | Command: %s", runtime, command)
        sys.exit(1)


def _report(component: str, text: str) -> None:
    logger.info("%-9s %s", component, text)


def _numbers(directory: Path, flags: _Flags, out: _Output) -> bool:
    from trtprune.compare import CompareSettings, Draw, Tolerance, compare
    from trtprune.compare.report import show_comparison, write_report

    for flag in ("requests", "stop", "min_agreement"):
        if getattr(flags, flag):
            raise click.UsageError(f"--{flag.replace('_', '-')} goes with --against unpruned")
    question = _question(flags)
    if question is not None and flags.load_inputs is not None:
        raise click.UsageError("--load-inputs and --image exclude each other")
    settings = CompareSettings(
        components=flags.components,
        checkpoint=flags.checkpoint,
        draw=Draw(keep=flags.keep, **flags.random),
        question=question,
        load_inputs=flags.load_inputs,
        tolerance=Tolerance.parse(flags.atol, flags.rtol, flags.check_error_stat, flags.error_quantile),
        validate=flags.validate,
        layerwise=flags.layerwise or out.plot is not None,
        save_inputs=flags.save_inputs,
        save_outputs=flags.save_outputs,
        allow_other_weights=flags.allow_other_weights,
        running=flags.running,
    )
    comparison = compare(directory, flags.against, settings, report=_report)
    for note in comparison.notes:
        logger.warning("%s", note)
    if out.plot is not None:
        from trtprune.compare.plot import draw_errors

        draw_errors(comparison, out.plot)
    if out.report is not None:
        write_report(comparison.to_json(), out.report)
    if out.as_json:
        echo_json(comparison.to_json())
    else:
        show_comparison(comparison)
    for component in comparison.components:
        if component.repeat is not None:
            logger.info("%-9s again with Polygraphy alone: %s", component.name, component.repeat)
    return comparison.passed


def _question(flags: _Flags) -> Question | None:
    """The real input, if given."""
    if not flags.images and not flags.prompts:
        return None
    if not flags.images or len(flags.prompts) != 1:
        raise InputError("a real input is --image and one --prompt", hint='--image cat.jpg --prompt "What is this?"')
    from trtprune.compare import Question

    return Question(flags.images, flags.prompts[0], flags.system)


def _answers(directory: Path, flags: _Flags, out: _Output) -> bool:
    from trtprune.cli.running import open_vlm
    from trtprune.compare.answers import compare_answers
    from trtprune.compare.report import show_agreement, write_report
    from trtprune.compiler.budget import describe_budget

    for name, value in {
        "component": flags.components, "checkpoint": flags.checkpoint, "load-inputs": flags.load_inputs,
        "save-inputs": flags.save_inputs, "save-outputs": flags.save_outputs, "layerwise": flags.layerwise,
        "plot": out.plot, "atol": flags.atol,
    }.items():  # fmt: skip
        if value:
            raise click.UsageError(f"--{name} is for numbers; --against unpruned compares answers")
    questions = _questions(flags)
    agreement = compare_answers(
        open_vlm(directory, Loading(flags.running)),
        questions,
        keep=flags.keep,
        min_agreement=flags.min_agreement,
        report=_report,
        max_new_tokens=flags.max_new_tokens,
        stop=list(flags.stop) or None,
    )
    counts = [(row.visual_tokens, row.kept_tokens) for row in agreement.rows]
    budget = describe_budget(agreement.visual_tokens, agreement.keep)
    if len({visual for visual, _ in counts}) > 1:
        budget = f"{describe_budget(*map(sum, zip(*counts, strict=True)))}, all questions together"
    elif counts:
        budget = describe_budget(counts[0][0], min(counts[0]))
    logger.info("%s: %s", agreement.method, budget)
    if out.report is not None:
        write_report(agreement.to_json(), out.report)
    if out.as_json:
        echo_json(agreement.to_json())
    else:
        show_agreement(agreement)
        click.echo(_verdict(agreement))
    return agreement.passed


def _questions(flags: _Flags) -> list[Case]:
    from trtprune.compare.answers import Case, read_questions
    from trtprune.runtime import Request

    if flags.requests is not None:
        return read_questions(flags.requests)
    if flags.images and flags.prompts:
        return [Case(Request(list(flags.images), prompt, system=flags.system)) for prompt in flags.prompts]
    raise InputError("no questions given", hint="--requests FILE.jsonl, or --image and --prompt")


def _verdict(agreement: Agreement) -> str:
    asked = len(agreement.rows)
    if not agreement.counted:
        return f"none of {asked} questions was answered to the end by both: raise --max-new-tokens"
    same = sum(row.same for row in agreement.rows if row.counted)
    text = f"same answer to {same} of {agreement.counted} questions ({100 * agreement.agreement:.1f} %)"
    if agreement.counted < asked:
        text += f"; {asked - agreement.counted} of {asked} not counted"
    if agreement.accuracy is not None:
        text += "; right {:.1%} pruned, {:.1%} unpruned".format(*agreement.accuracy)
    if agreement.min_agreement is not None:
        text += f"; --min-agreement {agreement.min_agreement:g}"
    return text
