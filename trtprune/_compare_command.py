"""The command ``trtprune compare``: options in Polygraphy's spelling, its RUNNING and PASSED lines, exit code 1."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtprune._console import echo_json, logger
from trtprune._options import PATH, run_options
from trtprune.errors import InputError

if TYPE_CHECKING:
    from trtprune.compare.answers import Agreement

__all__ = ["compare"]

NAMED = "[name:]value, of one output or of all; repeatable.  "
UNPRUNED = "unpruned"


@click.command()
@click.option(
    "--against",
    metavar="REFERENCE",
    help="onnxruntime (engines beside their own graphs), transformers (graphs beside the checkpoint), "
    "another engine directory, or unpruned (answers).  [default: onnxruntime with engines, else transformers]",
)
@click.option("--component", "components", multiple=True, help="vision, embed, clip_text, pruner, decoder; repeatable.")
@click.option("--checkpoint", help="For transformers: directory, alias or hub id.  [default: as recorded at build]")
@click.option("--allow-other-weights", is_flag=True, help="The reference may have other weights of the same sizes.")
@click.option("--image", "images", multiple=True, help="A real input: a picture; repeat for several in one prompt.")
@click.option("--prompt", "prompts", multiple=True, help="A real input: the question; repeatable with unpruned.")
@click.option("--system", help="System message of a real input.")
@click.option("--load-inputs", type=PATH, help="Inputs that --save-inputs, or Polygraphy, wrote.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of random inputs.")
@click.option("--iterations", type=click.IntRange(1), default=1, show_default=True, help="Random inputs a component.")
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Rows of random inputs.")
@click.option("--text-tokens", type=click.IntRange(1), default=16, show_default=True, help="Of a random prompt.")
@click.option("--decode-steps", type=click.IntRange(0), default=2, show_default=True, help="Single tokens per prompt.")
@click.option("--keep", type=int, help="Visual tokens kept per image.  [default: as built]")
@click.option("--atol", multiple=True, help=NAMED + "[default: 1e-4; float16, bfloat16: 1e-2]")
@click.option("--rtol", multiple=True, help=NAMED + "[default: 1e-5; float16, bfloat16: 1e-2]")
@click.option(
    "--check-error-stat",
    multiple=True,
    help=NAMED + "max, mean, median, elemwise or quantile.  [default: elemwise; float16, bfloat16: mean]",
)
@click.option("--error-quantile", multiple=True, help=NAMED + "For the quantile.  [default: 0.99]")
@click.option("--validate", is_flag=True, help="NaN or infinity in an output is a failure, whatever the tolerance.")
@click.option("--save-inputs", type=PATH, help="Polygraphy's JSON; of several components FILE.COMPONENT.json.")
@click.option("--save-outputs", type=PATH, help="Outputs of both sides, likewise.")
@click.option("--layerwise", is_flag=True, help="Find the first tensor inside that is beyond tolerance.")
@click.option("--plot", type=PATH, help="Draw the error behind every layer; implies --layerwise.")
@click.option("--report", type=PATH, help="Write everything that was found as JSON.")
@click.option("--requests", type=PATH, help='unpruned: JSON lines {"image": …, "prompt": …, "answer": …}.')
@click.option("--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, help="unpruned: of an answer.")
@click.option("--stop", multiple=True, help="unpruned: stop before this string; repeatable.")
@click.option("--min-agreement", type=click.FloatRange(0, 1), help="unpruned: part of answers that must be the same.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@run_options
def compare(
    directory: Path,
    against: str | None,
    as_json: bool,
    report: Path | None,
    plot: Path | None,
    **arguments: Any,
) -> None:
    """Compare an engine directory with a reference: numbers within tolerance, or the same answers.

    \b
    trtprune compare out                                  engines beside their graphs in ONNX Runtime
    trtprune compare out --against transformers --layerwise --plot error.png
    trtprune compare out-float16 --against out-float32
    trtprune compare out --against unpruned --requests questions.jsonl
    """
    command = shlex.join(["trtprune", *sys.argv[1:]])
    start = time.perf_counter()
    for flag, path in (("--report", report), ("--plot", plot)):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{flag} {path}: there is no directory {path.parent}", hint="make it first")
    logger.info("[I] RUNNING | Command: %s", command)
    if against == UNPRUNED:
        found = _answers(directory, arguments, report, plot, as_json)
    else:
        found = _numbers(directory, against, arguments, report, plot, as_json)
    runtime = time.perf_counter() - start
    if found:
        logger.info("[I] PASSED | Runtime: %.3fs | Command: %s", runtime, command)
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
    from trtprune._budget import describe_budget
    from trtprune._run import open_vlm
    from trtprune.compare.answers import Asked, compare_answers, read_questions
    from trtprune.compare.report import show_agreement, write_report
    from trtprune.runtime import Request

    given["plot"] = plot
    for name in ("components", "checkpoint", "load_inputs", "save_inputs", "save_outputs", "layerwise", "plot", "atol"):
        if given[name]:
            flag = {"components": "component"}.get(name, name).replace("_", "-")
            raise click.UsageError(f"--{flag} is for numbers; --against unpruned compares answers")
    if given["requests"] is not None:
        questions = read_questions(given["requests"])
    elif given["images"] and given["prompts"]:
        questions = [Asked(Request(list(given["images"]), p, system=given["system"])) for p in given["prompts"]]
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
