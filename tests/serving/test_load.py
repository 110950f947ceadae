"""Answers under load are those of the request alone, at any concurrency."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

import trtprune
from tests.kit.runtime_kit import picture
from tests.kit.serving import message, serving
from tests.kit.tiny_files import complete
from trtprune.runtime import Vlm
from trtprune.runtime.inflight import Limits

QUESTIONS = ("What is this?", "How many are there?", "Why? " * 9, "Where is the red one?", "Is it a")


@dataclass(frozen=True)
class Asked:
    """One question of the load."""

    question: str
    pictures: tuple[int, ...]
    longest: int
    keep: int | None
    stop: str | None = field(default=None)
    temperature: float = 0.0
    stream: bool = False


def questions(count: int, seed: int) -> list[Asked]:
    draw = random.Random(seed)
    return [
        Asked(
            draw.choice(QUESTIONS),
            tuple(draw.choices(range(1, 5), k=draw.choice((1, 1, 2)))),
            draw.randint(1, 24),
            draw.choice((None, 3, 6, 12)),
            draw.choice((None, None, "e", "an")),
            draw.choice((0.0, 0.0, 0.9)),
            draw.random() < 0.5,
        )
        for _ in range(count)
    ]


def alone(vlm: Vlm, asked: Asked) -> tuple[str, str, list[list[int]]]:
    result = vlm.generate(
        [picture(number) for number in asked.pictures],
        asked.question,
        keep=asked.keep,
        max_new_tokens=asked.longest,
        stop=asked.stop,
        temperature=asked.temperature,
        seed=7,
    )
    return result.text, result.finish_reason, result.kept_indices


def body_of(asked: Asked) -> dict[str, Any]:
    own: dict[str, Any] = {"keep": asked.keep, "stop": asked.stop, "stream": asked.stream, "seed": 7}
    own |= {"max_tokens": asked.longest, "temperature": asked.temperature, "return_kept": True}
    return {"messages": [message(asked.question, *asked.pictures)], **own}


def ask(client: httpx.Client, asked: Asked) -> tuple[str, str, list[list[int]]]:
    """What the server answers: text, finish reason and kept indices."""
    response = client.post("/v1/chat/completions", json=body_of(asked))
    assert response.status_code == 200, response.text
    if not asked.stream:
        found = response.json()
        choice = found["choices"][0]
        return choice["message"]["content"], choice["finish_reason"], [one["kept_indices"] for one in found["kept"]]
    text, reason, kept = "", "", []
    events = response.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    for event in events[:-1]:
        found = httpx.Response(200, content=event.removeprefix("data: ")).json()
        text += found["choices"][0]["delta"].get("content", "")
        reason = found["choices"][0]["finish_reason"] or reason
        kept = [one["kept_indices"] for one in found["kept"]] if "kept" in found else kept
    return text, reason, kept


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("load")
    trtprune.build(complete(root / "model"), root / "out", keep=6, method="adafv")
    return root / "out"


def run(out: Path, count: int, seed: int, concurrency: int, limits: Limits) -> None:
    load = questions(count, seed)
    vlm = trtprune.load(out, threads=1)
    wanted: dict[Asked, Any] = {asked: alone(vlm, asked) for asked in dict.fromkeys(load)}
    with (
        serving(out, limits=limits, max_queued=count) as served,
        httpx.Client(base_url=served.address, timeout=120) as client,
        ThreadPoolExecutor(concurrency) as pool,
    ):
        one: Callable[[Asked], Any] = lambda asked: ask(client, asked)  # noqa: E731
        found = list(pool.map(one, load))
        state = served.engine.state
        assert (state.active, state.waiting) == (0, 0)
    wrong = [(asked, got, wanted[asked]) for asked, got in zip(load, found, strict=True) if got != wanted[asked]]
    assert not wrong


def test_a_short_load(out: Path) -> None:
    run(out, 60, 1, 6, Limits(4, 16))


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_500_mixed_requests(out: Path, concurrency: int) -> None:
    run(out, 500, concurrency, concurrency, Limits(8, 16))
