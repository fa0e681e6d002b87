"""Traces and metrics for OpenTelemetry: a span a request, with one for its wait and one for its model."""

from __future__ import annotations

import time
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gpuserve.runtime.batcher import BatchRecord
from gpuserve.runtime.telemetry.record import RequestRecord

__all__ = ["OpenTelemetry"]

_NS = 1_000_000_000
_FAILED = 500


class OpenTelemetry:
    """Tells OpenTelemetry of what was answered, after it was.

    The providers are those that the process has set up, as with ``opentelemetry-instrument`` or in
    `load`; where it has not, and OTLP's exporter is installed, they are made from the usual
    ``OTEL_…`` variables.

    Args:
        server: The name of the server.
        tracers: The provider of traces, where it is not the process's.
        meters: The provider of metrics, where it is not the process's.
    """

    def __init__(self, server: str, tracers: Any = None, meters: Any = None) -> None:
        self._server = server
        self._made: list[Any] = []
        if tracers is None and meters is None:
            self._made = _providers(server)
        self._tracer = trace.get_tracer("gpuserve", tracer_provider=tracers)
        meter = metrics.get_meter("gpuserve", meter_provider=meters)
        self._duration = meter.create_histogram("http.server.request.duration", "s", "time of a request")
        self._queue = meter.create_histogram("gpuserve.queue.duration", "s", "how long an item waited")
        self._model = meter.create_histogram("gpuserve.model.duration", "s", "how long a batch ran")
        self._size = meter.create_histogram("gpuserve.batch.size", "{item}", "items in a batch")
        self._failed = meter.create_counter("gpuserve.batch.failures", "{batch}", "batches that failed")
        # the offset of the clock that requests are timed by: spans want nanoseconds since 1970
        self._offset = time.time_ns() - round(time.perf_counter() * _NS)

    def request(self, record: RequestRecord) -> None:
        """One request was answered."""
        begun, ended = self._at(record.begun), self._at(record.begun + record.latency_s)
        parent = TraceContextTextMapPropagator().extract({"traceparent": record.parent}) if record.parent else None
        attributes: dict[str, str | int] = {
            "http.request.method": record.method,
            "http.response.status_code": record.status,
            "http.route": record.route,
        }
        span = self._tracer.start_span(
            f"{record.method} {record.route}".strip(),
            context=parent,
            kind=SpanKind.SERVER,
            start_time=begun,
            attributes={
                **attributes,
                "gpuserve.server": self._server,
                "gpuserve.key": record.key,
                "gpuserve.request_id": record.request_id,
                "gpuserve.batch_size": record.batch_size,
                "gpuserve.tokens": record.cost,
                "gpuserve.cold_start": record.cold_start,
            },
        )
        if record.items:
            inside = trace.set_span_in_context(span)
            done = self._at(record.model_ended)
            asked = done - round(record.model_s * _NS)
            waited = self._tracer.start_span("queue", inside, start_time=asked - round(record.queue_s * _NS))
            waited.end(asked)
            ran = self._tracer.start_span("model", inside, start_time=asked)
            ran.end(done)
        if record.status >= _FAILED:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended)
        self._duration.record(record.latency_s, attributes)

    def batch(self, method: str, record: BatchRecord) -> None:
        """One batch was run."""
        attributes = {"gpuserve.server": self._server, "gpuserve.method": method}
        self._size.record(record.size, attributes)
        self._model.record(record.model_s, attributes)
        for seconds in record.queue_s:
            self._queue.record(seconds, attributes)
        if record.failed:
            self._failed.add(1, attributes)

    def close(self) -> None:
        """Export what waits."""
        for provider in self._made:
            provider.shutdown()

    def _at(self, seconds: float) -> int:
        return self._offset + round(seconds * _NS)


def _providers(server: str) -> list[Any]:
    """Providers from the usual variables, where the process has none of its own and the exporter is there."""
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return []
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        return []
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": server})
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource)
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(meters)
    return [tracers, meters]
