"""What a server counts, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REGIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Of one server. queue, memory, in_flight: asked when the page is."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        labels = ("path", "status")
        self.requests = Counter("dynrefer_requests", "answers", labels, registry=registry)
        self.seconds = Histogram(
            "dynrefer_request_seconds", "from a request's first byte on", ("path",), buckets=SECONDS, registry=registry
        )
        self.refused = Counter("dynrefer_refused", "answers that are errors", ("code",), registry=registry)
        self.regions = Counter("dynrefer_regions", "regions that the model described", registry=registry)
        self.batch = Histogram("dynrefer_batch_regions", "regions of a batch", buckets=REGIONS, registry=registry)
        self.shared = Histogram("dynrefer_batch_requests", "requests of a batch", buckets=REGIONS, registry=registry)
        self.model = Histogram("dynrefer_batch_seconds", "the model's, for a batch", buckets=SECONDS, registry=registry)
        self.waited = Histogram(
            "dynrefer_wait_seconds", "a request's, in the queue", buckets=SECONDS, registry=registry
        )

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A number that is asked when the page is."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def batch_done(self, regions: int, jobs: int, seconds: float) -> None:
        self.regions.inc(regions)
        self.batch.observe(regions)
        self.shared.observe(jobs)
        self.model.observe(seconds)

    def page(self) -> bytes:
        return generate_latest(self.registry)
