"""A real server on a port of its own, for the tests that ask it."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

import trtprune
from tests.kit.runtime_kit import picture
from trtprune.serving.app import Settings, create_app

__all__ = ["Served", "data_address", "message", "serving"]


class Served:
    """A running server.

    Attributes:
        address: Its address, without a path.
        app: The application.
        server: The HTTP server.
    """

    def __init__(self, address: str, app: Any, server: uvicorn.Server) -> None:
        self.address, self.app, self.server = address, app, server

    @property
    def engine(self) -> Any:
        return self.app.state.server.engine


@contextlib.contextmanager
def serving(out: Path, **settings: Any) -> Iterator[Served]:
    """A server of an engine directory, stopped at the end of the block.

    Raises:
        AssertionError: if it does not stop.
    """
    app = create_app(trtprune.load(out, threads=1), Settings("tiny", **settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(f"http://127.0.0.1:{port}", app, server)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"


def data_address(seed: int) -> str:
    """The test picture of this number as a ``data:`` address."""
    stream = io.BytesIO()
    picture(seed).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def message(prompt: str, *seeds: int) -> dict[str, Any]:
    """A message of the user about these pictures."""
    images = [{"type": "image_url", "image_url": {"url": data_address(seed)}} for seed in seeds]
    return {"role": "user", "content": [*images, {"type": "text", "text": prompt}]}
