"""Alerts reach a real receiver: again where it fails, once where it does not, and never as a flood."""

from __future__ import annotations

import http.server
import json
import queue
import threading

import pytest

from gpuserve.runtime.telemetry import alerts
from gpuserve.runtime.telemetry.alerts import AlertSender, LocalSlots, WebhookError

pytestmark = pytest.mark.wide


class Receiver:
    """A Slack-compatible webhook on loopback; each answer is what was put in *answers*, 200 after that."""

    def __init__(self) -> None:
        self.got: queue.Queue[str] = queue.Queue()
        self.answers: queue.Queue[tuple[int, dict[str, str]]] = queue.Queue()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Content-Type"] == "application/json"
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert set(body) == {"text"}
                receiver.got.put(body["text"])
                status, headers = receiver.answers.get() if not receiver.answers.empty() else (200, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                """Nothing: what comes is in the queue."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/T000/B000/hook-secret-token"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def next(self) -> str:
        return self.got.get(timeout=10)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver(monkeypatch):
    monkeypatch.setattr(alerts, "_FIRST_PAUSE_S", 0.01)
    made = Receiver()
    yield made
    made.close()


def sender(receiver, per_hour=4, slots=None, clock=lambda: 7200.0):
    return AlertSender(receiver.url, "Echo", per_hour=per_hour, slots=slots or LocalSlots(), clock=clock)


def test_an_alert_arrives_as_slack_takes_it(receiver):
    alerting = sender(receiver)
    alerting.send("start_failed", "start failed (part: load)")
    assert receiver.next() == "Echo: start failed (part: load)"
    alerting.close()


def test_an_alert_is_tried_again_while_the_receiver_fails_and_not_where_it_refuses(receiver, capfd):
    for _ in range(3):
        receiver.answers.put((503, {}))
    receiver.answers.put((429, {"Retry-After": "0"}))
    alerting = sender(receiver)
    alerting.send("stopped", "first")
    assert [receiver.next() for _ in range(5)] == ["Echo: first"] * 5

    receiver.answers.put((404, {}))
    alerting.send("stopped", "second")
    assert receiver.next() == "Echo: second"
    alerting.send("stopped", "third")
    assert receiver.next() == "Echo: third"
    alerting.close()

    assert receiver.got.empty()
    assert "it answered 404; look at the webhook" in capfd.readouterr().err


def test_an_alert_is_given_up_after_five_tries_and_the_log_says_so_without_the_address(receiver, capfd):
    for _ in range(5):
        receiver.answers.put((500, {}))
    alerting = sender(receiver)
    alerting.send("stopped", "first")
    assert [receiver.next() for _ in range(5)] == ["Echo: first"] * 5
    alerting.close()

    log = capfd.readouterr().err
    assert "could not be sent in 5 tries: it answered 500" in log
    assert "hook-secret-token" not in log


def test_a_crash_loop_is_a_few_alerts_an_hour_over_all_containers(receiver, capfd):
    slots, now = LocalSlots(), [7200.0]
    for container in range(50):
        alerting = sender(receiver, per_hour=3, slots=slots, clock=lambda: now[0])
        alerting.send("start_failed", f"container {container}")
        alerting.close()
    assert [receiver.next() for _ in range(3)] == [
        "Echo: container 0",
        "Echo: container 1",
        "Echo: container 2\n(the last of its kind this hour)",
    ]
    alerting = sender(receiver, per_hour=3, slots=slots, clock=lambda: now[0])
    alerting.send("item_failed", "another kind")
    assert receiver.next() == "Echo: another kind"
    now[0] += 3600
    alerting.send("start_failed", "an hour later")
    assert receiver.next() == "Echo: an hour later"
    alerting.close()

    assert receiver.got.empty()
    assert capfd.readouterr().err.count("was held back: 3 an hour are allowed") == 47


def test_where_containers_cannot_agree_each_keeps_the_limit_for_itself(receiver):
    class Unreachable:
        def put_new(self, key, value):
            raise ConnectionError("no dict")

    alerting = sender(receiver, per_hour=2, slots=Unreachable())
    for number in range(5):
        alerting.send("stopped", str(number))
    assert [receiver.next()[:7] for _ in range(2)] == ["Echo: 0", "Echo: 1"]
    alerting.close()
    assert receiver.got.empty()


def test_a_redirect_is_not_followed(receiver):
    other = Receiver()
    receiver.answers.put((302, {"Location": other.url}))
    alerting = sender(receiver)
    alerting.send("stopped", "first")
    assert receiver.next() == "Echo: first"
    alerting.close()
    other.close()
    assert other.got.empty()


@pytest.mark.parametrize("url", ["", "hooks.slack.com/x", "http://hooks.example/x", "file:///etc/passwd", "ftp://a/b"])
def test_an_address_that_is_no_https_address_is_refused_and_not_repeated(url):
    with pytest.raises(WebhookError) as refused:
        AlertSender(url, "Echo", per_hour=1, slots=LocalSlots())
    assert not url or url not in str(refused.value)


APP = """
import os
import modal, gpuserve

app = modal.App("alerting")

@gpuserve.register(app)
class Failing(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()
    secrets = (gpuserve.SecretSpec(name="mine", required_keys=("PASSWORD",)),)
    telemetry = gpuserve.Telemetry(
        alerts=gpuserve.Alerts(webhook=gpuserve.SecretSpec(name="slack"), on=("start_failed", "stopped"), per_hour=2)
    )

    def load(self):
        if os.environ.get("WORKS") != "yes":
            raise RuntimeError("no model behind " + os.environ["PASSWORD"])

    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[int]:
        return batch

@app.local_entrypoint()
def main():
    Failing().predict.remote(1)
"""


@pytest.mark.heavy
def test_containers_that_cannot_start_alarm_a_few_times_and_never_with_a_secret(engine, modal_cli, tmp_path, receiver):
    modal_cli("secret", "create", "mine", "PASSWORD=hunter2-and-more")
    modal_cli("secret", "create", "slack", f"GPUSERVE_ALERT_WEBHOOK={receiver.url}")
    (tmp_path / "alerting.py").write_text(APP)
    for _ in range(2):
        failed = modal_cli("run", "alerting.py", check=False)
        assert failed.returncode != 0
        assert "hook-secret-token" not in failed.stdout + failed.stderr
    texts = [receiver.next(), receiver.next()]

    assert texts[0].startswith("Failing: start failed (part: load, error: RuntimeError('no model behind [redacted]'")
    assert texts[1].endswith("(the last of its kind this hour)")
    assert receiver.got.empty(), "every further container kept to the limit"

    modal_cli("secret", "create", "mine", "PASSWORD=hunter2-and-more", "WORKS=yes", "--force")
    modal_cli("run", "alerting.py")
    assert receiver.next() == "Failing: stopped ()"
