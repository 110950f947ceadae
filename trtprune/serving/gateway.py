"""The door of a fleet: hands each request to a replica, and to another one if that is lost before the answer's end.

An answer can be had again only if it is the same again: a request without a seed gets one here.  A whole answer reaches
the client when all of it is there.  A stream goes on where it stopped: what the client has is left out of the answer of
the second replica; should that begin otherwise, the stream ends with an error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from trtprune.serving.faults import ApiError
from trtprune.serving.forwarding import Forwarded, read

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

__all__ = ["CHAT", "Fleet", "Gateway", "ReplicaLost", "Retries"]

logger = logging.getLogger("trtprune")
CHAT = "/v1/chat/completions"


class ReplicaLost(Exception):
    """The replica that was to answer a request is gone.

    Args:
        message: Why.
        unreachable: Whether it may only be out of reach; then the request may not have come to it.
    """

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


class Fleet(Protocol):
    """Replicas of one server."""

    def ask(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        """The messages of one replica's response; closing the iterator hangs up.

        Raises:
            ReplicaLost: if the replica is gone.
            ApiError: for a request that no replica takes.
        """


@dataclass(frozen=True)
class Retries:
    """What the door does with requests.

    Attributes:
        attempts: Most replicas that get one request: one that kills its replica must not kill them all.
        keep: The budget of requests without one; None: as built.
        patience_s: How long a request that comes upon replicas out of reach tries others, which do not count.
        pause_s: Seconds between two tries of a request.
    """

    attempts: int = 3
    keep: int | None = None
    patience_s: float = 60.0
    pause_s: float = 0.5


class Gateway:
    """An ASGI application in front of a fleet.

    Args:
        fleet: The replicas.
        retries: What to do with requests.
        failed: Hears of the errors that are the door's own.
    """

    def __init__(self, fleet: Fleet, retries: Retries, failed: Callable[[ApiError], None] = lambda fault: None) -> None:
        self._fleet, self._retries, self._failed = fleet, retries, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = await read(scope, receive)
        if request is None:
            return
        answering = asyncio.ensure_future(self._answer(request, send))
        leaving = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, request: Forwarded, send: Send) -> None:
        if request.method == "POST" and request.path == CHAT:
            request = await asyncio.to_thread(_repeatable, request, self._retries.keep)
        answer = _Answer(send)
        lost, end = 0, time.monotonic() + self._retries.patience_s
        try:
            while lost < self._retries.attempts:
                try:
                    await self._once(request, answer)
                    return
                except ReplicaLost as error:
                    logger.warning("a replica was lost with a request: %s", error)
                    lost += not (error.unreachable and time.monotonic() < end)
                    answer.again()
                if lost < self._retries.attempts:
                    await asyncio.sleep(self._retries.pause_s)
            raise ApiError(
                503, "the replicas that had this request were lost", kind="server_error", code="replica_lost"
            )
        except ApiError as fault:
            self._failed(fault)
            await answer.fail(fault)

    async def _once(self, request: Forwarded, answer: _Answer) -> None:
        messages = self._fleet.ask(request)
        try:
            async for message in messages:
                await answer.take(message)
        finally:
            await messages.aclose()
        if not answer.complete:
            raise ReplicaLost("its answer has no end")


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _repeatable(request: Forwarded, keep: int | None) -> Forwarded:
    """The request with a seed and a budget, where it has none; one that is no JSON object stays as it is."""
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        return request
    if not isinstance(body, dict):
        return request
    if body.get("seed") is None:
        body["seed"] = secrets.randbelow(1 << 31)
    if keep is not None and body.get("keep") is None and body.get("keep_ratio") is None:
        body["keep"] = keep
    try:
        data = json.dumps(body).encode()
    except (ValueError, RecursionError):
        return request
    headers = tuple(
        (name, value) for name, value in request.headers if name not in (b"content-length", b"transfer-encoding")
    )
    return replace(request, body=data, headers=(*headers, (b"content-length", str(len(data)).encode())))


class _Answer:
    """One answer on its way to the client, given by one replica or by several, one after the other."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False
        self._text, self._ends = "", 0
        """What the client has of a stream: its text, and the events behind that."""
        self._first: dict[str, Any] | None = None
        self.again()

    def again(self) -> None:
        """The next messages are another replica's."""
        self._start: Message | None = None
        self._body = bytearray()
        self._text_again, self._ends_again = "", 0
        self.complete = False

    async def take(self, message: Message) -> None:
        """Takes a message of a response.

        Raises:
            ApiError: if a stream cannot go on with it.
        """
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        last = not message.get("more_body", False)
        if self._is_stream:
            await self._forward(last)
        elif last and self._started:
            raise _lost_stream()  # what was asked again was refused
        elif last:
            await self._begin()
            await self._put(bytes(self._body), last=True)
        self.complete = self.complete or last

    async def fail(self, fault: ApiError) -> None:
        """Ends the answer with an error."""
        if self._started:
            await self._put(_data(fault.body()), last=True)
            return
        body = json.dumps(fault.body()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))} | fault.headers
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._start = {"type": "http.response.start", "status": fault.status, "headers": pairs}
        await self._begin()
        await self._put(body, last=True)

    @property
    def _is_stream(self) -> bool:
        headers = dict(self._start["headers"]) if self._start else {}
        return bytes(headers.get(b"content-type", b"")).startswith(b"text/event-stream")

    async def _begin(self) -> None:
        if not self._started:
            assert self._start is not None
            self._started = True
            await self._send(self._start)

    async def _put(self, body: bytes, *, last: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def _forward(self, last: bool) -> None:
        """Sends the whole events among the bytes that the client does not have."""
        *events, rest = bytes(self._body).split(b"\n\n")
        self._body = bytearray(rest)
        if events or last:
            await self._begin()
        sent = b"".join(self._unsent(event + b"\n\n") for event in events)
        if sent or last:
            await self._put(sent, last=last)

    def _unsent(self, event: bytes) -> bytes:
        """What the client does not have of an event."""
        data = event.removeprefix(b"data: ").strip()
        found = json.loads(data) if data.startswith(b"{") else None
        if found is not None and "choices" in found:
            delta = found["choices"][0]["delta"] if found["choices"] else {}
            if "role" in delta:
                return self._opening(event, found)
            if delta.get("content"):
                return self._piece(event, found, delta)
        if self._text_again != self._text:
            raise _lost_stream()
        self._ends_again += 1
        if self._ends_again <= self._ends:
            return b""
        self._ends += 1
        return self._named(event, found)

    def _opening(self, event: bytes, found: dict[str, Any]) -> bytes:
        if self._first is not None:
            return b""
        self._first = {name: found[name] for name in ("id", "created")}
        return event

    def _piece(self, event: bytes, found: dict[str, Any], delta: dict[str, Any]) -> bytes:
        before = len(self._text)
        self._text_again += delta["content"]
        common = min(before, len(self._text_again))
        if self._text[:common] != self._text_again[:common]:
            raise _lost_stream()
        if len(self._text_again) <= before:
            return b""
        if self._ends:
            raise _lost_stream()  # the answer had ended here
        new = self._text_again[before:]
        self._text = self._text_again
        changed = new != delta["content"]
        delta["content"] = new
        return _data(found | (self._first or {})) if changed else self._named(event, found)

    def _named(self, event: bytes, found: dict[str, Any] | None) -> bytes:
        """The event under the name that the answer began with."""
        if found is None or self._first is None or found.get("id") in (None, self._first["id"]):
            return event
        return _data(found | self._first)


def _lost_stream() -> ApiError:
    message = "the replica of this answer was lost, and another one does not continue it; ask again"
    return ApiError(503, message, kind="server_error", code="replica_lost")


def _data(found: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(found, ensure_ascii=False)}\n\n".encode()
