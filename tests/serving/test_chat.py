"""OpenAI's own client against the server: chat, streams, several images and turns, errors."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import trtprune
from tests.kit.runtime_kit import picture
from tests.kit.serving import Served, message, serving
from tests.kit.tiny_files import complete
from trtprune.runtime import Vlm
from trtprune.runtime.inflight import Limits
from trtprune.serving.images import Sources


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serving")
    trtprune.build(complete(root / "model"), root / "out", keep=6, method="adafv")
    return root / "out"


@pytest.fixture(scope="module")
def vlm(out: Path) -> Vlm:
    return trtprune.load(out, threads=1)


@pytest.fixture(scope="module")
def served(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pictures")
    picture(1).save(folder / "one.png")
    (folder / "text.png").write_text("no picture")
    (folder / "outside.png").symlink_to(out / "config.json")
    with serving(out, max_queued=2, limits=Limits(2), sources=Sources(folder=folder), max_body_bytes=1 << 20) as found:
        yield found


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0)


def test_a_question(client: openai.OpenAI, vlm: Vlm) -> None:
    wanted = vlm.generate([picture(1)], "What is this?", max_new_tokens=9, keep=5)
    found = client.chat.completions.create(
        model="tiny", messages=[message("What is this?", 1)], max_tokens=9, extra_body={"keep": 5, "return_kept": True}
    )
    assert found.choices[0].message.content == wanted.text
    assert found.choices[0].finish_reason == wanted.finish_reason
    assert found.usage is not None
    assert found.usage.prompt_tokens == wanted.prompt_tokens
    assert found.usage.completion_tokens == len(wanted.token_ids)
    extra: Any = found.model_dump()
    assert extra["usage"]["visual_tokens"] == wanted.visual_tokens
    assert extra["usage"]["kept_tokens"] == 5
    assert extra["kept"][0]["kept_indices"] == wanted.kept_indices[0]
    for left, top, right, bottom in extra["kept"][0]["boxes"]:
        assert 0 <= left < right <= 90
        assert 0 <= top < bottom <= 70


def test_streams(client: openai.OpenAI, vlm: Vlm) -> None:
    wanted = vlm.generate([picture(1), picture(2)], "Which?", max_new_tokens=12, temperature=0.9, seed=5)
    parts = list(
        client.chat.completions.create(
            model="tiny",
            messages=[message("Which?", 1, 2)],
            max_completion_tokens=12,
            temperature=0.9,
            seed=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == wanted.text
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == wanted.finish_reason
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == len(wanted.token_ids)
    assert len({part.id for part in parts}) == 1


def test_turns(client: openai.OpenAI, vlm: Vlm) -> None:
    """Later questions: what a conversation of the library answers, which selects anew for each of them."""
    talk = vlm.chat([picture(3)], system="Be brief.")
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, message("What is this?", 3)]
    for question in ("Why?", "And then?", None):
        wanted = talk.ask(messages[-1]["content"][-1]["text"], max_new_tokens=7)
        found = client.chat.completions.create(model="tiny", messages=messages, max_tokens=7)
        assert found.choices[0].message.content == wanted.text
        messages.append({"role": "assistant", "content": wanted.text})
        messages.append({"role": "user", "content": [{"type": "text", "text": question}]})


def test_stop_strings(client: openai.OpenAI, vlm: Vlm) -> None:
    text = vlm.generate([picture(1)], "What is this?", max_new_tokens=9).text
    stop = text[len(text) // 2 :][:3]
    wanted = vlm.generate([picture(1)], "What is this?", max_new_tokens=9, stop=stop)
    for stops in (stop, ["never written", stop]):
        found = client.chat.completions.create(
            model="tiny", messages=[message("What is this?", 1)], max_tokens=9, stop=stops
        )
        assert found.choices[0].message.content == wanted.text
        assert found.choices[0].finish_reason == "stop"


def test_answers_of_a_fixed_length(client: openai.OpenAI, vlm: Vlm) -> None:
    """The stop text would end it; within the shortest answer it does not."""
    free = vlm.generate([picture(1)], "What is this?", max_new_tokens=9, ignore_eos=True)
    for own in ({"min_tokens": 9}, {"min_tokens": 9, "ignore_eos": True}):
        found = client.chat.completions.create(
            model="tiny", messages=[message("What is this?", 1)], max_tokens=9, stop=free.text[1:3], extra_body=own
        )
        assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (9, "length")
    assert found.choices[0].message.content == free.text


def test_a_file_of_the_folder(client: openai.OpenAI, vlm: Vlm) -> None:
    wanted = vlm.generate([picture(1)], "What is this?", max_new_tokens=5).text
    for url in ("one.png", "./one.png"):
        part = {"type": "image_url", "image_url": {"url": url}}
        asked: Any = [{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}]
        found = client.chat.completions.create(model="tiny", messages=asked, max_tokens=5)
        assert found.choices[0].message.content == wanted


BOMB = "data:image/png;base64," + (
    # A PNG header of 60000 × 60000 pixels.
    "iVBORw0KGgoAAAANSUhEUgAA6mAAAOpgCAIAAABZ0nLyAAAAAElFTkSuQmCC"
)


def about(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]}


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"model": "other"}, 404, "model", "does not exist"),
        ({"max_tokens": -1}, 400, "max_tokens", "greater"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater"),
        ({"max_tokens": 1 << 19}, 400, None, "max_new_tokens"),
        ({"extra_body": {"min_tokens": 4}}, 400, "min_tokens", "above 3"),
        ({"extra_body": {"min_tokens": -1}}, 400, "min_tokens", "greater"),
        ({"extra_body": {"ignore_eos": "perhaps"}}, 400, "ignore_eos", "valid boolean"),
        ({"extra_body": {"keep": 10**6}}, 400, "keep", "keep=1000000: outside"),
        ({"extra_body": {"keep": 3, "keep_ratio": 0.5}}, 400, None, "exclude"),
        ({"temperature": -1}, 400, "temperature", "greater"),
        ({"top_p": 0}, 400, "top_p", "greater"),
        ({"n": 2}, 400, "n", "not supported"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools", "not supported"),
        ({"stop": ["x"] * 17}, 400, "stop", "at most 16"),
        ({"stop": [""]}, 400, None, "stop"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages", "role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", "the last message"),
        ({"messages": [{"role": "user", "content": "x <image> y"}]}, 400, None, "stands for an image"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400, None, "tokens"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}] * 2}, 400, "messages", ""),
        (about("data:image/png;base64,@@@"), 400, "messages", "image 1: the data: picture: not base64"),
        (about("data:image/png;base64,"), 400, "messages", "image 1"),
        (about("data:text/plain,hello"), 400, "messages", "image 1"),
        (about(BOMB), 400, "messages", "image 1"),
        (about("http://127.0.0.1:9/x.png"), 400, "messages", "http(s) addresses are not allowed"),
        (about("ftp://host/x.png"), 400, "messages", "no such file"),
        (about("file:///etc/passwd"), 400, "messages", "no such file"),
        (about("../out/config.json"), 400, "messages", "no such file"),
        (about("outside.png"), 400, "messages", "no such file"),
        (about("missing.png"), 400, "messages", "no such file"),
        (about("text.png"), 400, "messages", "image 1: the picture"),
        (about("a\0b"), 400, "messages", "no such file"),
    ],
)
def test_bad_requests(
    client: openai.OpenAI, out: Path, fields: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    asked = {"model": "tiny", "messages": [message("What is this?", 1)], "max_tokens": 3} | fields
    with pytest.raises(openai.APIStatusError) as failure:
        client.chat.completions.create(**asked)
    assert failure.value.status_code == status
    error: Any = failure.value.body
    assert error["param"] == param
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert str(out.parent) not in failure.value.response.text
    assert "passwd" not in error["message"]


def test_bodies_that_are_no_request(served: Served) -> None:
    url = f"{served.address}/v1/chat/completions"
    json_type = {"Content-Type": "application/json"}
    for content in (b"", b"{", b"[]", b"null", b'{"messages": 3}', b"\xff\xfe", b"[" * 100_000):
        found = httpx.post(url, content=content, headers=json_type)
        assert found.status_code == 400
        assert found.json()["error"]["type"] == "invalid_request_error"
    large = b'{"messages": "' + b"x" * (2 << 20) + b'"}'
    assert httpx.post(url, content=large, headers=json_type).status_code == 413

    def pieces() -> Iterator[bytes]:  # without a length
        for _ in range(3):
            yield b" " * (1 << 19)

    found = httpx.post(url, content=pieces(), headers=json_type)
    assert found.status_code == 413
    assert found.json()["error"]["code"] == "request_too_large"
    for _ in range(5):  # the connection is not reset under the client that still sends
        assert httpx.post(url, content=b" " * (8 << 20), headers=json_type).status_code == 413
    assert 'trtprune_requests_total{status="413"} 7.0' in httpx.get(f"{served.address}/metrics").text
    assert httpx.get(url).status_code == 405
    assert httpx.get(f"{served.address}/nothing").json()["error"]["message"] == "Not Found"


def test_pages_and_metrics(served: Served, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "trtprune"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert httpx.get(f"{served.address}/health").json() == {"status": "ok"}
    client.chat.completions.create(model="tiny", messages=[message("Count me", 1)], max_tokens=3)
    text = httpx.get(f"{served.address}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["trtprune_generated_tokens_total"]) >= 3
    assert float(values['trtprune_requests_total{status="200"}']) >= 1
    assert float(values["trtprune_queued_requests"]) == 0
    assert float(values["trtprune_batch_rows"]) == 2
    assert "<canvas" in httpx.get(served.address).text
    assert "/v1/chat/completions" in httpx.get(f"{served.address}/openapi.json").json()["paths"]
    page = httpx.get(f"{served.address}/docs").text
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) >= 2
    for source in sources:  # of this server alone, as machines without internet need it
        assert httpx.get(f"{served.address}/{source}").status_code == 200


def test_the_key(out: Path) -> None:
    with serving(out, api_key="correct horse") as served:
        right = openai.OpenAI(base_url=f"{served.address}/v1", api_key="correct horse", max_retries=0)
        wrong = openai.OpenAI(base_url=f"{served.address}/v1", api_key="battery", max_retries=0)
        assert right.models.list().data
        for call in (
            lambda: wrong.models.list(),
            lambda: wrong.chat.completions.create(model="tiny", messages=[message("x", 1)]),
        ):
            with pytest.raises(openai.AuthenticationError):
                call()
        assert httpx.get(f"{served.address}/v1/models").status_code == 401
        assert httpx.get(f"{served.address}/health").status_code == 200


def test_a_full_queue_and_a_client_that_hangs_up(served: Served, client: openai.OpenAI) -> None:
    """Two rows and two waiting requests: the fifth is refused; those that hang up make room."""
    engine = served.engine
    go = threading.Event()
    with served.app.state.server.vlm.using():  # the engine waits for its turn
        streams = []

        def ask() -> None:
            with httpx.Client(timeout=60) as own:
                body = {"messages": [message("x", 1)], "max_tokens": 20, "stream": True}
                with own.stream("POST", f"{served.address}/v1/chat/completions", json=body) as response:
                    streams.append(response.status_code)
                    go.wait(60)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: engine.state.waiting >= 4)
        with pytest.raises(openai.RateLimitError) as failure:
            client.chat.completions.create(model="tiny", messages=[message("x", 1)])
        assert failure.value.response.headers["retry-after"] == "1"
        # Nothing of it is read: not even that it is no JSON.
        refused = httpx.post(f"{served.address}/v1/chat/completions", content=b"{")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    wait_for(lambda: len(streams) == 4)
    go.set()
    for thread in threads:
        thread.join(60)
    wait_for(lambda: engine.state.active == engine.state.waiting == 0)
    assert streams == [200] * 4
    assert client.chat.completions.create(model="tiny", messages=[message("x", 1)], max_tokens=2).choices


def test_hanging_up_before_the_first_token(served: Served) -> None:
    engine = served.engine
    with served.app.state.server.vlm.using():
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{served.address}/v1/chat/completions", json={"messages": [message("x", 2)]}, timeout=0.5)
        wait_for(lambda: all(order.cancelled for order in [*engine._batch._waiting, *engine._inbox]))
    wait_for(lambda: engine.state.active == engine.state.waiting == 0)


def test_answers_are_given_before_the_end(out: Path) -> None:
    """A server that is told to stop answers what it was asked before."""
    found: list[httpx.Response] = []
    with serving(out, limits=Limits(1)) as served:
        body = {"messages": [message("x", 1)], "max_tokens": 40}

        def ask() -> None:
            found.append(httpx.post(f"{served.address}/v1/chat/completions", json=body, timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        with served.app.state.server.vlm.using():
            for thread in threads:
                thread.start()
            wait_for(lambda: served.engine.state.waiting >= 3)
            served.server.should_exit = True
            wait_for(lambda: not served.server.servers[0].is_serving())
    for thread in threads:
        thread.join(60)
    assert [response.status_code for response in found] == [200] * 3


def wait_for(condition: Any, seconds: float = 30) -> None:
    waited = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        waited.wait(0.02)
    raise AssertionError("did not happen")
