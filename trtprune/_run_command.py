"""``trtprune run``: questions about pictures, one by one or from a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtprune._console import echo_json
from trtprune._options import PATH, run_options
from trtprune.errors import InputError

if TYPE_CHECKING:
    from trtprune.runtime import Result

__all__ = ["run"]


@click.command()
@click.option("--image", "images", multiple=True, help="A picture; repeat for several in one prompt.")
@click.option("--prompt", "prompts", multiple=True, help="The question; repeat for several turns on the same picture.")
@click.option("--requests", type=PATH, help='JSON lines {"image": …, "prompt": …}, answered in batches.')
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Rows a batch, with --requests.  [default: 4, or fewer if the engines were built for fewer]",
)
@click.option("--system", help="System message.")
@click.option("--raw-prompt", is_flag=True, help="The prompt is already formatted: no chat template.")
@click.option("--keep", type=int, help="Visual tokens kept per image.  [default: as built]")
@click.option("--repick/--no-repick", default=True, help="Select tokens anew for each turn, or keep the first choice.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer.  [default: the checkpoint's, or 64]")
@click.option("--temperature", type=float, help="0 is greedy.  [default: the checkpoint's, mostly greedy]")
@click.option("--top-k", type=int, help="0 is off.  [default: the checkpoint's, or 50 where a token is drawn]")
@click.option("--top-p", type=float, help="1 is off.  [default: the checkpoint's, mostly 1]")
@click.option("--repetition-penalty", type=float, help="1 is off.  [default: the checkpoint's, mostly 1]")
@click.option("--seed", type=int, help="Makes sampling (and --method random) repeatable.")
@click.option("--stop", multiple=True, help="Stop before this string; repeatable.")
@click.option("--ignore-eos", is_flag=True, help="Go on to --max-new-tokens; for measurements.")
@click.option("--max-pixels", type=int, help="Refuse pictures larger than this.")
@click.option("--stream", is_flag=True, help="Print the answer as it comes.")
@click.option("--json", "as_json", is_flag=True, help="Print results as JSON, one line an answer.")
@run_options
def run(
    directory: Path,
    images: tuple[str, ...],
    prompts: tuple[str, ...],
    requests: Path | None,
    as_json: bool,
    stream: bool,
    **arguments: Any,
) -> None:
    """Answer questions about pictures with an engine directory."""
    from trtprune._run import answer_batch, answer_one, answer_turns, open_vlm

    if requests is not None and (images or prompts):
        raise click.UsageError("--requests replaces --image and --prompt")
    if requests is None and not images:
        raise InputError("no image given", hint="--image PICTURE, or --requests FILE.jsonl")
    if requests is None and not prompts:
        raise InputError("no prompt given", hint='--prompt "What is on the table?"')
    if stream and as_json:
        raise click.UsageError("--stream and --json exclude each other")
    settings = {name: arguments.pop(name) for name in ("provider", "provider_options", "threads", "verify")}
    vlm = open_vlm(directory, max_pixels=arguments.pop("max_pixels"), **settings)
    arguments["stop"] = list(arguments["stop"]) or None
    batch_size, repick = arguments.pop("batch_size"), arguments.pop("repick")
    results: Iterable[Result]
    if requests is not None:
        results = answer_batch(vlm, requests, batch_size, arguments)
    elif len(prompts) > 1:
        results = answer_turns(vlm, images, prompts, arguments, repick)
    else:
        results = answer_one(vlm, images, prompts[0], arguments, sys.stdout if stream else None)
    for result in results:
        if as_json:
            echo_json(result.to_json())
        elif not stream or len(prompts) > 1:
            click.echo(result.text)
