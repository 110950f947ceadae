"""The command ``trtprune compare``: options in Polygraphy's spelling, its RUNNING and PASSED lines, exit code 1."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtprune.cli.console import echo_json, logger
from trtprune.cli.flags import Command, option
from trtprune.cli.options import JSON, KEEP, OUTPUT, PATH, plot_options, run_options
from trtprune.errors import InputError

if TYPE_CHECKING:
    from trtprune.compare.answers import Agreement

__all__ = ["compare"]

NAMED = "[NAME:]VALUE"
REFERENCE, REAL, RANDOM, TOLERANCE = "Reference", "A real input", "Random inputs", "Tolerance"
UNPRUNED_GROUP = "Answers, with --against unpruned"
UNPRUNED = "unpruned"


@click.command(cls=Command, short_help="Compare an engine directory with a reference: numbers, or answers.")
@option(
    "--against",
    metavar="REFERENCE",
    group=REFERENCE,
    help="What is compared with: onnxruntime (engines beside their own graphs), transformers (graphs beside the "
    "checkpoint), another engine directory, or unpruned (answers).  [default: onnxruntime with engines, else "
    "transformers]",
)
@option(
    "--checkpoint",
    aliases=["--model"],
    group=REFERENCE,
    help="The checkpoint for transformers: a directory, alias or hub id.  [default: as recorded at build]",
)
@option(
    "--allow-other-weights",
    is_flag=True,
    group=REFERENCE,
    help="Accept a reference with other weights of the same sizes.",
)
@option(
    "--component",
    "components",
    metavar="NAME",
    multiple=True,
    group=REFERENCE,
    help="A component to compare: vision, embed, clip_text, pruner or decoder; repeatable.  [default: all]",
)
@option(
    "--image",
    "images",
    metavar="PICTURE",
    multiple=True,
    group=REAL,
    help="A picture; repeat it for several in one prompt.",
)
@option(
    "--prompt", "prompts", metavar="TEXT", multiple=True, group=REAL, help="The question; repeatable with unpruned."
)
@option("--system", metavar="TEXT", group=REAL, help="The system message.")
@option("--load-inputs", type=PATH, group=REAL, help="A file of inputs that --save-inputs, or Polygraphy, wrote.")
@option("--seed", type=click.IntRange(0), default=1, show_default=True, group=RANDOM, help="The seed of random inputs.")
@option(
    "--iterations",
    type=click.IntRange(1),
    metavar="N",
    default=1,
    show_default=True,
    group=RANDOM,
    help="The number of random inputs for each component.",
)
@option(
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    default=1,
    show_default=True,
    group=RANDOM,
    help="The number of rows of a random input.",
)
@option(
    "--text-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=16,
    show_default=True,
    group=RANDOM,
    help="The number of text tokens of a random prompt.",
)
@option(
    "--decode-steps",
    type=click.IntRange(0),
    metavar="N",
    default=2,
    show_default=True,
    group=RANDOM,
    help="The number of single tokens that follow a random prompt.",
)
@KEEP
@option(
    "--atol",
    metavar=NAMED,
    multiple=True,
    group=TOLERANCE,
    help="The absolute tolerance, of all outputs or of one; repeatable.  [default: 1e-4; float16, bfloat16: 1e-2]",
)
@option(
    "--rtol",
    metavar=NAMED,
    multiple=True,
    group=TOLERANCE,
    help="The relative tolerance, likewise.  [default: 1e-5; float16, bfloat16: 1e-2]",
)
@option(
    "--check-error-stat",
    metavar=NAMED,
    multiple=True,
    group=TOLERANCE,
    help="The error that is held to the tolerances: max, mean, median, elemwise or quantile.  [default: elemwise; "
    "float16, bfloat16: mean]",
)
@option(
    "--error-quantile",
    metavar=NAMED,
    multiple=True,
    group=TOLERANCE,
    help="The quantile that quantile takes.  [default: 0.99]",
)
@option(
    "--validate",
    is_flag=True,
    group=TOLERANCE,
    help="Fail where an output has NaN or infinity, whatever the tolerance.",
)
@option(
    "--layerwise", is_flag=True, group=TOLERANCE, help="Find the first tensor inside a graph that is beyond tolerance."
)
@option(
    "--requests",
    type=PATH,
    group=UNPRUNED_GROUP,
    help='Questions as JSON lines {"image": …, "prompt": …, "answer": …}.',
)
@option(
    "--max-new-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=64,
    show_default=True,
    group=UNPRUNED_GROUP,
    help="The largest length of an answer in tokens.",
)
@option("--stop", metavar="TEXT", multiple=True, group=UNPRUNED_GROUP, help="A text at which answers end; repeatable.")
@option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    metavar="0-1",
    group=UNPRUNED_GROUP,
    help="The share of answers that must be the same.",
)
@option(
    "--save-inputs",
    type=PATH,
    group=OUTPUT,
    help="The file for inputs, in Polygraphy's JSON; with several components FILE.COMPONENT.json.",
)
@option("--save-outputs", type=PATH, group=OUTPUT, help="The file for the outputs of both sides, likewise.")
@plot_options("Draw the error after every layer, to FILE or error.png; implies --layerwise.")
@option("--report", type=PATH, group=OUTPUT, help="Write everything that was found to this file as JSON.")
@JSON
@run_options
def compare(
    directory: Path,
    against: str | None,
    as_json: bool,
    report: Path | None,
    plot: Any,
    **arguments: Any,
) -> None:
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
    logger.info("[I] RUNNING | Command: %s", command)
    if against == UNPRUNED:
        found = _answers(directory, arguments, report, picture, as_json)
    else:
        found = _numbers(directory, against, arguments, report, picture, as_json)
    runtime = time.perf_counter() - start
    if found:
        # Answers are compared with those of other settings: without a bar that they must reach, nothing was asserted.
        asserted = against != UNPRUNED or arguments["min_agreement"] is not None
        logger.info("[I] %s | Runtime: %.3fs | Command: %s", "PASSED" if asserted else "DONE", runtime, command)
    else:
        logger.error("[E] FAILED | Runtime: %.3fs | Command: %s", runtime, command)
        sys.exit(1)


def _report(component: str, text: str) -> None:
    logger.info("%-9s %s", component, text)


def _numbers(
    directory: Path, against: str | None, given: dict[str, Any], report: Path | None, plot: Path | None, as_json: bool
) -> bool:
    from trtprune.compare import Draw, Question, Running, Tolerance, compare
    from trtprune.compare.report import show_comparison, write_report

    for flag in ("requests", "stop", "min_agreement"):
        if given[flag]:
            raise click.UsageError(f"--{flag.replace('_', '-')} goes with --against unpruned")
    real = _question(given, Question)
    if real is not None and given["load_inputs"] is not None:
        raise click.UsageError("--load-inputs and --image exclude each other")
    sizes = ("seed", "iterations", "decode_steps", "batch_size", "text_tokens", "keep")
    draw = Draw(**{name: given[name] for name in sizes})
    comparison = compare(
        directory,
        against,
        components=given["components"],
        checkpoint=given["checkpoint"],
        draw=draw,
        question=real,
        load_inputs=given["load_inputs"],
        tolerance=Tolerance.parse(given["atol"], given["rtol"], given["check_error_stat"], given["error_quantile"]),
        validate=given["validate"],
        layerwise=given["layerwise"] or plot is not None,
        save_inputs=given["save_inputs"],
        save_outputs=given["save_outputs"],
        allow_other_weights=given["allow_other_weights"],
        running=Running(given["provider"], dict(given["provider_options"]), given["threads"], given["verify"]),
        report=_report,
    )
    for note in comparison.notes:
        logger.warning("%s", note)
    if plot is not None:
        from trtprune.compare.plot import draw_errors

        draw_errors(comparison, plot)
    if report is not None:
        write_report(comparison.to_json(), report)
    if as_json:
        echo_json(comparison.to_json())
    else:
        show_comparison(comparison)
    for component in comparison.components:
        if component.repeat is not None:
            logger.info("%-9s again with Polygraphy alone: %s", component.name, component.repeat)
    return comparison.passed


def _question(given: dict[str, Any], kind: Any) -> Any:
    """The real input, if one was given."""
    if not given["images"] and not given["prompts"]:
        return None
    if not given["images"] or len(given["prompts"]) != 1:
        raise InputError("a real input is --image and one --prompt", hint='--image cat.jpg --prompt "What is this?"')
    return kind(given["images"], given["prompts"][0], given["system"])


def _answers(directory: Path, given: dict[str, Any], report: Path | None, plot: Path | None, as_json: bool) -> bool:
    from trtprune.cli.running import open_vlm
    from trtprune.compare.answers import Case, compare_answers, read_questions
    from trtprune.compare.report import show_agreement, write_report
    from trtprune.compiler.budget import describe_budget
    from trtprune.runtime import Request

    given["plot"] = plot
    for name in ("components", "checkpoint", "load_inputs", "save_inputs", "save_outputs", "layerwise", "plot", "atol"):
        if given[name]:
            flag = {"components": "component"}.get(name, name).replace("_", "-")
            raise click.UsageError(f"--{flag} is for numbers; --against unpruned compares answers")
    if given["requests"] is not None:
        questions = read_questions(given["requests"])
    elif given["images"] and given["prompts"]:
        questions = [Case(Request(list(given["images"]), p, system=given["system"])) for p in given["prompts"]]
    else:
        raise InputError("no questions given", hint="--requests FILE.jsonl, or --image and --prompt")
    settings = {name: given[name] for name in ("provider", "provider_options", "threads", "verify")}
    vlm = open_vlm(directory, max_pixels=None, **settings)
    agreement = compare_answers(
        vlm,
        questions,
        keep=given["keep"],
        min_agreement=given["min_agreement"],
        report=_report,
        max_new_tokens=given["max_new_tokens"],
        stop=list(given["stop"]) or None,
    )
    logger.info("%s: %s", agreement.method, describe_budget(agreement.visual_tokens, agreement.keep))
    if report is not None:
        write_report(agreement.to_json(), report)
    if as_json:
        echo_json(agreement.to_json())
    else:
        show_agreement(agreement)
        click.echo(_verdict(agreement))
    return agreement.passed


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
