"""Requests that join and leave a running batch get the answers that they get alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trtprune
from tests.kit.runtime_kit import Kit, picture
from tests.kit.tiny_files import complete
from trtprune.errors import InputError
from trtprune.runtime import Features, Result, Vlm
from trtprune.runtime.answer import AnswerSettings
from trtprune.runtime.batch_row import BatchRow
from trtprune.runtime.inflight import InFlight, Limits, Order, Picture
from trtprune.text.template import Turn

WORDS = ["What is this?", "How many are there?", "Where is the red one, and what is left of it? " * 3, "Why?"]


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.text = ""
        self.result: Result | None = None
        self.error: Exception | None = None
        self.cached = -1
        self.features: Sequence[Features] = ()

    def on_text(self, piece: str) -> None:
        assert piece
        self.text += piece

    def on_result(self, result: Result, pictures: Sequence[Features], cached_tokens: int) -> None:
        assert self.result is None
        self.result, self.cached, self.features = result, cached_tokens, pictures

    def on_error(self, error: Exception) -> None:
        assert self.error is None
        self.error = error


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete(tmp_path_factory.mktemp("inflight") / "model")


@pytest.fixture(scope="module", params=["cpu", "openvino", "fastv", "visionzip", "sparsevlm"])
def vlm(request: pytest.FixtureRequest, model: Path) -> Vlm:
    provider = request.param if request.param in ("cpu", "openvino") else "cpu"
    method = "adafv" if request.param in ("cpu", "openvino") else request.param
    if provider == "openvino":
        pytest.importorskip("openvino")
    root = model.parent / request.param
    options = {"fastv": {"k": 1}, "sparsevlm": {"schedule": "0:8,1:5"}}.get(method, {})
    trtprune.build(
        model, root, keep=7 if method == "sparsevlm" else 6, method=method, options=options, provider=provider
    )
    return trtprune.load(root, threads=1)


def order(vlm: Vlm, heard: Heard, asked: dict[str, Any]) -> Order:
    turns = [Turn("user", asked["prompt"], len(asked["images"]))]
    pictures = []
    for number in asked["images"]:
        image = vlm.pipeline.load(picture(number))
        prepared = vlm.pipeline.processor.prepare(image, len(asked["images"]))
        pictures.append(Picture((hashlib.sha256(image.tobytes()).digest(), len(asked["images"])), prepared))
    answers = AnswerSettings.of(vlm.config.generation, **asked["settings"])
    return Order(turns, pictures, vlm.pipeline.budget(asked["keep"], None), answers, heard)


def alone(vlm: Vlm, asked: dict[str, Any]) -> Result:
    images = [picture(number) for number in asked["images"]]
    return vlm.generate(images, asked["prompt"], keep=asked["keep"], **asked["settings"])


def check(vlm: Vlm, heard: Heard, asked: dict[str, Any]) -> None:
    wanted = alone(vlm, asked)
    assert heard.error is None
    assert heard.result is not None
    assert heard.result.token_ids == wanted.token_ids
    assert heard.result.kept_indices == wanted.kept_indices
    assert heard.result.finish_reason == wanted.finish_reason
    assert heard.text == heard.result.text == wanted.text
    assert heard.result.segment_tokens == wanted.segment_tokens


def requests(keeps: Sequence[int | None]) -> st.SearchStrategy[dict[str, Any]]:
    own = st.fixed_dictionaries(
        {"max_new_tokens": st.integers(1, 14), "temperature": st.sampled_from([0.0, 0.8]), "seed": st.integers(0, 3)}
    )
    return st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(WORDS),
            "images": st.lists(st.integers(1, 3), min_size=1, max_size=2),
            "keep": st.sampled_from(keeps),
            "settings": own,
            "after": st.integers(0, 6),
        }
    )


@given(st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_are_those_of_the_request_alone(vlm: Vlm, data: st.DataObject) -> None:
    """Random requests that come at random moments, with and without memory of earlier ones, in pieces and whole."""
    low, high = vlm.config.pruning.keep_range
    keeps = [None, *(keep for keep in (4, 5, 9) if low <= keep <= high)]
    asked = data.draw(st.lists(requests(keeps), min_size=2, max_size=7))
    size = 1 << data.draw(st.sampled_from([0, 24]))
    batch = InFlight(vlm.pipeline, Limits(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40)), size, size - 1))
    heard = [Heard() for _ in asked]
    coming = [(one, order(vlm, listener, one)) for one, listener in zip(asked, heard, strict=True)]
    for one, job in coming:
        batch.add(job)
        for _ in range(one["after"]):
            batch.work()
    while batch.work():
        assert batch.active <= batch.max_rows
    assert (batch.active, batch.waiting) == (0, 0)
    for one, listener in zip(asked, heard, strict=True):
        check(vlm, listener, one)


def answer(vlm: Vlm, batch: InFlight, asked: dict[str, Any]) -> Heard:
    heard = Heard()
    batch.add(order(vlm, heard, asked))
    while batch.work():
        pass
    check(vlm, heard, asked)
    return heard


def ask(prompt: str, images: Sequence[int] = (1,), **settings: Any) -> dict[str, Any]:
    return {"prompt": prompt, "images": list(images), "keep": None, "settings": {"max_new_tokens": 8, **settings}}


def test_what_was_computed_before_is_not_computed_again(vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    look = type(vlm.chain).look
    monkeypatch.setattr(
        type(vlm.chain), "look", lambda chain, images: looked.append(len(images)) or look(chain, images)
    )
    batch = InFlight(vlm.pipeline, Limits(2))
    first = answer(vlm, batch, ask("What is this?"))
    before = len(looked)
    again = answer(vlm, batch, ask("What is this?"))
    assert first.cached == 0
    assert looked[before:] == [1]  # the check's own
    assert again.result is not None
    if vlm.pipeline.decoder.prunes:
        assert again.cached == 0
    else:
        assert again.cached == again.result.prompt_tokens - 1
        other = answer(vlm, batch, ask("What is that over there?"))
        assert 0 < other.cached < again.cached
        assert answer(vlm, batch, ask("What is this?", [2])).cached < again.cached


def test_a_request_that_fails_leaves_the_others_alone(vlm: Vlm) -> None:
    batch = InFlight(vlm.pipeline, Limits(3))
    asked = [ask("What is this?"), ask("word " * 3000), ask("Why?", [1, 2])]
    heard = [Heard() for _ in asked]
    for one, listener in zip(asked, heard, strict=True):
        batch.add(order(vlm, listener, one))
    while batch.work():
        pass
    check(vlm, heard[0], asked[0])
    check(vlm, heard[2], asked[2])
    assert isinstance(heard[1].error, InputError)
    assert heard[1].result is None


@pytest.mark.parametrize("rounds", range(0, 9, 2))
def test_a_cancelled_request_frees_its_row(vlm: Vlm, rounds: int) -> None:
    batch = InFlight(vlm.pipeline, Limits(1, 4))
    first, second = Heard(), Heard()
    asked = ask(WORDS[2], max_new_tokens=30, ignore_eos=True)
    job = order(vlm, first, asked)
    batch.add(job)
    batch.add(order(vlm, second, ask("Why?")))
    for _ in range(rounds):
        batch.work()
    job.cancelled = True
    for _ in range(60):
        batch.work()
    assert first.result is None
    check(vlm, second, ask("Why?"))
    assert (batch.active, batch.waiting) == (0, 0)


def test_a_question_without_an_image(tmp_path: Path) -> None:
    """What transformers' model says to the same ids; a chat may begin without an image."""
    kit = Kit.make(tmp_path / "model")
    vlm = trtprune.load(trtprune.build(kit.path, tmp_path / "out", keep=6).root, threads=1)
    heard, asked = Heard(), ask(WORDS[1], [], temperature=0.0, ignore_eos=True)
    batch, job = InFlight(vlm.pipeline), order(vlm, heard, asked)
    batch.add(job)
    while batch.work():
        pass
    ids = torch.tensor(vlm.encoder.encode(job.turns).ids[None])
    with torch.inference_mode():
        wanted = kit.model.generate(input_ids=ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert heard.result is not None
    assert heard.result.token_ids == wanted[0, ids.shape[1] :].tolist()
    assert (heard.result.visual_tokens, heard.result.kept_indices) == (0, [])


def test_rows_that_are_all_cancelled_free_their_memory(vlm: Vlm) -> None:
    batch = InFlight(vlm.pipeline, Limits(2, 64, 0, 0))
    jobs = [order(vlm, Heard(), ask("Why?", max_new_tokens=30, ignore_eos=True)) for _ in range(2)]
    for job in jobs:
        batch.add(job)
    for _ in range(6):
        batch.work()
    assert batch.cache_bytes > 0
    for job in jobs:
        job.cancelled = True
    assert not batch.work()
    assert batch.cache_bytes == 0


def test_abandoned(vlm: Vlm) -> None:
    batch = InFlight(vlm.pipeline, Limits(1))
    heard = [Heard() for _ in range(3)]
    for listener in heard:
        batch.add(order(vlm, listener, ask("Why?", max_new_tokens=20, ignore_eos=True)))
    for _ in range(4):
        batch.work()
    failure = InputError("the end")
    batch.abandon(failure)
    assert [listener.error for listener in heard] == [failure] * 3
    assert not batch.work()


def test_memory_is_bounded(vlm: Vlm) -> None:
    limit = 1 << 20
    batch = InFlight(vlm.pipeline, Limits(2, 64, limit, limit))
    sizes = []
    for number in range(12):
        heard = Heard()
        batch.add(order(vlm, heard, ask(f"{number} is this?", [number % 3 + 1])))
        while batch.work():
            pass
        sizes.append(batch.cache_bytes)
        assert heard.result is not None
    assert max(sizes) <= limit
    assert np.max(sizes) > 0 or vlm.pipeline.decoder.prunes


# -- requests that wait together


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, size: Callable[..., Any]) -> list[Any]:
    """What ``size`` says to the arguments of each call of a method."""
    sizes: list[Any] = []
    own = getattr(owner, name)

    def call(self: Any, *args: Any, **named: Any) -> Any:
        sizes.append(size(*args))
        return own(self, *args, **named)

    monkeypatch.setattr(owner, name, call)
    return sizes


def run(vlm: Vlm, batch: InFlight, asked: Sequence[dict[str, Any]]) -> list[Heard]:
    heard = [Heard() for _ in asked]
    for one, listener in zip(asked, heard, strict=True):
        batch.add(order(vlm, listener, one))
    while batch.work():
        pass
    return heard


def test_prompts_that_wait_together_are_read_together(vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images in one run of the tower, four prompts of different lengths and budgets in one run of the decoder."""
    low, high = vlm.config.pruning.keep_range
    asked = [ask(WORDS[number % 2], [number]) | {"keep": (low, high)[number % 2]} for number in (1, 2, 3, 4)]
    looks = count_calls(monkeypatch, type(vlm.chain), "look", len)
    reads = count_calls(monkeypatch, type(vlm.pipeline.decoder), "prefill", lambda rows, *_: len(rows))
    heard = run(vlm, InFlight(vlm.pipeline, Limits(4)), asked)
    assert (looks, reads) == ([4], [4])
    for one, listener in zip(asked, heard, strict=True):
        check(vlm, listener, one)


def test_prompts_of_very_different_lengths_are_read_apart(vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding costs as much as tokens; the two short ones still share a run."""
    asked = [ask("Why? " * 40), ask("Why?", [2]), ask("How?", [3])]
    reads = count_calls(
        monkeypatch, type(vlm.pipeline.decoder), "prefill", lambda rows, *_: [len(row.ids) for row in rows]
    )
    heard = run(vlm, InFlight(vlm.pipeline, Limits(3, chunk=4096)), asked)
    assert [len(lengths) for lengths in reads] == [1, 2]
    for one, listener in zip(asked, heard, strict=True):
        check(vlm, listener, one)


def test_beginnings_of_different_lengths_in_one_run(vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that begin where earlier prompts left them, beside one that begins at 0; padding stays within the cache."""
    batch = InFlight(vlm.pipeline, Limits(3))
    run(vlm, batch, [ask(WORDS[2]), ask("Why is this", [1, 2])])
    starts = count_calls(
        monkeypatch, type(vlm.pipeline.decoder), "prefill", lambda rows, cache, start: (list(start), cache.capacity)
    )
    asked = [ask(WORDS[2] + "Why?"), ask("Why is this so?", [1, 2]), ask("Why?", [3])]
    heard = run(vlm, batch, asked)
    for one, listener in zip(asked, heard, strict=True):
        check(vlm, listener, one)
    if not vlm.pipeline.decoder.prunes:
        assert max(heard[0].cached, heard[1].cached) > 0
        assert any(len(set(start)) > 1 for start, _ in starts)


def test_rows_wait_for_a_bounded_piece_only(vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a row runs, each run of the decoder has at most the chunk's tokens, and behind each one comes a step."""
    chunk = 24
    batch, heard = InFlight(vlm.pipeline, Limits(4, chunk)), [Heard() for _ in range(4)]
    long = ask("Why?", max_new_tokens=60, ignore_eos=True)
    batch.add(order(vlm, heard[0], long))
    while not heard[0].text:
        batch.work()
    asked = [ask(WORDS[2], [2]), ask(WORDS[1], [3]), ask(WORDS[1], [4])]
    for one, listener in zip(asked, heard[1:], strict=True):
        batch.add(order(vlm, listener, one))

    def tokens(rows: Sequence[Any], _cache: Any, start: Sequence[int]) -> int:
        return len(rows) * max(len(row.ids) - first for row, first in zip(rows, start, strict=True))

    reads = count_calls(monkeypatch, type(vlm.pipeline.decoder), "prefill", tokens)
    crops = count_calls(monkeypatch, type(vlm.chain), "look", lambda images: sum(one.plan.tokens for one in images))
    tokens_of_rows = count_calls(monkeypatch, BatchRow, "choose", len)
    while heard[0].result is None:
        before, told = len(reads) + len(crops), len(tokens_of_rows)
        batch.work()
        assert len(reads) + len(crops) <= before + 1
        assert len(tokens_of_rows) > told
    while batch.work():
        pass
    one_image = vlm.config.model.visual_tokens
    assert max(crops) <= max(chunk, one_image)
    assert vlm.pipeline.decoder.prunes or max(reads) <= chunk
    for one, listener in zip([long, *asked], heard, strict=True):
        check(vlm, listener, one)


@pytest.mark.parametrize("stage", ["look", "prefill"])
def test_a_run_that_fails_is_tried_for_each_request_alone(
    vlm: Vlm, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The request that makes it fail gets the error, and the others their answers."""
    asked = [ask("Why?", [1]), ask("What?", [2]), ask("How?", [3])]
    heard = [Heard() for _ in asked]
    jobs = [order(vlm, listener, one) for one, listener in zip(asked, heard, strict=True)]
    pictures = [job.pictures[0].prepared for job in jobs]
    first, bad, last = (
        set(vlm.pipeline.encode(job.turns, [prepared]).ids.tolist())
        for job, prepared in zip(jobs, pictures, strict=True)
    )
    owner: Any = type(vlm.chain) if stage == "look" else type(vlm.pipeline.decoder)
    own = getattr(owner, stage)

    def fails(self: Any, rows: Sequence[Any], *args: Any) -> Any:
        if any(row is pictures[1] if stage == "look" else set(row.ids.tolist()) & (bad - first - last) for row in rows):
            raise MemoryError
        return own(self, rows, *args)

    monkeypatch.setattr(owner, stage, fails)
    batch = InFlight(vlm.pipeline, Limits(3))
    for job in jobs:
        batch.add(job)
    while batch.work():
        pass
    monkeypatch.undo()
    assert isinstance(heard[1].error, MemoryError)
    assert (batch.active, batch.waiting) == (0, 0)
    for number in (0, 2):
        check(vlm, heard[number], asked[number])
