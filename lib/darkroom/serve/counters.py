"""What the service counts, as Prometheus reads it; labels take few values, whatever is asked."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Counters:
    """The service's own registry; several services may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common = {"registry": self.registry, "namespace": "darkroom"}
        self.requests = Counter(
            "requests", "Requests answered, by path and status.", ("path", "status"), **common
        )
        self.adapters = Counter(
            "adapter_requests",
            "Pictures restored: an adapter's name, none, or several.",
            ("adapter",),
            **common,
        )
        self.request_seconds = Histogram(
            "request_seconds",
            "From a request's beginning to its answer, waiting included.",
            buckets=SECONDS,
            **common,
        )
        self.restore_seconds = Histogram(
            "restore_seconds",
            "Decoding, restoring and encoding a picture.",
            buckets=SECONDS,
            **common,
        )
        self.in_flight = Gauge(
            "requests_in_flight", "Requests admitted and not answered.", **common
        )
        self.admitted = Gauge(
            "requests_admitted_limit", "Most requests admitted at once.", **common
        )
        self.merged = Gauge("merged_weights_bytes", "Bytes of merged weights kept.", **common)
        self.merges = Gauge("merges", "Times that weights were merged.", **common)
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self.registry)
