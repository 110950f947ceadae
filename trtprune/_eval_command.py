"""The command ``trtprune eval``: what a method and a budget cost in right answers."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from trtprune._bench_command import Budgets
from trtprune._console import echo_json, logger
from trtprune._options import CLIP, PATH, run_options

__all__ = ["evaluate"]


@click.command(name="eval")
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="FILE.jsonl, easy-vqa, scenes, signs, or a set as downloaded: vqav2:DIR, gqa:DIR, pope:DIR, textvqa:DIR, "
    "scienceqa:DIR.",
)
@click.option(
    "--methods",
    metavar="A,B:OPTION=VALUE",
    help="Methods; all, with what follows it besides; unpruned is always asked.  [default: as built]",
)
@click.option("--keep", "keeps", type=Budgets(), help="Budgets, such as 192,64.  [default: N/3, N/9 and as built]")
@click.option("--limit", type=click.IntRange(1), help="At most so many questions, drawn with --seed.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is drawn.")
@click.option("--metric", help="exact, vqa, textvqa, gqa, pope or letter.  [default: the data's own]")
@click.option("--images", type=PATH, help="Folder of the pictures, where it is not the usual one.")
@click.option("--prompt-suffix", help="A line behind every question, instead of the set's own; '' for none.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=16, show_default=True, help="Of an answer.")
@click.option("--stop", multiple=True, help="Stop before this string; repeatable.")
@click.option("--controls", is_flag=True, help="Ask every question with a wrong and with a grey picture, too.")
@click.option("--strict", is_flag=True, help="A row that cannot be used is an error.")
@click.option("-o", "--output", type=PATH, help="Directory of the results.  [default: OUT-eval]")
@click.option("--force", is_flag=True, help="Start anew where the directory holds answers.")
@click.option("--so-far", is_flag=True, help="Ask nothing; report on the answers that the directory holds.")
@click.option("--part", metavar="K/N", help="Ask the K-th of N shares; for processes side by side, with one OUTPUT.")
@click.option("--plot/--no-plot", default=None, help="Draw accuracy.png.  [default: if matplotlib is there]")
@click.option("--max-pixels", type=int, help="Refuse pictures larger than this.")
@click.option(
    "--with", "others", type=PATH, multiple=True, help="A directory of engines of another method; repeatable."
)
@CLIP
@click.option("--model", help="The checkpoint, where OUT's weights cannot stand for it (quantised ones).")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout, instead of the table.")
@run_options
def evaluate(directory: Path, data: str, output: Path | None, as_json: bool, **given: Any) -> None:
    """Ask questions with known answers, with and without pruning, and say what the pruning broke.

    Answers go to OUTPUT/results.jsonl as they come. The same command goes on where it was ended; other methods and
    budgets are added to what is there.

    \b
    trtprune eval out --data questions.jsonl
    trtprune eval out --data easy-vqa --methods adafv,fastervlm,random --keep 192,64,16 -o results
    trtprune eval out --data pope:coco --methods all --keep 64 --limit 1000 --controls
    CUDA_VISIBLE_DEVICES=1 trtprune eval out --data pope:coco --part 2/2
    """
    from trtprune.eval.evaluation import evaluate as run_eval
    from trtprune.eval.parts import answers_file
    from trtprune.eval.table import describe_examples, show_evaluation

    folder = output or Path(f"{directory.resolve().name}-eval")
    given["provider_options"] = dict(given["provider_options"])
    # Starting anew is meant once: the command that goes on must not throw away what this one answered.
    again = shlex.join(["trtprune", *(word for word in sys.argv[1:] if word != "--force")])
    try:
        evaluation = run_eval(
            directory, data, folder, **given, command=shlex.join(["trtprune", *sys.argv[1:]]), report=_report
        )
    except (KeyboardInterrupt, SystemExit) as end:
        answers = answers_file(folder, given["part"])
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
