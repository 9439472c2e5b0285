"""What Prometheus is told: how long each stage takes, what is refused and why, what waits, which space is searched."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Seconds: from a search in memory to the longest budget.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class Stages:
    """How long the stages of one request took, in milliseconds."""

    metrics: Metrics
    took_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self.took_ms[stage] = round(1000 * seconds, 3)
            self.metrics.stage_seconds.labels(stage).observe(seconds)


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lens_requests", "Requests by operation and status", ["operation", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "lens_request_seconds",
            "Time to answer, by operation",
            ["operation"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "lens_stage_seconds",
            "Time of a stage of answering: upload, decode, embed, lookup, search, rank",
            ["stage"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.results = Histogram(
            "lens_results",
            "Results of a search",
            ["operation"],
            buckets=(0, 1, 2, 5, 10, 20, 50, 100),
            registry=self.registry,
        )
        self.waiting = Gauge("lens_waiting", "Requests that wait, by what for", ["what"], registry=self.registry)
        self.lag = Gauge("lens_lag_seconds", "How late the process comes to what it has to do", registry=self.registry)
        self.breaker_open = Gauge(
            "lens_breaker_open", "1 while Elasticsearch is not asked because it does not answer", registry=self.registry
        )
        self.following = Gauge(
            "lens_following", "1 if the searched index is the one that the alias points to", registry=self.registry
        )
        self.live = Gauge(
            "lens_live", "1 for the index that is searched, and its space", ["index", "space"], registry=self.registry
        )

        self.indexing_seconds = Histogram(
            "lens_indexing_seconds",
            "Time from a listing's event to its being written to the live index",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.set_aside = Counter(
            "lens_listings_set_aside", "Listings that were told of and cannot be indexed", registry=self.registry
        )
        self.canary_recall = Gauge(
            "lens_canary_recall",
            "Recall@10 of the last canaries: what a search finds of what one that looks at many more vectors finds",
            registry=self.registry,
        )
        self.log_lost = Gauge(
            "lens_log_lost",
            "Searches that were not kept since the lake could not be written to",
            registry=self.registry,
        )

    def stages(self) -> Stages:
        return Stages(self)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)
