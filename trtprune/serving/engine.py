"""The running batch in a thread of its own, for callers in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtprune.errors import BackendError
from trtprune.runtime.inflight import InFlight, Limits, Order
from trtprune.serving.faults import ApiError, Busy

if TYPE_CHECKING:
    from trtprune.runtime import Features, Result, Vlm
    from trtprune.runtime.answer import AnswerSettings
    from trtprune.runtime.budget import Budget
    from trtprune.runtime.inflight import Picture
    from trtprune.text.template import Turn

__all__ = ["Engine", "Finished", "Question", "State"]

logger = logging.getLogger("trtprune")


@dataclass(frozen=True)
class Question:
    """A checked request; the fields of :class:`trtprune.runtime.inflight.Order`."""

    turns: Sequence[Turn]
    pictures: Sequence[Picture]
    budget: Budget
    settings: AnswerSettings


@dataclass(frozen=True)
class Finished:
    """The end of an answer.

    Attributes:
        result: The whole answer.
        features: Features of its images.
        cached_tokens: Tokens of the prompt that were not computed again.
        first_token_s: Seconds from the question to the first token.
        total_s: Seconds from the question to the end.
    """

    result: Result
    features: Sequence[Features]
    cached_tokens: int
    first_token_s: float
    total_s: float


@dataclass(frozen=True)
class State:
    """What an engine does at the moment."""

    waiting: int
    active: int
    rows: int
    cache_bytes: int


class _Ticket:
    """A listener in the engine's thread, and its events in the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.events: asyncio.Queue[str | Finished | Exception] = asyncio.Queue()
        self._start = time.perf_counter()
        self._first: float | None = None

    def _send(self, event: str | Finished | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def on_text(self, piece: str) -> None:
        """See :class:`trtprune.runtime.inflight.Listener`."""
        self._first = self._first or time.perf_counter()
        self._send(piece)

    def on_result(self, result: Result, pictures: Sequence[Features], cached_tokens: int) -> None:
        """See :class:`trtprune.runtime.inflight.Listener`."""
        now = time.perf_counter()
        first = (self._first or now) - self._start
        self._send(Finished(result, pictures, cached_tokens, first, now - self._start))

    def on_error(self, error: Exception) -> None:
        """See :class:`trtprune.runtime.inflight.Listener`."""
        self._send(error)


class Engine:
    """Answers requests of several callers in one running batch.

    Args:
        vlm: The model; the engine's thread is the only one that uses it from now on.
        limits: Sizes of the batch.
        max_queued: Most requests that wait for a row.
    """

    def __init__(self, vlm: Vlm, limits: Limits | None = None, *, max_queued: int = 64) -> None:
        self.vlm, self.max_queued = vlm, max_queued
        self._batch = InFlight(vlm.pipeline, limits)
        self._inbox: list[Order] = []
        self._condition = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="trtprune engine", daemon=True)
        self._thread.start()

    @property
    def state(self) -> State:
        """Counts of the moment."""
        batch = self._batch
        return State(batch.waiting + len(self._inbox), batch.active, batch.max_rows, batch.cache_bytes)

    @property
    def stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._stopping

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def check_room(self) -> None:
        """Refuses a request that would have to wait behind too many others.

        Raises:
            ApiError: 429 for a full queue, 503 while the server stops.
        """
        if self._stopping:
            raise ApiError(503, "the server stops", kind="server_error", code="stopping")
        state = self.state
        if state.waiting >= self.max_queued and state.waiting + state.active >= state.rows + self.max_queued:
            raise Busy(state.waiting + state.active)

    async def ask(self, question: Question) -> AsyncIterator[str | Finished]:
        """The pieces of an answer, and at last its end; a caller that stops early frees the row.

        Raises:
            ApiError: as :meth:`check_room`.
            TrtpruneError: for a question that cannot be answered.
        """
        ticket = _Ticket(asyncio.get_running_loop())
        order = Order(question.turns, question.pictures, question.budget, question.settings, ticket)
        self.submit(order)
        try:
            while True:
                event = await ticket.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            order.cancelled = True

    def submit(self, order: Order) -> None:
        """Hands a request to the engine's thread, which calls its listener.

        Raises:
            ApiError: as :meth:`check_room`.
        """
        with self._condition:
            self.check_room()
            self._inbox.append(order)
            self._condition.notify()

    def close(self, wait: Callable[[], bool] = lambda: True) -> None:
        """Stops: requests that are here are answered as long as ``wait`` says so, new ones refused."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        while self._thread.is_alive() and wait():
            self._thread.join(0.1)

    def _serve(self) -> None:
        busy = False
        while True:
            with self._condition:
                while not (busy or self._inbox or self._stopping):
                    self._condition.wait()
                orders, self._inbox = self._inbox, []
                if self._stopping and not busy and not orders:
                    return
            for order in orders:
                self._batch.add(order)
            try:
                busy = self._batch.work()
            except Exception:
                # A step of the whole batch failed: its rows are lost, and the next request finds an empty batch.
                logger.exception("the batch failed")
                self._batch.abandon(BackendError("the batch failed"))
                busy = False
