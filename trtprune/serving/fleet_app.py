"""The ASGI application of a fleet's door: its limits, the metrics of all replicas, and the gateway for all else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from trtprune.serving.bodies import LimitBody, LimitOpen

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from trtprune.serving.faults import ApiError

__all__ = ["Refused", "fleet_app", "labelled"]

SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


class Refused(Counter[int]):
    """Requests by status that the door itself refused."""

    def note(self, fault: ApiError) -> None:
        """Counts one."""
        self[fault.status] += 1


def fleet_app(
    gateway: ASGIApp,
    metrics: Callable[[], Awaitable[Iterable[tuple[str, bytes]]]],
    refused: Refused,
    limits: tuple[str, int, int],
) -> Starlette:
    """The application.

    Args:
        gateway: What answers requests.
        metrics: The names of the replicas, and what each says at /metrics.
        refused: Where refusals are counted.
        limits: The path of requests that are limited, most of them at once, and the largest body in bytes.
    """

    async def metrics_of_all(_request: Request) -> Response:
        return Response(labelled(await metrics(), refused), media_type="text/plain; version=0.0.4; charset=utf-8")

    found = Starlette(routes=[Route("/metrics", metrics_of_all)])
    # Whatever has no route here is a replica's.
    found.router.default = gateway
    path, most, body = limits
    found.add_middleware(LimitBody, path=path, limit=body, refused=refused.note)
    found.add_middleware(LimitOpen, path=path, limit=most, refused=refused.note)
    return found


def labelled(texts: Iterable[tuple[str, bytes]], refused: Refused) -> str:
    """The metrics of several replicas as one text in Prometheus' format, with the label ``replica``; what the door
    itself refused is its own."""
    families: dict[str, list[str]] = {}
    for replica, text in texts:
        name = ""
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                families.setdefault(name, [line])
            elif line.startswith("# TYPE "):
                if line not in families[name]:
                    families[name].append(line)
            elif sample := SAMPLE.match(line):
                labels = f'replica="{replica}"' + (f",{sample[2]}" if sample[2] else "")
                families[name].append(f"{sample[1]}{{{labels}}} {sample[3]}")
    requests = families.setdefault("trtprune_requests_total", [])
    requests += [f'trtprune_requests_total{{replica="door",status="{status}"}} {n}' for status, n in refused.items()]
    return "".join(line + "\n" for lines in families.values() for line in lines)
