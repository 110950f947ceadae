"""The work of ``trtprune run``, between the command line and the runtime."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.cli.console import echo, logger, spinner
from trtprune.cli.options import Loading
from trtprune.compiler.budget import describe_budget
from trtprune.errors import BudgetError, InputError, TrtpruneError

if TYPE_CHECKING:
    from PIL import Image

    from trtprune.runtime import Result, Vlm
    from trtprune.runtime.requests import RequestRow

__all__ = [
    "Answered",
    "answer_one",
    "answer_rows",
    "answer_turns",
    "check_settings",
    "open_vlm",
    "pictures",
    "tell_whole_images",
]

BATCH_SIZE = 4
STDIN = "-"


def open_vlm(directory: Path, loading: Loading) -> Vlm:
    """Loads an engine directory and says what it is."""
    start, running = time.perf_counter(), loading.running
    with spinner(f"loading {directory}"):
        from trtprune.runtime import load

        vlm = load(
            directory,
            provider=running.provider,
            provider_options=running.provider_options,
            threads=running.threads,
            verify=running.verify,
            max_pixels=loading.max_pixels,
            strict_images=loading.strict_images,
            urls=loading.urls,
        )
    logger.debug("%s: %s, %s, %s", directory, vlm.config.model.id, vlm.config.pruning.method, vlm.provider)
    logger.debug("loaded in %.1f s", time.perf_counter() - start)
    return vlm


def tell_whole_images(vlm: Vlm) -> None:
    """From now on, says once for each place in a prompt that an image has no more visual tokens than the budget."""
    told: set[int] = set()

    def say(number: int, tokens: int, keep: int) -> None:
        if number not in told:
            told.add(number)
            logger.info("image %d has %d visual tokens: --keep %d leaves it as it is", number, tokens, keep)

    vlm.pipeline.on_whole = say


def check_settings(given: Mapping[str, Any]) -> None:
    """Checks settings of an answer before a model is loaded.

    Raises:
        InputError: naming the flag.
    """
    from trtprune.runtime.answer import check_stop
    from trtprune.runtime.budget import Budget
    from trtprune.runtime.sampling import Sampling

    names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
    Sampling(**{name: given[name] for name in names if given.get(name) is not None})
    check_stop(given.get("stop"))
    keep, ratio = given.get("keep"), given.get("keep_ratio")
    Budget(keep or 0, ratio)
    if keep is not None and ratio is not None:
        raise InputError(f"--keep {keep} and --keep-ratio {ratio:g} exclude each other", hint="leave out one")


def pictures(sources: Sequence[str], loading: Loading) -> list[Image.Image]:
    """The images of ``--image``, from files, addresses or standard input, read before the model is loaded.

    Raises:
        InputError: naming the first unreadable one.
    """
    from trtprune.runtime.pictures import load_picture, max_pixels_from
    from trtprune.runtime.sources import read_stream

    if sources.count(STDIN) > 1:
        raise InputError("--image -: standard input holds one picture", hint="save the others to files")
    limit, found = max_pixels_from(loading.max_pixels), []
    for source in sources:
        picture: Any = source
        if source == STDIN:
            picture = read_stream(sys.stdin.buffer, "--image -")
        found.append(load_picture(picture, limit, strict=loading.strict_images, urls=True))
    return found


def _said(vlm: Vlm, results: Sequence[Result]) -> None:
    total = sum(result.visual_tokens for result in results)
    if results[0].segment_tokens:
        counts = [image for result in results for image in result.segment_tokens]
        layers = sum(result.tokens_per_layer for result in results)
        budget = (
            f"{' → '.join(str(sum(column)) for column in zip(*counts, strict=True))} visual tokens from segment to "
        )
        budget += f"segment, {layers:.1f} a layer processed and cached ({100 * layers / total:.1f} %)"
    else:
        budget = describe_budget(total, sum(result.kept_tokens for result in results))
    cache = sum(result.kv_cache_bytes for result in results) / len(results)
    logger.info("%s: %s, KV cache %.1f MB", vlm.config.pruning.method, budget, cache / 1e6)


def describe_speed(result: Result) -> str:
    """The speed in words: ``12 tokens: the first after 210 ms, then 35.1 a second``."""
    count = len(result.token_ids)
    first = f"the first after {result.time_to_first_token_ms:.0f} ms"
    if count < 2:
        return f"{count} token: {first}"
    return f"{count} tokens: {first}, then {result.tokens_per_second:.1f} a second"


def _closing(vlm: Vlm, result: Result) -> None:
    """Prints the time of one answer on stderr."""
    _said(vlm, [result])
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in result.timings.items())
    logger.debug("ms: %s; %d tokens of prompt", stages, result.prompt_tokens)
    logger.info("%s", describe_speed(result))


def answer_one(
    vlm: Vlm, images: Sequence[Any], prompt: str, arguments: Mapping[str, Any], stream: bool
) -> Iterator[Result]:
    """Answers one question; with ``stream`` the pieces are printed at once."""
    if stream:
        pieces = vlm.stream(list(images), prompt, **arguments)
        for piece in pieces:
            echo(piece, end=False)
        echo("")
        result = pieces.result
    else:
        result = vlm.generate(list(images), prompt, **arguments)
    yield result
    _closing(vlm, result)


def answer_turns(
    vlm: Vlm, images: Sequence[Any], prompts: Sequence[str], arguments: Mapping[str, Any], repick: bool
) -> Iterator[Result]:
    """Answers several questions about the same images, one after another."""
    settings = dict(arguments)
    settings.pop("raw_prompt", None)
    chat = vlm.chat(list(images), system=settings.pop("system", None))
    for prompt in prompts:
        result = chat.ask(prompt, repick=repick, **settings)
        yield result
        _closing(vlm, result)


@dataclass(frozen=True)
class Answered:
    """A row of a request file and its answer, or the reason without one."""

    row: RequestRow
    result: Result | None
    error: str = ""
    hint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Id and keys of the row, then those of the answer, or ``error``."""
        if self.result is not None:
            return self.row.echo() | self.result.to_json()
        hint = {} if self.hint is None else {"hint": self.hint}
        return self.row.echo() | {"error": self.error, **hint}


def answer_rows(
    vlm: Vlm, rows: Iterable[RequestRow], batch_size: int | None, arguments: Mapping[str, Any]
) -> Iterator[Answered]:
    """Answers the rows of a request file in order, ``batch_size`` of them at a time.

    None means :data:`BATCH_SIZE`, or the engines' limit, if that is lower.  A row that cannot be answered gives its
    error; the others of its batch are answered all the same.

    Raises:
        InputError: for a ``batch_size`` above the engines' limit, before any row is answered.
    """
    if batch_size is not None:
        vlm.pipeline.check_batch(batch_size)
    size = min(BATCH_SIZE, vlm.pipeline.decoder.max_batch) if batch_size is None else batch_size
    call = dict(arguments)
    shared = {name: call.pop(name, None) for name in ("system", "raw_prompt")}
    shared["raw_prompt"] = bool(shared["raw_prompt"])
    waiting: list[RequestRow] = []
    good: list[RequestRow] = []
    for row in rows:
        fits = not row.fault and len(good) < size and (not good or row.call == good[0].call)
        if waiting and not fits and (not row.fault or len(waiting) > 4 * size):
            yield from _answer(vlm, waiting, good, call, shared)
            waiting, good = [], []
        waiting.append(row)
        if not row.fault:
            good.append(row)
    yield from _answer(vlm, waiting, good, call, shared)


def _answer(
    vlm: Vlm, rows: Sequence[RequestRow], good: Sequence[RequestRow], call: Mapping[str, Any], shared: Mapping[str, Any]
) -> Iterator[Answered]:
    found: dict[int, Result | TrtpruneError] = {}
    if good:
        settings = {**call, **good[0].call}
        requests = [row.to_request(shared) for row in good]
        try:
            results = vlm.generate_batch(requests, **settings)
            found = dict(zip((row.number for row in good), results, strict=True))
        except (InputError, BudgetError) as error:
            if len(good) == 1:
                found[good[0].number] = error
            else:  # one by one: finds the failing row, and answers the others
                for row, request in zip(good, requests, strict=True):
                    try:
                        found[row.number] = vlm.generate_batch([request], **settings)[0]
                    except (InputError, BudgetError) as own:
                        found[row.number] = own
    for row in rows:
        answer = found.get(row.number)
        if row.fault:
            yield Answered(row, None, row.fault)
        elif isinstance(answer, TrtpruneError):
            yield Answered(row, None, answer.message, answer.hint)
        else:
            yield Answered(row, answer)
