"""The HTTP server: OpenAI's chat completions, and what people and monitors ask for."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from swagger_ui_bundle import swagger_ui_path

from trtprune._version import __version__
from trtprune.errors import TrtpruneError, one_line
from trtprune.runtime import Vlm
from trtprune.runtime.inflight import Limits
from trtprune.serving.answers import Form, body, chunk, kept_boxes, usage
from trtprune.serving.bodies import LimitBody, LimitOpen
from trtprune.serving.engine import Engine, Finished
from trtprune.serving.faults import ApiError, api_error
from trtprune.serving.images import Sources
from trtprune.serving.metrics import Metrics
from trtprune.serving.questions import question_of
from trtprune.serving.schema import ChatRequest

__all__ = ["Settings", "create_app", "served_name"]

logger = logging.getLogger("trtprune")
CHAT = "/v1/chat/completions"
PREPARED_AT_ONCE = 2
"""Requests whose images are decoded at the same time; each may take the memory of a large picture."""


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Attributes:
        name: The model's name in requests.
        limits: Sizes of the batch.
        max_queued: Most requests that wait for a row.
        api_key: The key that requests must have; None: none.
        sources: Where images may come from.
        max_body_bytes: The largest body of a request.
    """

    name: str
    limits: Limits = field(default_factory=Limits)
    max_queued: int = 64
    api_key: str | None = None
    sources: Sources = field(default_factory=Sources)
    max_body_bytes: int = 32 << 20


def served_name(model: str) -> str:
    """The name in requests of a model with this id, which may be a path."""
    return Path(model).name if model.startswith(("/", ".", "~")) else model


class _Server:
    """The handlers and what they share."""

    def __init__(self, vlm: Vlm, settings: Settings) -> None:
        self.vlm, self.settings = vlm, settings
        self.engine = Engine(vlm, settings.limits, max_queued=settings.max_queued)
        self.metrics = Metrics(self.engine)
        self.started = int(time.time())
        self._preparing = asyncio.Semaphore(PREPARED_AT_ONCE)

    async def authorize(self, request: Request) -> None:
        """Raises ApiError for a request without the key."""
        if self.settings.api_key is None:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self.settings.api_key.encode()):
            raise ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")

    def models(self) -> dict[str, Any]:
        """OpenAI's list of models."""
        model = {"id": self.settings.name, "object": "model", "created": self.started, "owned_by": "trtprune"}
        return {"object": "list", "data": [model]}

    async def complete(self, asked: ChatRequest) -> Response:
        """An answer, whole or as a stream."""
        asked.check()
        if asked.model not in (None, self.settings.name):
            name = one_line(str(asked.model), 100)
            raise ApiError(404, f"the model {name!r} does not exist here", param="model", code="model_not_found")
        self.engine.check_room()
        async with self._preparing:
            question = await asyncio.to_thread(question_of, self.vlm.pipeline, asked, self.settings.sources)
        form = Form(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), self.settings.name)
        events = self.engine.ask(question)
        # The first event decides the status: a stream that has begun cannot become an error.
        first = await anext(events)
        if asked.stream:
            stream = self._stream(asked, form, first, events)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        end = first
        async for event in events:
            end = event
        assert isinstance(end, Finished)
        self.metrics.add(end)
        return JSONResponse(body(form, end) | self._extra(asked, end))

    async def _stream(
        self, asked: ChatRequest, form: Form, first: str | Finished, events: AsyncIterator[str | Finished]
    ) -> AsyncIterator[str]:
        status = 499
        try:
            yield _event(chunk(form, {"role": "assistant", "content": ""}))
            event = first
            while isinstance(event, str):
                yield _event(chunk(form, {"content": event}))
                event = await anext(events)
            self.metrics.add(event)
            last = chunk(form, {}, event.result.finish_reason) | self._extra(asked, event)
            yield _event(last)
            if asked.stream_options is not None and asked.stream_options.include_usage:
                yield _event({**chunk(form, None), "usage": usage(event)})
            yield "data: [DONE]\n\n"
            status = 200
        except Exception as error:
            fault = api_error(error)
            status = fault.status
            _log(error, fault)
            yield _event(fault.body())
        finally:
            self.metrics.count(status)
            await events.aclose()  # type: ignore[attr-defined]

    def _extra(self, asked: ChatRequest, end: Finished) -> dict[str, Any]:
        return {"kept": kept_boxes(end)} if asked.return_kept else {}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _log(error: Exception, fault: ApiError) -> None:
    if fault.status >= 500 and not isinstance(error, ApiError):
        logger.error("a request failed: %s", error, exc_info=None if isinstance(error, TrtpruneError) else error)


def create_app(vlm: Vlm, settings: Settings) -> FastAPI:
    """The server as an ASGI application; it stops its engine with its lifespan.

    Args:
        vlm: A loaded model that nothing else uses.
        settings: Its settings.
    """
    server = _Server(vlm, settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.engine.close)

    app = FastAPI(
        title="trtprune",
        version=__version__,
        lifespan=lifespan,
        description="Chat about images.",
        docs_url=None,
        redoc_url=None,
    )
    app.openapi_version = "3.0.3"  # what the page of the bundled Swagger UI reads

    def refused(fault: ApiError) -> None:
        server.metrics.count(fault.status)

    app.add_middleware(LimitBody, path=CHAT, limit=settings.max_body_bytes, refused=refused)
    most = server.engine.state.rows + settings.max_queued
    app.add_middleware(LimitOpen, path=CHAT, limit=most, refused=refused)
    _add_errors(app)
    _add_routes(app, server)
    app.state.server = server
    return app


def _add_routes(app: FastAPI, server: _Server) -> None:
    authorized = [Depends(server.authorize)]

    @app.post(CHAT, dependencies=authorized)
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        """Answers the last message of a conversation; text and images, whole or as a stream of events."""
        answer = await _until_hung_up(request, server.complete(asked))
        if not isinstance(answer, StreamingResponse):
            server.metrics.count(answer.status_code)
        return answer

    @app.get("/v1/models", dependencies=authorized)
    async def models() -> dict[str, Any]:
        """The one model of this server."""
        return server.models()

    @app.get("/v1/models/{name:path}", dependencies=authorized)
    async def model(name: str) -> dict[str, Any]:
        """The model of this name."""
        if name != server.settings.name:
            raise ApiError(404, f"the model {one_line(name, 100)!r} does not exist here", code="model_not_found")
        found: dict[str, Any] = server.models()["data"][0]
        return found

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether requests are taken."""
        stopping = server.engine.stopping
        return JSONResponse({"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts and times in Prometheus' text format."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # FastAPI's own page loads its scripts from another server, which many machines do not reach.
    app.mount("/swagger", StaticFiles(directory=swagger_ui_path), name="swagger")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="trtprune",
            swagger_js_url="swagger/swagger-ui-bundle.js",
            swagger_css_url="swagger/swagger-ui.css",
            swagger_favicon_url="swagger/favicon-32x32.png",
        )

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        """A page to ask about an image, and to see the kept visual tokens."""
        return (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


async def _until_hung_up(request: Request, answering: Awaitable[Response]) -> Response:
    """An answer, given up when the client hangs up before it."""
    task = asyncio.ensure_future(answering)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.ensure_future(watch())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "the client hung up")
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


def _add_errors(app: FastAPI) -> None:
    def answer(request: Request, fault: ApiError) -> JSONResponse:
        server: _Server = request.app.state.server
        if request.url.path == CHAT:
            server.metrics.count(fault.status)
        return JSONResponse(fault.body(), fault.status, headers=fault.headers)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(TrtpruneError)
    async def failed(request: Request, error: TrtpruneError) -> JSONResponse:
        fault = api_error(error)
        _log(error, fault)
        return answer(request, fault)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body" and not isinstance(part, int))
        json_hint = "the body is no JSON object, or not sent as Content-Type: application/json"
        message = one_line(f"{place}: {first['msg']}", 300) if place else json_hint
        return answer(request, ApiError(400, message, param=place.split(".")[0] or None))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        return answer(request, ApiError(error.status_code, one_line(str(error.detail), 300)))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        fault = api_error(error)
        return answer(request, fault)
