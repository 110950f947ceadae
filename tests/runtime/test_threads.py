"""One model and several threads; several models and several threads; a model that is closed."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import trtprune
from tests.kit.runtime_kit import picture, same
from tests.kit.tiny_files import complete
from trtprune.errors import BackendError
from trtprune.runtime import Request, Vlm

QUESTIONS = [("What is this?", 1), ("How many are there?", 2), ("Where is the red one, and what is left of it?", 3)]
THREADS, ROUNDS = 4, 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete(tmp_path_factory.mktemp("threads") / "model")


@pytest.fixture(scope="module", params=["cpu", "openvino"])
def out(request: pytest.FixtureRequest, model: Path) -> Path:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    root = model.parent / request.param
    trtprune.build(model, root, keep=6, method="adafv", provider=request.param)
    return root


@pytest.fixture(scope="module")
def vlm(out: Path) -> Vlm:
    return trtprune.load(out, threads=1)


def ask(vlm: Vlm, number: int, form: int) -> Any:
    """One question in one of four ways; all give the same answer."""
    question, image = QUESTIONS[number % len(QUESTIONS)]
    if form == 0:
        return vlm.generate(picture(image), question, max_new_tokens=9, seed=1)
    if form == 1:
        stream = vlm.stream(picture(image), question, max_new_tokens=9, seed=1)
        "".join(stream)
        return stream.result
    if form == 2:
        return vlm.chat(picture(image)).ask(question, max_new_tokens=9, seed=1)
    rows = [Request(picture(image), question), Request(picture(5), "Another one?")]
    return vlm.generate_batch(rows, max_new_tokens=9, seed=1)[0]


def together(work: Any) -> list[Any]:
    """What so many threads get that begin at the same moment."""
    barrier = threading.Barrier(THREADS)

    def begin(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def test_threads_take_turns(vlm: Vlm) -> None:
    """Every answer is what it is alone, whoever asks beside it."""
    wanted = [ask(vlm, number, 0) for number in range(len(QUESTIONS))]
    viewed = vlm.look(picture(1), QUESTIONS[0][0])
    chosen = vlm.select(viewed, keep=5).tolist()

    def work(thread: int) -> list[str]:
        wrong = []
        for number in range(ROUNDS):
            form = (thread + number) % 4
            if not same(ask(vlm, number, form), wanted[number % len(QUESTIONS)]):
                wrong.append(f"{number} in form {form}")
            if vlm.select(vlm.look(picture(1), QUESTIONS[0][0]), keep=5).tolist() != chosen:
                wrong.append(f"{number}: selection")
        return wrong

    assert together(work) == [[]] * THREADS


def test_a_stream_that_waits(vlm: Vlm) -> None:
    """Between two of its pieces others may ask, of the same thread or of another."""
    wanted = [ask(vlm, number, 0) for number in (0, 1)]
    stream = vlm.stream(picture(1), QUESTIONS[0][0], max_new_tokens=9, seed=1)
    next(stream)
    assert same(ask(vlm, 1, 0), wanted[1])
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        assert same(pool.submit(ask, vlm, 1, 2).result(), wanted[1])
        # And it may be read to its end somewhere else.
        pool.submit(list, stream).result()
    assert same(stream.result, wanted[0])
    abandoned = vlm.stream(picture(1), QUESTIONS[0][0], max_new_tokens=9, seed=1)
    next(abandoned)
    del abandoned
    assert same(ask(vlm, 0, 0), wanted[0])


def test_several_models(out: Path) -> None:
    """Opened at the same time, too."""
    wanted = [ask(trtprune.load(out, threads=1), number, 0) for number in range(len(QUESTIONS))]

    def work(thread: int) -> list[bool]:
        with trtprune.load(out, threads=1) as own:
            return [same(ask(own, number, thread), wanted[number]) for number in range(len(QUESTIONS))]

    assert together(work) == [[True] * len(QUESTIONS)] * THREADS


def test_close(out: Path) -> None:
    with trtprune.load(out, threads=1) as vlm:
        chat = vlm.chat(picture(1))
        chat.ask("What is this?", max_new_tokens=2)
        stream = vlm.stream(picture(1), "And this?", max_new_tokens=5)
        next(stream)
        view = vlm.look(picture(1), "What?")
        session = weakref.ref(vlm.chain.session("vision"))
    vlm.close()
    for late in (
        lambda: vlm.generate(picture(1), "What?"),
        lambda: vlm.generate_batch([Request(picture(1), "What?")]),
        lambda: next(vlm.stream(picture(1), "What?")),
        lambda: next(stream),
        lambda: chat.ask("And now?"),
        lambda: vlm.look(picture(1), "What?"),
        lambda: vlm.select(view, keep=4),
        lambda: vlm.features([picture(1)]),
        vlm.__enter__().using().__enter__,
    ):
        with pytest.raises(BackendError, match="closed"):
            late()
    gc.collect()
    assert session() is None


def test_an_error_gives_the_turn_back(vlm: Vlm) -> None:
    with pytest.raises(trtprune.TrtpruneError):
        vlm.generate("missing.png", "What?")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ask, vlm, 0, 0).result(timeout=60).token_ids
