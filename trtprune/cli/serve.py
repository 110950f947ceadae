"""``trtprune serve``: an HTTP server with OpenAI's chat completions around an engine directory."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtprune.backends.running import Running
from trtprune.cli.batch_options import BATCH
from trtprune.cli.console import log_options, logger
from trtprune.cli.flags import Command, Gathered, option
from trtprune.cli.options import DIRECTORY, MAX_PIXELS, PATH, RUN, Loading
from trtprune.errors import BackendError, InputError
from trtprune.reports.installer import to_install

if TYPE_CHECKING:
    from trtprune.engine_dir import EngineDir
    from trtprune.serving.app import Settings

__all__ = ["serve"]

SERVER, IMAGES = "Server", "Images of requests"
PORTS = click.IntRange(0, 65535)
KEEP_ALIVE_S = 75
"""Longest time that a connection without a request stays open; clients close theirs earlier."""


@click.command(cls=Command, short_help="Serve OpenAI's chat completions over HTTP.")
@DIRECTORY
@option("--host", default="127.0.0.1", show_default=True, group=SERVER, help="The address to listen on.")
@option("--port", type=PORTS, default=8000, show_default=True, group=SERVER, help="The port; 0 takes a free one.")
@option("--api-key", envvar="TRTPRUNE_API_KEY", metavar="KEY", group=SERVER, show_envvar=True, help="The key of /v1.")
@option("--served-model-name", metavar="NAME", group=SERVER, help="The model's name in requests.  [default: its own]")
@option(
    "--max-body-mb",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    group=SERVER,
    metavar="N",
    help="The largest body of a request, in MiB.",
)
@Gathered("batch", dict, BATCH)
@option(
    "--allow-urls",
    is_flag=True,
    group=IMAGES,
    help="Fetch images at http(s) addresses, which reach all that this machine reaches.",
)
@option("--allow-files", type=PATH, metavar="FOLDER", group=IMAGES, help="Open images in this folder by name.")
@MAX_PIXELS
@Gathered("running", Running, RUN)
@log_options
def serve(directory: Path, batch: dict[str, int], running: Running, max_pixels: int | None, **given: Any) -> None:
    """Serve OpenAI's chat completions over HTTP, with pruning: requests join and leave a running batch.

    \b
    trtprune serve out
    trtprune serve out --host 0.0.0.0 --api-key "$KEY" --max-batch-size 16
    curl http://127.0.0.1:8000/v1/chat/completions \\
        -H "Content-Type: application/json" -d '{"keep": 64, "messages": [
        {"role": "user", "content": [{"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}
        ]}]}'
    """
    uvicorn = _uvicorn()
    from trtprune.cli.running import open_vlm
    from trtprune.engine_dir import open_engine_dir
    from trtprune.serving.app import create_app

    settings = _settings(open_engine_dir(directory, verify="none"), batch, given)
    if settings.api_key is None and not _is_local(given["host"]):
        logger.warning("anyone who reaches %s can ask: --api-key asks for a key", given["host"])
    vlm = open_vlm(directory, Loading(running, max_pixels, urls=given["allow_urls"]))
    app = create_app(vlm, settings)
    # Its own log would repeat ours; requests are counted in /metrics.
    config = uvicorn.Config(
        app,
        host=given["host"],
        port=given["port"],
        log_level="warning",
        access_log=False,
        # uvicorn's own 5 seconds are httpx's, too: one end would close a connection while the other asks through it.
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = uvicorn.Server(config)
    _run(server, given["host"], settings.name)


def _uvicorn() -> Any:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import swagger_ui_bundle  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise BackendError(f"trtprune serve: {error.name} is not installed", hint=to_install(extra="serve")) from None
    return uvicorn


def _settings(made: EngineDir, batch: dict[str, int], given: dict[str, Any]) -> Settings:
    from trtprune.serving.app import Settings, served_name
    from trtprune.serving.images import Sources
    from trtprune.serving.sizes import BatchSizes

    folder = given["allow_files"]
    if folder is not None and not folder.is_dir():
        raise InputError(f"--allow-files {folder}: no such folder")
    if given["api_key"] == "":
        raise InputError("--api-key: is empty", hint="leave it out (and unset TRTPRUNE_API_KEY), or give a key")
    name = given["served_model_name"] or served_name(made.model.id)
    sizes = BatchSizes(**batch)
    return Settings(
        name,
        sizes.limits,
        sizes.max_queued_requests,
        given["api_key"],
        Sources(given["allow_urls"], folder),
        given["max_body_mb"] << 20,
    )


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _run(server: Any, host: str, name: str) -> None:
    """Listens until a signal; what is asked by then is answered."""
    import asyncio
    import contextlib
    import signal
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, server.config.port))
    except OSError as error:
        raise InputError(
            f"--host {host} --port {server.config.port}: {error.strerror or error}",
            hint="another port; 0 takes a free one",
        ) from None
    with listening:
        port = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        logger.warning("serving %s at http://%s:%d/v1 (Ctrl-C ends)", name, shown, port)
        # After the last answer uvicorn raises the signal again; for a server it is the way to end.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(server.serve(sockets=[listening]))
        finally:
            signal.signal(signal.SIGTERM, before)
        logger.info("the server ended")
