"""HTTP requests as values that go to another process, and the responses of an ASGI application there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope

__all__ = ["Forwarded", "read", "responses"]


@dataclass(frozen=True)
class Forwarded:
    """A whole request.

    Attributes:
        method: Its method.
        path: Its path, decoded.
        query: What is behind the question mark.
        headers: Names in lower case, and values.
        body: All of it.
    """

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def scope(self) -> Scope:
        """The request as ASGI describes it."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": self.query,
            "root_path": "",
            "headers": list(self.headers),
            "client": None,
            "server": None,
        }


async def read(scope: Scope, receive: Receive) -> Forwarded | None:
    """A request with its body; None if the client hangs up before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    headers = tuple((bytes(name), bytes(value)) for name, value in scope["headers"])
    return Forwarded(scope["method"], scope["path"], scope["query_string"], headers, bytes(body))


async def responses(app: ASGIApp, request: Forwarded) -> AsyncGenerator[Message, None]:
    """The messages of an application's response; closing the iterator hangs up on it.

    Args:
        app: An ASGI application.
        request: The request.
    """
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    hung_up = asyncio.Event()
    unread = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(request.scope, receive, sent.put)
        finally:
            sent.put_nowait(None)

    running = asyncio.ensure_future(run())
    try:
        while (message := await sent.get()) is not None:
            yield message
        await running
    finally:
        hung_up.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
