"""What ``trtprune run`` and ``trtprune show`` do, between the command line and the runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from trtprune._budget import describe_budget
from trtprune._console import logger
from trtprune.errors import InputError

if TYPE_CHECKING:
    from trtprune.runtime import Request, Result, Vlm

__all__ = ["answer_batch", "answer_one", "answer_turns", "open_vlm", "read_requests"]

MAX_REQUESTS_BYTES = 1 << 30
BATCH_SIZE = 4


def open_vlm(
    directory: Path,
    *,
    provider: str | None,
    provider_options: Sequence[tuple[str, str]],
    threads: int | None,
    verify: str,
    max_pixels: int | None,
) -> Vlm:
    """Loads an engine directory and says what it is."""
    from trtprune.runtime import load

    vlm = load(
        directory,
        provider=provider,
        provider_options=dict(provider_options),
        threads=threads,
        verify=verify,
        max_pixels=max_pixels,
    )
    logger.debug("%s: %s, %s, %s", directory, vlm.config.model.id, vlm.config.pruning.method, vlm.provider)
    return vlm


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


def answer_one(
    vlm: Vlm, images: Sequence[str], prompt: str, arguments: Mapping[str, Any], stream: TextIO | None
) -> list[Result]:
    """One question; with ``stream`` the pieces are written there as they come."""
    if stream is None:
        results = [vlm.generate(list(images), prompt, **arguments)]
    else:
        pieces = vlm.stream(list(images), prompt, **arguments)
        for piece in pieces:
            stream.write(piece)
            stream.flush()
        stream.write("\n")
        results = [pieces.result]
    _said(vlm, results)
    return results


def answer_turns(
    vlm: Vlm, images: Sequence[str], prompts: Sequence[str], arguments: Mapping[str, Any], repick: bool
) -> Iterator[Result]:
    """Several questions about the same pictures, one after the other."""
    settings = dict(arguments)
    if settings.pop("raw_prompt", False):
        raise InputError("--raw-prompt takes one --prompt", hint="turns need the chat template")
    chat = vlm.chat(list(images), system=settings.pop("system", None))
    for prompt in prompts:
        result = chat.ask(prompt, repick=repick, **settings)
        _said(vlm, [result])
        yield result


def answer_batch(vlm: Vlm, path: Path, batch_size: int | None, arguments: Mapping[str, Any]) -> Iterator[Result]:
    """The requests of a JSON-lines file, in its order, ``batch_size`` rows at a time.

    None takes :data:`BATCH_SIZE`, or as many as the engines were built for, if that is fewer.
    """
    if batch_size is None:
        batch_size = min(BATCH_SIZE, vlm.chain.max_batch)
    settings = dict(arguments)
    shared = {name: settings.pop(name) for name in ("system", "raw_prompt")}
    # All lines are read before any is answered: a typo in the last one should not cost the first hour.
    requests = list(read_requests(path, shared))
    if not requests:
        raise InputError(f"{path}: no requests", hint='one JSON object a line: {"image": …, "prompt": …}')
    for start in range(0, len(requests), batch_size):
        results = vlm.generate_batch(requests[start : start + batch_size], **settings)
        _said(vlm, results)
        yield from results


def read_requests(path: Path, shared: Mapping[str, Any]) -> Iterator[Request]:
    from trtprune.runtime import Request

    try:
        if path.stat().st_size > MAX_REQUESTS_BYTES:
            raise InputError(f"{path}: larger than {MAX_REQUESTS_BYTES} bytes", hint="split it")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--requests {path}: cannot be read: {error}", hint="a JSON-lines file") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not JSON: {error}", hint='{"image": …, "prompt": …}') from None
        pictures = row.get("image", row.get("images")) if isinstance(row, dict) else None
        if isinstance(pictures, str):
            pictures = [pictures]
        if not (
            isinstance(pictures, list)
            and pictures
            and all(isinstance(picture, str) for picture in pictures)
            and isinstance(row.get("prompt"), str)
        ):
            raise InputError(f"{path}:{number}: needs image (or images) and prompt", hint='{"image": …, "prompt": …}')
        # Paths in the file are relative to the file, so that a data set can be moved as a whole.
        located = [str(path.parent / picture) for picture in pictures]
        yield Request(images=located, prompt=row["prompt"], **shared)
