"""The C interface from another language: answers are Python's, and no misuse ends the process."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any

import pytest

import trtprune
from tests.kit import cpp_build, cpp_package
from tests.kit.cpp_library import Failure, Info, Library
from tests.kit.cpp_package import without_times
from trtprune.runtime import Request

INPUT, BUDGET, ENGINE_DIR, BACKEND, BUSY, STOPPED = 1, 2, 3, 4, 5, 6
PROMPT = "What is it?"


@pytest.fixture(scope="module")
def library() -> Library:
    cpp_build.target("trtprune")
    return Library(cpp_build.BUILD / "libtrtprune.so")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cpp_package.engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def peer(engines: Path) -> trtprune.Vlm:
    return trtprune.load(engines, threads=1)


@pytest.fixture
def images(library: Library, engines: Path) -> Iterator[list[c_void_p]]:
    opened = [library.image(engines.parent / name) for name in ("a.png", "b.png")]
    yield opened
    for image in opened:
        assert library.c.trtprune_image_free(image) == 0


@pytest.fixture
def vlm(library: Library, engines: Path) -> Iterator[c_void_p]:
    # A fixture's environment is set for each test, and this is the first to look for the library.
    loaded = library.load(engines, threads=1, library=str(cpp_build.onnxruntime()))
    yield loaded
    library.c.trtprune_vlm_free(loaded)


def paths(engines: Path) -> list[Path]:
    return [engines.parent / "a.png", engines.parent / "b.png"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep": 3, "max_new_tokens": 24},
        {"keep_ratio": 0.5, "max_new_tokens": 5, "ignore_eos": True},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.3, "seed": 2**40 + 7},
        {"stop": ["e", "~"], "system": "Be brief."},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_generate(
    library: Library, vlm: c_void_p, images: list[c_void_p], engines: Path, peer: trtprune.Vlm, options: dict[str, Any]
) -> None:
    answer = library.generate(vlm, images, PROMPT, **options)
    expected = peer.generate(paths(engines), PROMPT, **options).to_json()
    assert without_times(answer) == without_times(expected)


def test_callback(library: Library, vlm: c_void_p, images: list[c_void_p], engines: Path, peer: trtprune.Vlm) -> None:
    pieces: list[bytes] = []

    def show(piece: bytes) -> int:
        pieces.append(piece)
        return 1

    answer = library.generate(vlm, images[:1], PROMPT, show, max_new_tokens=24)
    assert b"".join(pieces).decode() == answer["text"]
    assert len(pieces) > 1

    pieces.clear()
    answer = library.generate(vlm, images[:1], PROMPT, lambda piece: show(piece) and len(pieces) < 2, max_new_tokens=24)
    assert answer["finish_reason"] == "callback"
    assert len(pieces) == 2
    assert b"".join(pieces).decode() == answer["text"]

    with pytest.raises(Failure, match="on_text returned -4") as failure:
        library.generate(vlm, images[:1], PROMPT, lambda _piece: -4)
    assert failure.value.code == STOPPED
    expected = peer.generate(paths(engines)[0], PROMPT)  # the model serves on
    assert library.generate(vlm, images[:1], PROMPT)["token_ids"] == expected.token_ids


def test_batch(library: Library, vlm: c_void_p, images: list[c_void_p], engines: Path, peer: trtprune.Vlm) -> None:
    first, second = paths(engines)
    answers = library.batch(
        vlm,
        [
            {"images": images[:1], "prompt": "a"},
            {"images": images[1:], "prompt": PROMPT * 3, "keep": 2, "max_new_tokens": 3},
            {"images": images, "prompt": PROMPT, "system": "Be brief.", "seed": 5},
        ],
        max_new_tokens=12,
        temperature=0.7,
        seed=3,
    )
    requests = [
        Request(first, "a"),
        Request(second, PROMPT * 3, keep=2, max_new_tokens=3),
        Request([first, second], PROMPT, system="Be brief.", seed=5),
    ]
    expected = peer.generate_batch(requests, max_new_tokens=12, temperature=0.7, seed=3)
    assert [without_times(answer) for answer in answers] == [without_times(result.to_json()) for result in expected]
    with pytest.raises(Failure) as failure:  # one bad row: no handles, and no leak of the others'
        library.batch(vlm, [{"images": images, "prompt": "a"}, {"images": [c_void_p(8)], "prompt": "a"}])
    assert failure.value.message == "image: no such handle"


def test_conversation(
    library: Library, vlm: c_void_p, images: list[c_void_p], engines: Path, peer: trtprune.Vlm
) -> None:
    expected = peer.chat(paths(engines))
    conversation = library.chat(vlm, images)
    for question, repick in ((PROMPT, True), ("Why?", False), ("And then?", True)):
        answer = library.ask(conversation, question, repick=repick, max_new_tokens=8)
        result = expected.ask(question, repick=repick, max_new_tokens=8)
        assert without_times(answer) == without_times(result.to_json())
        if question == "Why?":  # a conversation outlives its model's handle
            assert library.c.trtprune_vlm_free(vlm) == 0
            with pytest.raises(Failure, match="vlm: no such handle"):
                library.generate(vlm, images, PROMPT)
    assert library.c.trtprune_conversation_free(conversation) == 0
    assert library.c.trtprune_conversation_free(conversation) == INPUT
    with pytest.raises(Failure, match="conversation: no such handle"):
        library.ask(conversation, "x")


def test_one_call_at_a_time(library: Library, vlm: c_void_p, images: list[c_void_p]) -> None:
    """A second thread, and a callback that calls the model it runs in, get an error."""
    running, go = threading.Event(), threading.Event()
    codes = []

    def wait(_piece: bytes) -> int:
        with pytest.raises(Failure) as failure:
            library.generate(vlm, images, PROMPT)
        codes.append(failure.value.code)
        running.set()  # behind the call: the handle is freed only after it was refused
        return int(go.wait(60))

    thread = threading.Thread(target=library.generate, args=(vlm, images, PROMPT, wait), kwargs={"max_new_tokens": 2})
    thread.start()
    assert running.wait(60)
    with pytest.raises(Failure) as failure:
        library.generate(vlm, images, PROMPT)
    assert failure.value.code == BUSY
    assert library.c.trtprune_vlm_free(vlm) == 0  # the call that runs keeps the model until its end
    go.set()
    thread.join(60)
    assert not thread.is_alive()
    assert codes in ([BUSY], [BUSY, INPUT])  # a second piece finds the handle freed


def test_two_models_side_by_side(library: Library, engines: Path, images: list[c_void_p], peer: trtprune.Vlm) -> None:
    expected = peer.generate(paths(engines), PROMPT, max_new_tokens=8).token_ids
    answers: list[Any] = []

    def serve() -> None:
        own = library.load(engines, threads=1)
        for _ in range(3):
            answers.append(library.generate(own, images, PROMPT, max_new_tokens=8)["token_ids"])
        library.c.trtprune_vlm_free(own)

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert answers == [expected] * 6


def test_errors(library: Library, vlm: c_void_p, images: list[c_void_p], engines: Path, tmp_path: Path) -> None:
    none = tmp_path / "none"
    cases: list[tuple[int, Any]] = [
        (ENGINE_DIR, lambda: library.load(none)),
        (BACKEND, lambda: library.load(engines, library=str(none))),
        (BACKEND, lambda: library.load(engines, provider="cuda")),
        (BACKEND, lambda: library.load(engines, threads=-1)),
        (ENGINE_DIR, lambda: library.load(engines, verify="perhaps")),
        (INPUT, lambda: library.image(none)),
        (INPUT, lambda: library.image(engines / "config.json")),
        (BUDGET, lambda: library.generate(vlm, images, PROMPT, keep=0)),
        (BUDGET, lambda: library.generate(vlm, images, PROMPT, keep=4000)),
        (INPUT, lambda: library.generate(vlm, [], PROMPT)),
        (INPUT, lambda: library.generate(vlm, images, PROMPT, temperature=float("nan"))),
        (INPUT, lambda: library.generate(vlm, images, PROMPT, max_new_tokens=0)),
        (INPUT, lambda: library.generate(images[0], images, PROMPT)),
        (INPUT, lambda: library.generate(vlm, [vlm], PROMPT)),
    ]
    for code, call in cases:
        with pytest.raises(Failure) as failure:
            call()
        assert failure.value.code == code, failure.value
        assert "\n" not in failure.value.message + failure.value.hint
    assert library.generate(vlm, images, PROMPT, max_new_tokens=2)["token_ids"]


def test_tensorrt_is_said_to_be_missing(library: Library, engines: Path) -> None:
    with pytest.raises(Failure) as failure:
        library.load(engines, provider="tensorrt")
    assert failure.value.code == BACKEND
    assert failure.value.hint


def test_info(library: Library, vlm: c_void_p, peer: trtprune.Vlm) -> None:
    info = Info(struct_size=ctypes.sizeof(Info))
    library.call("vlm_info", vlm, byref(info))
    assert (info.family, info.method, info.dtype, info.provider) == (b"llava", b"adafv", b"float32", b"cpu")
    assert (info.keep, info.keep_least, info.keep_most) == (6, 1, 16)
    assert (info.visual_tokens_least, info.visual_tokens_most) == (16, 16)
    assert info.capacity == peer.config.kv.capacity


def test_pixels(library: Library, engines: Path) -> None:
    """What the library reads of a PNG is what it was written from."""
    image = library.image(engines.parent / "a.png")
    width, height = library.c.trtprune_image_width(image), library.c.trtprune_image_height(image)
    content = ctypes.string_at(library.c.trtprune_image_data(image), width * height * 3)
    expected = cpp_package.pictures()["a.png"]
    assert (width, height) == expected.size
    assert content == expected.tobytes()
    library.c.trtprune_image_free(image)
