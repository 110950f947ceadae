"""Limits before a request is read: how many there are at once, and how large a body is, counted while it comes in."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from trtprune.serving.faults import ApiError, Busy

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["LimitBody", "LimitOpen"]


class LimitBody:
    """ASGI middleware that answers 413 to a body of more than ``limit`` bytes, without reading the rest of it."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(value.isdigit() and int(value) > self._limit for value in lengths):
            await self._refuse(send)
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
                await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        message = f"the request is larger than {self._limit >> 20} MiB; send smaller images, or fewer"
        await _refuse(send, ApiError(413, message, code="request_too_large"))


class LimitOpen:
    """ASGI middleware that answers 429 to a request to ``path`` while ``limit`` others are open, without reading it:
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
            await _refuse(send, fault)
            return
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1


async def _refuse(send: Send, fault: ApiError) -> None:
    body = json.dumps(fault.body()).encode()
    # The rest of the request is not read, so the connection cannot be used again.
    headers = {"content-type": "application/json", "connection": "close", "content-length": str(len(body))}
    pairs = [(name.lower().encode(), value.encode()) for name, value in (headers | fault.headers).items()]
    await send({"type": "http.response.start", "status": fault.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


class _TooLarge(BaseException):
    """Not an Exception: no handler on the way may take it for a fault of its own."""
