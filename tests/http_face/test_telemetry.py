"""What a server tells of itself: whole lines, in time, without secrets, and never in a request's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gpuserve import DeclarationError, Http, Telemetry
from gpuserve.runtime.batcher import BatchRecord
from gpuserve.runtime.telemetry.json_log import JsonLog
from gpuserve.runtime.telemetry.otel import OpenTelemetry
from gpuserve.runtime.telemetry.record import RequestRecord
from gpuserve.runtime.telemetry.redact import Redactor
from gpuserve.specs.secret import SecretSpec

from .conftest import KEY, OTHER_KEY, serving
from .served import Echo

pytestmark = pytest.mark.wide

pytest.importorskip("gpuserve.runtime.http.serve")


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a server wrote of a start, some requests and an end."""
    file = tmp_path_factory.mktemp("log") / "deep" / "requests.jsonl"

    class Told(Echo):
        telemetry = Telemetry(file=str(file))

    with serving(Told, Http(max_body_bytes=2000, requests_per_minute=60, burst=8)) as served:
        assert served.predict({"prompt": "the input itself"}, "X-Request-Id: mine").status == 200
        assert served.predict({"prompt": "again"}, key=OTHER_KEY).status == 200
        assert served.predict({"prompt": "boom"}).status == 500
        assert served.predict({"prompt": 3}).status == 422
        assert served.predict({"prompt": "a"}, key="wrong" * 8).status == 401
        assert served.predict({"prompt": "a" * 3000}).status == 413
        assert served.ask("/nowhere/" + KEY).status == 404
        assert served.ask("/health", key=None).status == 200
    return file


def test_each_request_has_its_line_and_so_have_start_failure_and_end(told):
    found = lines(told)
    assert [one["event"] for one in found if one["event"] != "request"] == ["ready", "item_failed", "stopped"]
    requests = [one for one in found if one["event"] == "request"]
    seen = [(one["key"], one["route"], one["status"]) for one in requests]
    assert seen == [
        ("ci", "/predict", 200),
        ("ops", "/predict", 200),
        ("ci", "/predict", 500),
        ("ci", "/predict", 422),
        ("", "", 401),
        ("ci", "", 413),
        ("ci", "", 404),
        ("", "/health", 200),
    ]
    first = requests[0]
    assert set(first) == {
        "event", "model", "request_id", "key", "method", "route", "status", "latency_ms", "queue_ms", "model_ms",
        "batch_size", "items", "tokens", "cold_start",
    }  # fmt: skip
    assert (first["model"], first["request_id"], first["method"]) == ("Told", "mine", "POST")
    assert (first["batch_size"], first["items"], first["tokens"]) == (1, 1, 16)
    assert 0 <= first["queue_ms"] <= first["latency_ms"] < 10_000
    assert [one["cold_start"] for one in requests] == [True, *[False] * 7]


def test_a_line_holds_neither_key_nor_input(told):
    text = told.read_text()

    for secret in (KEY, OTHER_KEY, "wrong" * 8, "the input itself", "secret internals"):
        assert secret not in text


def test_lines_go_to_the_containers_log_unless_a_file_is_declared(capfd):
    with serving(Echo, Http()) as served:
        assert served.predict({"prompt": "a"}).status == 200

    found = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert [one["event"] for one in found] == ["ready", "request", "stopped"]


def test_requests_have_no_lines_where_none_are_asked_for(capfd):
    class Silent(Echo):
        telemetry = Telemetry(requests=False)

    with serving(Silent, Http()) as served:
        assert served.predict({"prompt": "a"}).status == 200

    assert '"request"' not in capfd.readouterr().out


def test_a_log_that_is_not_read_holds_nobody_up_and_says_what_it_lost():
    read_end, write_end = os.pipe()
    log = JsonLog("Echo", most_waiting=100)
    log._file = os.fdopen(write_end, "w")
    for number in range(200_000):  # a pipe holds a few hundred of them
        log.put({"event": "filler", "number": number, "text": "a" * 100})
    with os.fdopen(read_end) as reader:
        found: list[dict] = []
        thread = threading.Thread(target=lambda: found.extend(map(json.loads, reader)))
        thread.start()
        log.close()
        log._file.close()
        thread.join(10)

    lost = sum(one["lines"] for one in found if one["event"] == "log_dropped")
    numbers = [one["number"] for one in found if one["event"] == "filler"]
    assert lost > 0
    assert lost + len(numbers) == 200_000
    assert numbers == sorted(numbers)


def test_a_log_that_cannot_be_opened_is_told_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeclarationError, match="cannot be written"):
        JsonLog("Echo", tmp_path / "file" / "log.jsonl")


def test_values_of_secrets_are_blotted_out_however_they_are_spelled():
    hidden = Redactor()
    value = 'tö"ken/with+marks and 1234'
    environment = {"TOKEN": value, "SHORT": "abc", "GPUSERVE_API_KEYS": f"ci:{KEY}, ops:{OTHER_KEY}"}
    hidden.add_secrets([SecretSpec(name="mine", required_keys=("TOKEN", "SHORT", "ABSENT"))], environment)

    text = f"{value} {json.dumps(value)} t%C3%B6%22ken%2Fwith%2Bmarks%20and%201234 {KEY} {OTHER_KEY} abc"

    assert hidden(text) == '[redacted] "[redacted]" [redacted] [redacted] [redacted] abc'
    assert value not in repr(hidden)


def test_a_failure_that_names_a_secret_is_logged_without_it(capfd, monkeypatch):
    monkeypatch.setenv("TOKEN", "a-secret-of-some-length")

    class Leaking(Echo):
        secrets = (SecretSpec(name="mine", required_keys=("TOKEN",)),)

        def routes(self, router):
            @router.get("/leak")
            async def leak():
                raise RuntimeError(f"no access with {os.environ['TOKEN']}")

    with serving(Leaking, Http()) as served:
        answer = served.ask("/leak")

    assert answer.fault == (500, "internal_error")
    log = capfd.readouterr().err
    assert "no access with [redacted]" in log
    assert "a-secret-of-some-length" not in log + answer.body.decode()


def answered() -> RequestRecord:
    record = RequestRecord("an-id", "POST", 100.0)
    record.key, record.route, record.status, record.latency_s = "ci", "/predict", 200, 0.5
    record.ran(queue_s=0.1, model_s=0.3, batch_size=4, cost=12)
    record.model_ended = 100.45
    return record


def test_a_request_is_a_span_with_its_wait_and_its_model_inside_and_continues_the_callers_trace():
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    otel = OpenTelemetry("Echo", tracers, meters)
    record = answered()
    record.parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    otel.request(record)
    otel.batch("predict", BatchRecord(4, 12.0, (0.1, 0.2, 0.0, 0.0), 0.3, failed=False))
    failed = answered()
    failed.status = 500
    otel.request(failed)

    queue, model, request, *_, last = exporter.get_finished_spans()
    assert [span.name for span in (queue, model, request)] == ["queue", "model", "POST /predict"]
    assert f"{request.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert {queue.parent.span_id, model.parent.span_id} == {request.context.span_id}
    lasted = [round((span.end_time - span.start_time) / 1e9, 6) for span in (queue, model, request)]
    assert lasted == [0.1, 0.3, 0.5]
    assert queue.end_time == model.start_time
    assert request.attributes["gpuserve.batch_size"] == 4
    assert request.attributes["http.response.status_code"] == 200
    assert not last.status.is_ok
    figures = {
        metric.name: metric.data.data_points
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    }
    assert figures["gpuserve.queue.duration"][0].count == 4
    assert figures["gpuserve.batch.size"][0].sum == 4
    assert sum(point.count for point in figures["http.server.request.duration"]) == 2


def test_what_traces_is_loaded_where_it_was_asked_for_alone():
    program = """
import sys
from gpuserve.runtime.telemetry.outlet import Outlet
from gpuserve.specs.telemetry import Telemetry
from gpuserve.runtime.http import app
Outlet("Echo", Telemetry()).close()
assert "gpuserve.runtime.telemetry.otel" not in sys.modules
assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
Outlet("Echo", Telemetry(opentelemetry=True)).close()
assert "gpuserve.runtime.telemetry.otel" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
