"""Counts and times for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from trtprune.serving.engine import Engine, Finished

__all__ = ["Metrics"]

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class _Now:
    """What the engine does at the moment of a scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily]:
        state = self._engine.state
        yield GaugeMetricFamily("trtprune_queued_requests", "Requests that wait for a row", state.waiting)
        yield GaugeMetricFamily("trtprune_active_requests", "Requests with a row of the batch", state.active)
        yield GaugeMetricFamily("trtprune_batch_rows", "Most rows of the batch", state.rows)
        yield GaugeMetricFamily("trtprune_kv_cache_bytes", "Memory of the batch and earlier prompts", state.cache_bytes)


class Metrics:
    """The metrics of one server.

    Args:
        engine: Its engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Now(engine))

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"trtprune_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"trtprune_{name}", text, buckets=buckets, registry=self.registry)

        self._requests = counter("requests", "Requests by HTTP status; 499: the client hung up", ("status",))
        self._prompt = counter("prompt_tokens", "Tokens of prompts as they entered the decoder")
        self._cached = counter("cached_prompt_tokens", "Of these, tokens that were cached already")
        self._generated = counter("generated_tokens", "Tokens of answers")
        self._visual = counter("visual_tokens", "Visual tokens of images before pruning")
        self._kept = counter("kept_tokens", "Visual tokens that were kept")
        self._first = histogram("time_to_first_token_seconds", "From the request to its first text", SECONDS)
        self._token = histogram("time_per_output_token_seconds", "Of each token behind the first", TOKEN_SECONDS)
        self._whole = histogram("request_seconds", "From the request to the end of its answer", SECONDS)

    def count(self, status: int) -> None:
        """Counts a request."""
        self._requests.labels(str(status)).inc()

    def add(self, end: Finished) -> None:
        """Counts an answer."""
        result = end.result
        self._prompt.inc(result.prompt_tokens)
        self._cached.inc(end.cached_tokens)
        self._generated.inc(len(result.token_ids))
        self._visual.inc(result.visual_tokens)
        self._kept.inc(result.kept_tokens)
        self._first.observe(end.first_token_s)
        self._whole.observe(end.total_s)
        if len(result.token_ids) > 1:
            self._token.observe((end.total_s - end.first_token_s) / (len(result.token_ids) - 1))

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
