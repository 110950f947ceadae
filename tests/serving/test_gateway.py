"""The door of a fleet: whatever replica is lost, and whenever, the client gets the answer once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

import trtprune
from tests.kit.serving import message
from tests.kit.tiny_files import complete
from trtprune.serving.app import Settings, create_app
from trtprune.serving.faults import Busy
from trtprune.serving.forwarding import Forwarded, responses
from trtprune.serving.gateway import Gateway, ReplicaLost, Retries


class Replicas:
    """Replicas of one application, each of which is lost behind so many messages of its answer.

    Args:
        app: The application.
        lost: Messages of the first, second, … answer before its replica is lost.
    """

    def __init__(self, app: Any, *lost: int) -> None:
        self._app, self._lost = app, list(lost)
        self.requests: list[Forwarded] = []
        self.closed = 0
        self.unreachable = False

    async def ask(self, request: Forwarded) -> AsyncGenerator[Any, None]:
        self.requests.append(request)
        left = self._lost.pop(0) if self._lost else 10**9
        messages = responses(self._app, request)
        try:
            async for one in messages:
                if left == 0:
                    raise ReplicaLost("killed", unreachable=self.unreachable)
                left -= 1
                yield one
        finally:
            self.closed += 1
            await messages.aclose()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("gateway")
    trtprune.build(complete(root / "model"), root / "out", keep=6, method="adafv")
    vlm = trtprune.load(root / "out", threads=1)
    found = create_app(vlm, Settings("tiny", max_body_bytes=1 << 20))
    yield found
    found.state.server.engine.close()


def ask(fleet: Any, body: Any, **retries: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(Gateway(fleet, Retries(**{"pause_s": 0.0, **retries})))
        async with httpx.AsyncClient(transport=transport, base_url="http://door", timeout=60) as client:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"}
            return await client.post("/v1/chat/completions", content=content, headers=headers)

    return asyncio.run(run())


def events(response: httpx.Response) -> list[Any]:
    parts = response.text.split("\n\n")
    assert parts[-1] == ""
    return [json.loads(part[6:]) if part != "data: [DONE]" else None for part in parts[:-1]]


def meaning(found: list[Any]) -> tuple[Any, ...]:
    """Text, the events behind it, and the answer's names."""
    pieces = [event["choices"][0]["delta"].get("content", "") for event in found if event and event["choices"]]
    ends = [event for event in found if event is None or not event["choices"] or event["choices"][0]["finish_reason"]]
    for event in ends:
        for name in ("id", "created"):
            if event is not None:
                event[name] = None
    return "".join(pieces), ends


STREAM = {"max_tokens": 9, "stream": True, "stream_options": {"include_usage": True}, "return_kept": True}


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.3}])
def test_a_stream_goes_on_where_it_stopped(app: Any, fields: dict[str, Any]) -> None:
    body = {"messages": [message("What is this?", 1)], **STREAM, **fields}
    if "seed" not in fields:
        body["seed"] = 11  # to know the answer
    wanted = events(ask(Replicas(app), body))
    count, whole = len(wanted) + 2, meaning(wanted)  # the response's start, and the end of its body
    for lost in range(count):
        fleet = Replicas(app, lost, lost // 2)
        found = events(ask(fleet, body))
        assert len({(event["id"], event["created"]) for event in found if event}) == 1
        roles = [event["choices"][0]["delta"].get("role") for event in found if event and event["choices"]]
        assert roles.count("assistant") == 1
        found_whole = meaning(found)
        assert found_whole[0] == whole[0]
        # How much of a prompt is cached depends on what was asked before.
        for event in (*found_whole[1], *whole[1]):
            if event and event.get("usage"):
                event["usage"]["prompt_tokens_details"] = None
        assert found_whole[1] == whole[1]
        assert (len(fleet.requests), fleet.closed) == (3, 3)


def test_a_request_without_a_seed_gets_one_that_its_second_replica_has_too(app: Any) -> None:
    body = {"messages": [message("What is this?", 1)], "temperature": 1.5, **STREAM}
    texts = set()
    for _ in range(6):
        fleet = Replicas(app, 6)
        found = events(ask(fleet, body))
        assert found[-1] is None
        seeds = [json.loads(request.body)["seed"] for request in fleet.requests]
        assert len(seeds) == 2
        assert seeds[0] == seeds[1]
        texts.add(meaning(found)[0])
    assert len(texts) > 1


def test_whole_answers(app: Any) -> None:
    body = {"messages": [message("What is this?", 1)], "max_tokens": 9}
    wanted = ask(Replicas(app), body).json()
    for lost in (0, 1):
        found = ask(Replicas(app, lost, lost), body)
        assert (found.status_code, found.json()["choices"]) == (200, wanted["choices"])


def test_a_request_that_kills_its_replicas(app: Any) -> None:
    body = {"messages": [message("What is this?", 1)], "max_tokens": 9}
    fleet = Replicas(app, 0, 1, 0, 0)
    found = ask(fleet, body)
    assert (found.status_code, found.json()["error"]["code"], len(fleet.requests)) == (503, "replica_lost", 3)
    assert found.headers["retry-after"] == "1"
    fleet = Replicas(app, 4, 4, 4, 4)
    last = events(ask(fleet, body | {"stream": True}, attempts=2))[-1]
    assert (last["error"]["code"], len(fleet.requests)) == ("replica_lost", 2)


def test_replicas_out_of_reach_do_not_count(app: Any) -> None:
    body = {"messages": [message("What is this?", 1)], "max_tokens": 9}
    fleet = Replicas(app, *[0] * 9)
    fleet.unreachable = True
    assert (ask(fleet, body).status_code, len(fleet.requests)) == (200, 10)
    fleet = Replicas(app, *[0] * 9)
    fleet.unreachable = True
    assert (ask(fleet, body, patience_s=0).status_code, len(fleet.requests)) == (503, 3)


class Others(Replicas):
    """The second replica answers something else."""

    async def ask(self, request: Forwarded) -> AsyncGenerator[Any, None]:
        if self.requests:
            request = replace(request, body=json.dumps(json.loads(request.body) | self.fields).encode())
        async for one in super().ask(request):
            yield one

    fields: dict[str, Any]


@pytest.mark.parametrize("fields", [{"max_tokens": 2}, {"messages": [message("Why? Why?", 2)]}, {"keep": 10**6}])
def test_a_stream_that_another_replica_does_not_continue(app: Any, fields: dict[str, Any]) -> None:
    body = {"messages": [message("What is this?", 1)], "max_tokens": 12, "stream": True}
    wanted = meaning(events(ask(Replicas(app), body)))[0]
    fleet = Others(app, 8)
    fleet.fields = fields
    found = events(ask(fleet, body))
    assert found[-1]["error"]["code"] == "replica_lost"
    assert wanted.startswith(meaning(found[:-1])[0])


def test_what_is_refused_is_refused_once(app: Any) -> None:
    for body, status in (
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b"\xff", 400),
        (b"[]", 400),
        ({"messages": []}, 400),
        ({"messages": [message("x", 1)], "keep": 10**6}, 400),
        ({"messages": [message("x", 1)], "model": "other"}, 404),
        (b'{"messages": "' + b"x" * (2 << 20) + b'"}', 413),
    ):
        fleet = Replicas(app)
        found = ask(fleet, body)
        assert (found.status_code, len(fleet.requests)) == (status, 1)
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}


class Full:
    async def ask(self, request: Forwarded) -> AsyncGenerator[Any, None]:
        raise Busy(9)
        yield


def test_a_full_fleet() -> None:
    found = ask(Full(), {"messages": []})
    assert (found.status_code, found.json()["error"]["code"]) == (429, "queue_full")
    assert found.headers["retry-after"] == "1"


def test_the_budget_of_requests_without_one(app: Any) -> None:
    body = {"messages": [message("What is this?", 1)], "max_tokens": 2}
    for fields, kept in (({}, 4), ({"keep": 9}, 9), ({"keep_ratio": 1.0}, 16), ({"keep": None}, 4)):
        assert ask(Replicas(app), body | fields, keep=4).json()["usage"]["kept_tokens"] == kept


def test_a_client_that_hangs_up(app: Any) -> None:
    fleet = Replicas(app)
    body = json.dumps({"messages": [message("x", 1)], "max_tokens": 60, "stream": True}).encode()

    async def run() -> int:
        read = [{"type": "http.request", "body": body, "more_body": False}]
        enough = asyncio.Event()
        sent: list[Any] = []

        async def receive() -> Any:
            if read:
                return read.pop()
            await enough.wait()
            return {"type": "http.disconnect"}

        async def send(one: Any) -> None:
            sent.append(one)
            if len(sent) == 3:
                enough.set()

        scope = Forwarded("POST", "/v1/chat/completions", b"", ((b"content-type", b"application/json"),), b"").scope
        await asyncio.wait_for(Gateway(fleet, Retries())(scope, receive, send), 30)
        engine = app.state.server.engine
        for _ in range(500):
            if engine.state.active == engine.state.waiting == 0:
                break
            await asyncio.sleep(0.02)
        return engine.state.active

    assert asyncio.run(run()) == 0
    assert fleet.closed == 1
