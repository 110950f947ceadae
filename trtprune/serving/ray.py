"""Ray Serve: replicas of one engine directory behind a door that speaks OpenAI's protocol.

``serve run trtprune.serving.ray:app directory=/models/out`` starts two deployments: ``Model``, whose replicas have the
model, each with a running batch of its own, and ``Door`` on the head node, which queues requests, and asks another
replica if one is lost.  A replica runs the application of ``trtprune serve``, whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.exceptions import ActorDiedError, NodeDiedError, RayError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, RayServeException

from trtprune.errors import InputError, one_line
from trtprune.serving.faults import Busy
from trtprune.serving.fleet_app import Refused, fleet_app
from trtprune.serving.forwarding import Forwarded, responses
from trtprune.serving.gateway import CHAT, Gateway, ReplicaLost, Retries
from trtprune.serving.sizes import BatchSizes

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

__all__ = ["RaySettings", "app"]

METRICS_S = 5.0
"""Longest time for the metrics of all replicas."""


class RaySettings(BaseModel):
    """What ``serve run`` takes behind the application's name, and ``args`` in a configuration file."""

    model_config: ClassVar[ConfigDict] = {"extra": "forbid"}

    directory: str = Field(description="the engine directory; every node has it under this path")
    served_model_name: str | None = Field(None, description="the model's name in requests; its own")
    keep: int | None = Field(None, ge=1, description="the budget of requests without one; as built")
    api_key: str | None = Field(None, min_length=1, description="the key of /v1; $TRTPRUNE_API_KEY, if that is set")
    min_replicas: int = Field(1, ge=1, description="least replicas")
    max_replicas: int = Field(1, ge=1, description="most replicas")
    target_ongoing_requests: float | None = Field(
        None, gt=0, description="requests of a replica, with its share of the waiting ones; max_batch_size"
    )
    upscale_delay_s: float = Field(10, ge=0, description="seconds above the target before a replica is added")
    downscale_delay_s: float = Field(300, ge=0, description="seconds below it before one is removed")
    drain_s: float = Field(120, ge=0, description="longest time that a removed replica has for its requests")
    attempts: int = Field(3, ge=1, le=10, description="most replicas that get one request")
    cpus: float = Field(1, gt=0, description="CPUs that a replica reserves")
    gpus: float = Field(0, ge=0, description="GPUs that a replica reserves")
    provider: str | None = Field(None, description="what runs the graphs; as built")
    threads: int | None = Field(None, ge=1, description="CPU threads of a replica; as many as cpus")
    max_batch_size: int = Field(8, ge=1, le=1024, description="requests that a replica answers at once")
    max_queued_requests: int = Field(64, ge=0, description="requests that may wait at the door for a replica")
    prefill_chunk: int = Field(256, ge=16, description="as of trtprune serve")
    image_cache_mb: int = Field(256, ge=0, description="as of trtprune serve")
    prefix_cache_mb: int = Field(512, ge=0, description="as of trtprune serve")
    max_body_mb: int = Field(32, ge=1, le=1024, description="as of trtprune serve")
    max_pixels: int | None = Field(None, ge=1, description="as of trtprune serve")

    @property
    def sizes(self) -> BatchSizes:
        """The sizes of a replica's batch."""
        names = ("max_batch_size", "max_queued_requests", "prefill_chunk", "image_cache_mb", "prefix_cache_mb")
        return BatchSizes(**{name: getattr(self, name) for name in names})

    @property
    def ongoing(self) -> int:
        """Most requests of a replica: those of its batch, and as many that are prepared meanwhile."""
        return 2 * self.max_batch_size

    @property
    def most(self) -> int:
        """Most requests of all replicas and the queue."""
        return self.max_replicas * self.ongoing + self.max_queued_requests


class Model:
    """A replica: the whole server of ``trtprune serve``, asked by calls in place of connections."""

    def __init__(self, settings: RaySettings) -> None:
        from trtprune.runtime import load
        from trtprune.serving.app import Settings, create_app, served_name

        threads = settings.threads or max(1, int(settings.cpus))
        vlm = load(settings.directory, provider=settings.provider, threads=threads, max_pixels=settings.max_pixels)
        if settings.keep is not None:
            vlm.pipeline.budget(settings.keep, None)
        name = settings.served_model_name or served_name(vlm.config.model.id)
        sizes = settings.sizes
        own = Settings(
            name,
            sizes.limits,
            max_queued=settings.ongoing,
            api_key=settings.api_key,
            max_body_bytes=settings.max_body_mb << 20,
        )
        self._app = create_app(vlm, own)

    async def ask(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        """The messages of the response to a request."""
        async with contextlib.aclosing(responses(self._app, request)) as messages:
            async for message in messages:
                yield message

    async def metrics(self) -> tuple[str, bytes]:
        """This replica's name, and its metrics."""
        text: bytes = self._app.state.server.metrics.text()
        return serve.get_replica_context().replica_id.unique_id, text

    async def check_health(self) -> None:
        """Raises if the batch no longer runs: Ray replaces the replica then."""
        if not self._app.state.server.engine.alive:
            raise RuntimeError("the engine's thread has ended")


class _Replicas:
    """The replicas as the door sees them.

    Args:
        handle: The handle of ``Model``.
        most: Requests that they and the queue take.
    """

    def __init__(self, handle: Any, most: int) -> None:
        self._handle, self._most = handle.options(stream=True, method_name="ask"), most

    async def ask(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        """See :class:`trtprune.serving.gateway.Fleet`."""
        answer = self._handle.remote(request)
        try:
            async for message in answer:
                yield message
        except BackPressureError:
            raise Busy(self._most) from None
        except RayTaskError:
            raise  # a fault of the program, not of a machine
        except (RayError, RayServeException) as error:
            died = isinstance(error, (ActorDiedError, WorkerCrashedError, NodeDiedError))
            raise ReplicaLost(one_line(f"{type(error).__name__}: {error}", 300), unreachable=not died) from error
        except (GeneratorExit, asyncio.CancelledError):
            await asyncio.to_thread(_cancel, answer)
            raise


class Door:
    """The requests' way in; has no model."""

    def __init__(self, model: Any, settings: RaySettings) -> None:
        self._model, self._settings = model, settings

    def __serve_build_asgi_app__(self) -> ASGIApp:
        settings, refused = self._settings, Refused()
        retries = Retries(settings.attempts, settings.keep)
        gateway = Gateway(_Replicas(self._model, settings.most), retries, refused.note)
        limits = (CHAT, settings.most, settings.max_body_mb << 20)
        return fleet_app(gateway, self._metrics, refused, limits)

    async def _metrics(self) -> list[tuple[str, bytes]]:
        """The metrics of all replicas that say them in time."""
        found = await self._model.broadcast("metrics").results_async(timeout_s=METRICS_S, return_exceptions=True)
        return [one for one in found if not isinstance(one, BaseException)]


def _cancel(answer: Any) -> None:
    """Cancels a call; blocks, and raises what the call itself did."""
    with contextlib.suppress(Exception):
        answer.cancel()


# Any: Ray's decorators are typed as if they gave the class itself.
_MODEL: Any = serve.deployment(name="Model")(Model)
_DOOR: Any = serve.deployment(name="Door")(serve.ingress()(Door))


def app(args: dict[str, Any]) -> serve.Application:
    """The application for ``serve run``.

    Args:
        args: The fields of :class:`RaySettings`.

    Raises:
        InputError: naming the one that is wrong.
    """
    try:
        settings = RaySettings.model_validate(args)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        known = f"one of {', '.join(RaySettings.model_fields)}" if first["type"] == "extra_forbidden" else None
        raise InputError(one_line(f"{place}: {first['msg']}", 300), hint=known) from None
    if settings.max_replicas < settings.min_replicas:
        settings = settings.model_copy(update={"max_replicas": settings.min_replicas})
    if settings.api_key is None and os.environ.get("TRTPRUNE_API_KEY"):
        settings = settings.model_copy(update={"api_key": os.environ["TRTPRUNE_API_KEY"]})
    model = _MODEL.options(
        max_ongoing_requests=settings.ongoing,
        max_queued_requests=settings.max_queued_requests,
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=1,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "initial_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests or settings.max_batch_size,
            "upscale_delay_s": settings.upscale_delay_s,
            "downscale_delay_s": settings.downscale_delay_s,
        },
    )
    # A door on a node that is lost would take its requests with it; without the head node there is no cluster.
    door = _DOOR.options(
        max_ongoing_requests=settings.most + 64,
        graceful_shutdown_timeout_s=settings.drain_s,
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
    )
    return door.bind(model.bind(settings), settings)
