"""Threads at the C++ library: a second call is an error and never a race, models are independent, handles may go at any
time.

``test_sanitized.py`` runs this file in a build that watches each access of the threads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trtprune
from tests.kit import cpp_build, cpp_package, tiny, trt_kit
from tests.kit.runtime_kit import Kit

BUSY, INPUT = 5, 1
Scenario = Callable[..., dict[str, Any]]
IMAGE = "a.png"


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """An image as the driver reads it: a file of RGB bytes, its width and height."""
    picture = cpp_package.pictures()[IMAGE]
    path = tmp_path_factory.mktemp("threads") / "a.rgb"
    path.write_bytes(picture.convert("RGB").tobytes())
    return [str(path), picture.width, picture.height]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cpp_package.engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def scenario(driver: Callable[..., cpp_build.Driver], engines: Path, pixels: list[Any]) -> Scenario:
    def run(name: str, directory: Path = engines, **settings: int) -> dict[str, Any]:
        line = {"scenario": name, "directory": str(directory), "image": pixels, **settings}
        (answer,) = driver("threads")([line])
        assert "error" not in answer, answer
        return dict(answer)

    return run


@pytest.fixture(scope="module")
def expected(engines: Path) -> list[int]:
    """The answer of a single thread, in Python."""
    vlm = trtprune.load(engines, threads=1)
    image = cpp_package.pictures()[IMAGE]
    return vlm.generate(image, "What is on the table?", max_new_tokens=6, ignore_eos=True).token_ids


def test_a_second_call_is_refused(scenario: Scenario, expected: list[int]) -> None:
    """Of each kind, from another thread and from the callback; the first call and the model are none the worse."""
    seen = scenario("second_call")
    assert seen["during"] == [BUSY, BUSY, BUSY]
    assert seen["inside"] == BUSY
    assert seen["info"] == "llava"
    assert seen["alone"] == seen["answer"] == seen["after"] == seen["turn"] == expected


def test_threads_at_one_model(scenario: Scenario) -> None:
    seen = scenario("at_once", rounds=20)
    assert seen["other"] == 0
    assert seen["equal"] >= 1
    assert seen["equal"] + seen["busy"] == 60


def test_models_side_by_side(scenario: Scenario, expected: list[int]) -> None:
    assert scenario("side_by_side", rounds=3)["answers"] == [[expected] * 3] * 3


def test_conversations_end_during_a_call(scenario: Scenario, expected: list[int]) -> None:
    seen = scenario("ended_conversations", rounds=20)
    assert seen == {"alone": expected, "wrong": [], "after": expected}


def test_conversations_with_engines_end_during_a_call(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Their arrays go back to the pool of device memory that the call takes its own from."""
    standin = str(cpp_build.target("trtprune_standin").with_name("libtrtprune_standin.so"))
    monkeypatch.setenv("TRTPRUNE_TENSORRT", standin)
    monkeypatch.setenv("TRTPRUNE_CUDART", standin)
    directory = trt_kit.make_dir(Kit.make(tmp_path, tiny.Tiny(seed=94)), "one", method="divprune", keep=6)
    seen = scenario("ended_conversations", directory, rounds=20, threads=0)
    assert seen["wrong"] == []
    assert seen["after"] == seen["alone"]
    assert len(seen["alone"]) == 6


def test_callbacks_that_throw(scenario: Scenario, expected: list[int]) -> None:
    assert scenario("throwing", rounds=2)["seen"] == [["mine", expected] * 2] * 2


def test_handles_are_freed_during_a_call(scenario: Scenario, expected: list[int]) -> None:
    """The call goes on to its end; of three threads that free a handle one does; afterwards it is none."""
    for story in scenario("freed_handles")["stories"]:
        assert story["freed"] == [1, 1, 1]
        assert story["later"] == INPUT
        assert story["answer"] == story["alone"] == expected
