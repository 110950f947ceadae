"""Limits before a request is read: how many there are at once, and how large a body is, counted while it comes in.

What is refused is thrown away as it comes in, for a while: a connection that is closed with unread bytes is reset, and
its client loses the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from trtprune.serving.faults import ApiError, Busy

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["LimitBody", "LimitOpen"]

LINGER_S = 5.0
"""Longest time for the rest of a refused request."""


class LimitBody:
    """ASGI middleware that answers 413 to a body of more than ``limit`` bytes, without keeping the rest of it;
    ``refused`` hears of it if the request was to ``path``."""

    def __init__(self, app: ASGIApp, path: str, limit: int, refused: Callable[[ApiError], None]) -> None:
        self._app, self._path, self._limit, self._refused = app, path, limit, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(value.isdigit() and int(value) > self._limit for value in lengths):
            await self._refuse(scope, receive, send)
            return
        read, started = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except _TooLarge:
            if not started:
                await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"the request is larger than {self._limit >> 20} MiB; send smaller images, or fewer"
        fault = ApiError(413, message, code="request_too_large")
        if scope["path"] == self._path:
            self._refused(fault)
        await _refuse(scope, receive, send, fault)


class LimitOpen:
    """ASGI middleware that answers 429 to a request to ``path`` while ``limit`` others are open, without keeping it:
    bodies and decoded images of requests that could only wait would fill the memory."""

    def __init__(self, app: ASGIApp, path: str, limit: int, refused: Callable[[ApiError], None]) -> None:
        self._app, self._path, self._limit, self._refused = app, path, limit, refused
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        if self._open >= self._limit:
            fault = Busy(self._limit)
            self._refused(fault)
            await _refuse(scope, receive, send, fault)
            return
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1


async def _refuse(scope: Scope, receive: Receive, send: Send, fault: ApiError) -> None:
    if (b"expect", b"100-continue") not in scope["headers"]:  # else the client sends nothing before it may
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await receive()).get("more_body", False):
                    pass
    body = json.dumps(fault.body()).encode()
    # The request may have a rest that was not read, so the connection cannot be used again.
    headers = {"content-type": "application/json", "connection": "close", "content-length": str(len(body))}
    pairs = [(name.lower().encode(), value.encode()) for name, value in (headers | fault.headers).items()]
    await send({"type": "http.response.start", "status": fault.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


class _TooLarge(BaseException):
    """Not an Exception: no handler on the way may take it for a fault of its own."""
