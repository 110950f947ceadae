"""The command ``trtprune eval``: the cost of a method and a budget in right answers."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from trtprune.cli.console import echo_json, log_options, logger
from trtprune.cli.flags import Command, Gathered, Options, option
from trtprune.cli.options import (
    CLIP,
    DIRECTORY,
    MAX_PIXELS,
    MODEL,
    OUTPUT,
    PATH,
    RUN,
    keeps_option,
    methods_option,
    others_option,
    plot_options,
)
from trtprune.eval.settings import EvalSettings

__all__ = ["evaluate"]

QUESTIONS, ANSWERS = "Questions", "Answers"


_SETTINGS: Options = (
    option(
        "--data",
        required=True,
        metavar="DATA",
        group=QUESTIONS,
        help="The questions: FILE.jsonl, easy-vqa, scenes, signs, or a set as downloaded: vqav2:DIR, gqa:DIR, "
        "pope:DIR, textvqa:DIR, scienceqa:DIR.",
    ),
    option("--images", type=PATH, group=QUESTIONS, help="The folder of the pictures, where it is not the usual one."),
    option(
        "--limit",
        type=click.IntRange(1),
        metavar="N",
        group=QUESTIONS,
        help="The largest number of questions; drawn by seed.",
    ),
    option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        group=QUESTIONS,
        help="The seed of everything that is drawn at random: questions, controls, method random.",
    ),
    option(
        "--part",
        metavar="K/N",
        group=QUESTIONS,
        help="Ask only the K-th of N shares, for processes side by side with one OUTPUT.",
    ),
    option(
        "--strict", is_flag=True, group=QUESTIONS, help="Stop at a row that cannot be used, instead of leaving it out."
    ),
    MAX_PIXELS,
    keeps_option("a third and a ninth of all, and as built"),
    methods_option("Pruning methods, or all; unpruned is always asked, too."),
    others_option("asked"),
    CLIP,
    option(
        "--checkpoint",
        "model",
        aliases=["--model"],
        group=MODEL,
        help="The checkpoint, where OUT's own weights cannot stand for it (quantised ones).",
    ),
    option(
        "--prompt-suffix",
        metavar="TEXT",
        group=ANSWERS,
        help="A line that follows every question, instead of the set's own; '' for none.",
    ),
    option(
        "--max-new-tokens",
        type=click.IntRange(1),
        metavar="N",
        default=16,
        show_default=True,
        group=ANSWERS,
        help="The largest length of an answer in tokens.",
    ),
    option("--stop", metavar="TEXT", multiple=True, group=ANSWERS, help="A text at which answers end; repeatable."),
    option(
        "--metric",
        metavar="NAME",
        group=ANSWERS,
        help="How answers are judged: exact, vqa, textvqa, gqa, pope or letter.  [default: the data's own]",
    ),
    option(
        "--controls", is_flag=True, group=ANSWERS, help="Ask every question with a wrong and with a grey picture, too."
    ),
    option("-o", "--output", type=PATH, group=OUTPUT, help="The directory of the results.  [default: OUT-eval]"),
    option("--force", is_flag=True, group=OUTPUT, help="Start anew where the directory holds answers."),
    option("--so-far", is_flag=True, group=OUTPUT, help="Ask nothing; report on the answers that the directory holds."),
    plot_options("Draw accuracy by budget, to FILE or OUTPUT/accuracy.png.  [default: if matplotlib is there]"),
    option(
        "--json",
        "as_json",
        is_flag=True,
        group=OUTPUT,
        help="Print the report as JSON on stdout, instead of the table.",
    ),
    *RUN,
)


@click.command(name="eval", cls=Command, short_help="Ask questions with known answers: what does pruning break?")
@DIRECTORY
@Gathered("settings", EvalSettings, _SETTINGS, apart=("data", "output", "as_json"))
@log_options
def evaluate(directory: Path, data: str, output: Path | None, as_json: bool, settings: EvalSettings) -> None:
    """Ask questions with known answers, with and without pruning, and say what the pruning broke.

    Answers go to OUTPUT/results.jsonl as they come. The same command goes on where it was ended; other methods and
    budgets are added to what is there.

    \b
    trtprune eval out --data questions.jsonl
    trtprune eval out --data easy-vqa --methods adafv,random --keep 192,64,16
    trtprune eval out --data pope:coco --methods all --limit 1000 --controls
    CUDA_VISIBLE_DEVICES=1 trtprune eval out --data pope:coco --part 2/2
    """
    from trtprune.eval.evaluation import evaluate as run_eval
    from trtprune.eval.parts import ANSWERS
    from trtprune.eval.table import describe_examples, show_evaluation

    folder = output or Path(f"{directory.resolve().name}-eval")
    # --force is meant once: the command to continue must not discard this run's answers.
    again = shlex.join(["trtprune", *(word for word in sys.argv[1:] if word != "--force")])
    try:
        command = shlex.join(["trtprune", *sys.argv[1:]])
        evaluation = run_eval(directory, data, folder, settings, command=command, report=_report)
    except (KeyboardInterrupt, SystemExit) as end:
        answers = folder / (settings.share.file if settings.share else ANSWERS)
        text = f"trtprune: interrupted; what was answered is in {answers}. To go on:\n  {again}"
        if answers.exists():
            click.echo(text, err=True)
            sys.exit(130 if isinstance(end, KeyboardInterrupt) else end.code)
        raise
    for line in describe_examples(evaluation):
        logger.debug("%s", line)
    if as_json:
        echo_json(evaluation.to_json())
    else:
        show_evaluation(evaluation)
    logger.info("%-9s %s", "results", folder)


def _report(what: str, message: str) -> None:
    logger.info("%-9s %s", what, message)
