"""What `GET /metrics` tells Prometheus."""

from __future__ import annotations

import functools

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gpuserve.runtime.batcher import BatchRecord
from gpuserve.runtime.server import ServerRuntime

__all__ = ["Metrics"]

# Seconds: from a cached answer to the longest that Modal lets a request take.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 150)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_COSTS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """The figures of one server, in a registry of their own: another server in the process has others.

    | name | kind | labels | what |
    |---|---|---|---|
    | ``gpuserve_requests_total`` | counter | route, status | requests answered |
    | ``gpuserve_request_seconds`` | histogram | route | from the first byte in to the last out |
    | ``gpuserve_queue_length`` | gauge | method | items that wait |
    | ``gpuserve_queue_seconds`` | histogram | method | how long an item waited |
    | ``gpuserve_batch_size`` | histogram | method | items in a batch |
    | ``gpuserve_batch_cost`` | histogram | method | summed cost of a batch, e.g. tokens |
    | ``gpuserve_model_seconds`` | histogram | method | how long a batch ran |
    | ``gpuserve_failed_batches_total`` | counter | method | batches that raised or answered wrongly |
    | ``gpuserve_start_seconds`` | gauge | part | what this container's cold start was made of |
    """

    def __init__(self, runtime: ServerRuntime) -> None:
        """Count what *runtime* does from now on."""
        self.registry = registry = CollectorRegistry()
        method = ("method",)
        self._requests = Counter("gpuserve_requests", "requests answered", ("route", "status"), registry=registry)
        self._latency = Histogram(
            "gpuserve_request_seconds", "time of a request", ("route",), buckets=_SECONDS, registry=registry
        )
        self._waited = Histogram(
            "gpuserve_queue_seconds", "how long an item waited", method, buckets=_SECONDS, registry=registry
        )
        self._size = Histogram("gpuserve_batch_size", "items in a batch", method, buckets=_SIZES, registry=registry)
        self._cost = Histogram("gpuserve_batch_cost", "cost of a batch", method, buckets=_COSTS, registry=registry)
        self._model = Histogram(
            "gpuserve_model_seconds", "how long a batch ran", method, buckets=_SECONDS, registry=registry
        )
        self._failed = Counter("gpuserve_failed_batches", "batches that failed", method, registry=registry)
        queue = Gauge("gpuserve_queue_length", "items that wait", method, registry=registry)
        for name in runtime.batched:
            queue.labels(name).set_function(functools.partial(runtime.waiting, name))
        start = Gauge("gpuserve_start_seconds", "what the cold start was made of", ("part",), registry=registry)
        for part, spent in runtime.started_in_s.items():
            start.labels(part).set(spent)
        # a look-up by labels costs more than what it finds; routes and statuses are few
        self._of_route: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        runtime.batch_observers.append(self._batch)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        found = self._of_route.get((route, status))
        if found is None:
            found = self._requests.labels(route, str(status)), self._latency.labels(route)
            self._of_route[route, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def _batch(self, method: str, record: BatchRecord) -> None:
        self._size.labels(method).observe(record.size)
        self._cost.labels(method).observe(record.cost)
        self._model.labels(method).observe(record.model_s)
        waited = self._waited.labels(method)
        for seconds in record.queue_s:
            waited.observe(seconds)
        if record.failed:
            self._failed.labels(method).inc()

    def page(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
