"""``trtprune run``: questions about images, one by one or from a file."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtprune.backends.running import Running
from trtprune.cli.console import echo, echo_json, log_options, logger
from trtprune.cli.flags import OUTPUT, Command, Gathered, Options, option
from trtprune.cli.options import DIRECTORY, KEEP, KEEP_RATIO, MAX_PIXELS, PATH, PRUNING, RUN, Loading
from trtprune.errors import InputError

if TYPE_CHECKING:
    from trtprune.cli.answer_file import AnswerFile
    from trtprune.cli.running import Answered
    from trtprune.engine_dir import EngineDir
    from trtprune.runtime import Result
    from trtprune.runtime.requests import RequestFile, RequestRow

__all__ = ["QUESTION", "answer_options", "run"]


QUESTION, ANSWER, FILE = "Question", "Answer", "Request file"
"""Headings in help."""


def _texts(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[str] | None:
    """The texts of a repeatable option; None where none is given, which is the checkpoint's own."""
    return list(value) or None


_REPICK = option(
    "--repick/--no-repick",
    default=True,
    group=PRUNING,
    help="Whether tokens are selected anew for each turn, or as for the first.  [default: repick]",
)
_ANSWER: Options = (
    option("--system", metavar="TEXT", group=QUESTION, help="A system message."),
    KEEP,
    KEEP_RATIO,
    _REPICK,
    option(
        "--max-new-tokens",
        type=click.IntRange(1),
        metavar="N",
        group=ANSWER,
        help="The largest length of an answer in tokens.  [default: the checkpoint's, or 64]",
    ),
    option(
        "--min-new-tokens",
        type=click.IntRange(0),
        metavar="N",
        group=ANSWER,
        help="The smallest length of an answer in tokens.  [default: the checkpoint's, mostly none]",
    ),
    option(
        "--temperature",
        type=float,
        metavar="X",
        group=ANSWER,
        help="The temperature of draws; 0 is greedy.  [default: the checkpoint's, mostly greedy]",
    ),
    option(
        "--top-k",
        type=int,
        metavar="N",
        group=ANSWER,
        help="Draw among the N likeliest tokens; 0 is off.  [default: the checkpoint's, or 50 where one is drawn]",
    ),
    option(
        "--top-p",
        type=float,
        metavar="X",
        group=ANSWER,
        help="Draw among tokens of this probability together; 1 is off.  [default: the checkpoint's, mostly 1]",
    ),
    option(
        "--repetition-penalty",
        type=float,
        metavar="X",
        group=ANSWER,
        help="Above 1, what was said becomes less likely; 1 is off.  [default: the checkpoint's, mostly 1]",
    ),
    option("--seed", type=int, metavar="N", group=ANSWER, help="The seed of draws, and of method random."),
    option(
        "--stop", multiple=True, callback=_texts, metavar="TEXT", group=ANSWER, help="End before this text; repeatable."
    ),
    option(
        "--ignore-eos",
        is_flag=True,
        group=ANSWER,
        help="Go on to --max-new-tokens whatever the model says; for measurements.",
    ),
)
_LOADING: Options = (
    MAX_PIXELS,
    option("--strict-images", is_flag=True, help="Refuse animations instead of taking their first frame."),
    Gathered("running", Running, RUN),
)


def answer_options(command: Any) -> Any:
    """The flags of an answer: the arguments ``settings``, ``repick`` and ``loading``."""
    loading = Gathered("loading", Loading, _LOADING)
    return Gathered("settings", dict, _ANSWER, apart=("repick",))(loading(command))


@dataclass(frozen=True)
class _File:
    """``--requests``, and what becomes of its answers."""

    requests: Path | None
    batch_size: int | None
    strict: bool
    urls: bool
    output: Path | None
    resume: bool
    force: bool


_FILE: Options = (
    option(
        "--requests",
        type=PATH,
        metavar="FILE",
        group=FILE,
        help='JSON lines {"image": …, "prompt": …} to answer in batches; - is stdin.',
    ),
    option(
        "--batch-size",
        type=click.IntRange(1),
        metavar="N",
        group=FILE,
        help="The number of rows answered together.  [default: 4, or fewer if the engines were built for fewer]",
    ),
    option("--strict", is_flag=True, group=FILE, help="End at the first row that cannot be answered."),
    option("--urls", is_flag=True, group=FILE, help="Fetch pictures that rows name by http(s) address."),
    option("-o", "--output", type=PATH, metavar="FILE", group=FILE, help="Write the answers there, as JSON lines."),
    option("--resume", is_flag=True, group=FILE, help="Go on behind the answers that -o holds."),
    option("--force", is_flag=True, group=FILE, help="Start anew, whatever answers -o holds."),
)


@click.command(cls=Command, short_help="Answer questions about pictures.")
@DIRECTORY
@option(
    "--image",
    "images",
    multiple=True,
    metavar="PICTURE",
    group=QUESTION,
    help="A picture: file, https:// address, or - for stdin; repeat it for several in one prompt.",
)
@option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    group=QUESTION,
    help="The question; repeat it for several turns on the same pictures.",
)
@option("--raw-prompt", is_flag=True, group=QUESTION, help="Take the prompt as it is, without the chat template.")
@Gathered("file", _File, _FILE)
@answer_options
@option("--stream", is_flag=True, group=OUTPUT, help="Print the answer as it comes.")
@option("--json", "as_json", is_flag=True, group=OUTPUT, help="Print results as JSON on stdout, one line an answer.")
@log_options
def run(
    directory: Path,
    images: tuple[str, ...],
    prompts: tuple[str, ...],
    raw_prompt: bool,
    file: _File,
    settings: dict[str, Any],
    repick: bool,
    loading: Loading,
    stream: bool,
    as_json: bool,
) -> None:
    """Answer questions about pictures with an engine directory.

    \b
    trtprune run out --image cat.jpg --prompt "What is on the table?"
    trtprune run out --image a.jpg --image b.jpg --prompt "What differs?" --json
    trtprune run out --requests questions.jsonl -o answers.jsonl
    """
    from trtprune.cli.running import answer_one, answer_turns, check_settings, open_vlm, pictures, tell_whole_images
    from trtprune.compiler.budget import check_keep
    from trtprune.engine_dir import open_engine_dir

    _check_usage(images, prompts, raw_prompt, file)
    _check_output(file, stream, as_json)
    made = open_engine_dir(directory, verify="none")
    check_settings(settings)
    check_keep(made, settings["keep"])
    settings["raw_prompt"] = raw_prompt
    loading = replace(loading, urls=file.urls)
    if file.requests is not None:
        _answer_file(made, directory, file, settings, loading, as_json)
        return
    looked_at = pictures(images, loading)
    vlm = open_vlm(directory, loading)
    tell_whole_images(vlm)
    results: Iterable[Result]
    if len(prompts) > 1:
        results = answer_turns(vlm, looked_at, prompts, settings, repick)
    else:
        results = answer_one(vlm, looked_at, prompts[0], settings, stream)
    for result in results:
        if as_json:
            echo_json(result.to_json())
        elif not stream or len(prompts) > 1:
            echo(result.text)


def _check_usage(images: tuple[str, ...], prompts: tuple[str, ...], raw_prompt: bool, file: _File) -> None:
    if file.requests is not None:
        if images or prompts:
            raise click.UsageError("--requests replaces --image and --prompt")
        return
    for name in ("output", "resume", "force", "strict", "urls"):
        if getattr(file, name):
            raise click.UsageError(f"--{name} is for --requests")
    if not images:
        raise InputError("no image given", hint="--image PICTURE, or --requests FILE.jsonl")
    if not prompts:
        raise InputError("no prompt given", hint='--prompt "What is on the table?"')
    if raw_prompt and len(prompts) > 1:
        raise InputError("--raw-prompt takes one --prompt", hint="turns need the chat template")


def _check_output(file: _File, stream: bool, as_json: bool) -> None:
    if stream and (as_json or file.requests is not None):
        raise click.UsageError(f"--stream and {'--json' if as_json else '--requests'} exclude each other")
    if file.output is None and (file.resume or file.force):
        raise click.UsageError("--resume and --force are for -o")
    if file.resume and file.force:
        raise click.UsageError("--resume and --force exclude each other")


def _answer_file(
    made: EngineDir, directory: Path, file: _File, settings: dict[str, Any], loading: Loading, as_json: bool
) -> None:
    """``--requests``: all possible checks come before the model is loaded."""
    from trtprune.cli.answer_file import AnswerFile, fingerprint
    from trtprune.cli.running import answer_rows, open_vlm, tell_whole_images
    from trtprune.compiler.budget import check_keep
    from trtprune.eval.progress import Meter
    from trtprune.runtime.requests import RequestFile

    assert file.requests is not None
    output = file.output
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(RequestFile(file.requests, check_keep=partial(check_keep, made), urls=file.urls))
        survey = rows.survey(strict=file.strict)
        if survey.bad:
            logger.warning(
                "%d of %d rows cannot be answered; the first: %s", survey.bad, survey.rows, survey.first_fault
            )
        if survey.empty_prompts:
            logger.warning("%d of %d rows have an empty prompt", survey.empty_prompts, survey.rows)
        answers = None
        todo: Iterator[RequestRow] = iter(rows)
        done = 0
        if output is not None:
            if output.exists() and file.requests.exists() and output.samefile(file.requests):
                raise InputError(f"-o {output}: is the request file", hint="choose another -o")
            run = fingerprint({"build": made.build_digest, **settings, "provider": loading.running.provider})
            answers = stack.enter_context(AnswerFile(output, run, resume=file.resume, force=file.force))
            todo, done = _behind(todo, answers)
            if done:
                logger.info("%-9s %d of %d rows were answered before", "answers", done, survey.rows)
        tally = Tally(rows, survey.rows, done)
        vlm = open_vlm(directory, loading)
        tell_whole_images(vlm)
        # On a terminal the answers themselves show the progress.
        watched = stack.enter_context(Meter(survey.rows, done, terminal=_bar_wanted(output)))
        try:
            for answered in answer_rows(vlm, todo, file.batch_size, settings):
                if answered.error and file.strict:
                    raise InputError(f"{rows.name}:{answered.row.number}: {answered.error}", hint=answered.hint)
                _write(answered, answers, as_json)
                tally.count(answered)
                watched.advance(1)
        except BaseException:
            if answers is not None and tally.done:
                logger.warning("%d of %d rows are answered; --resume goes on", tally.done, survey.rows)
            raise
    if output is not None and as_json:
        echo_json({"output": str(output), **tally.to_json()})
    elif output is not None:
        click.echo(str(output))
    tally.close()


def _behind(rows: Iterator[RequestRow], file: AnswerFile) -> tuple[Iterator[RequestRow], int]:
    """The rows without an answer, and the number of answered ones."""
    done = 0
    for row in rows:
        if not file.has(row.id):
            return itertools.chain([row], rows), done
        done += 1
    return iter(()), done


def _bar_wanted(output: Path | None) -> bool:
    return sys.stderr.isatty() and (output is not None or not sys.stdout.isatty())


def _write(answered: Answered, file: AnswerFile | None, as_json: bool) -> None:
    if file is not None:
        file.add(answered.to_json())
    elif as_json:
        echo_json(answered.to_json())
    else:
        # An empty line in its place, so that answers and requests have the same line numbers.
        echo(answered.result.text if answered.result is not None else "")


class Tally:
    """Counts of a request file's answers and errors, for the closing line."""

    def __init__(self, rows: RequestFile, total: int, done: int) -> None:
        self._rows, self.total, self.done = rows, total, done
        self._before, self._start = done, time.perf_counter()
        self._failed, self._first = 0, ""
        self._tokens = self._visual = self._kept = 0

    def count(self, answered: Answered) -> None:
        """Counts one more row."""
        self.done += 1
        if answered.result is None:
            self._failed += 1
            self._first = self._first or f"{self._rows.name}:{answered.row.number}: {answered.error}"
        else:
            self._tokens += len(answered.result.token_ids)
            self._visual += answered.result.visual_tokens
            self._kept += answered.result.kept_tokens

    def to_json(self) -> dict[str, int]:
        """Numbers of rows in the file, of rows with a line, and of errors in this run."""
        return {"rows": self.total, "done": self.done, "failed": self._failed}

    def close(self) -> None:
        """Prints the closing line; raises InputError if a row was not answered."""
        from trtprune.compiler.budget import describe_budget

        fresh, seconds = self.done - self._before, time.perf_counter() - self._start
        if self._visual:
            logger.info("%-9s %s", "pruned", describe_budget(self._visual, self._kept))
        good = fresh - self._failed
        rate = f"{good / seconds:.1f} a second, {self._tokens / seconds:.1f} tokens a second"
        logger.info("%-9s %d answers in %.1f s: %s", "done", good, seconds, rate)
        if self._failed:
            raise InputError(
                f"{self._failed} of {fresh} rows were not answered; the first: {self._first}",
                hint="with --json or -o their lines say why, as error; --strict ends at the first",
            )
