"""Everything that a server tells of itself goes out here."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gpuserve.runtime.batcher import BatchRecord
from gpuserve.runtime.ports import LeaseEntries
from gpuserve.runtime.telemetry.alerts import AlertSender, WebhookError
from gpuserve.runtime.telemetry.json_log import JsonLog
from gpuserve.runtime.telemetry.record import RequestRecord
from gpuserve.runtime.telemetry.redact import redactor
from gpuserve.specs.schedule import JobAlerts
from gpuserve.specs.secret import SecretSpec
from gpuserve.specs.telemetry import ALERT_WEBHOOK, Alerts, Telemetry

__all__ = ["SLOTS_DICT", "Outlet", "alert_sender"]

SLOTS_DICT = "gpuserve-alerts"
"""The ``modal.Dict`` in which the containers of a workspace agree on who sends an alert."""


class Outlet:
    """One server's log, traces and alerts.

    Args:
        server: The name of the server.
        telemetry: What was declared.
        secrets: Whose values must not be seen.
        environment: The container's variables.

    Raises:
        DeclarationError: If the log's file cannot be opened.
        WebhookError: If alerts were declared and there is nowhere to send them.
    """

    def __init__(
        self,
        server: str,
        telemetry: Telemetry,
        secrets: Iterable[SecretSpec] = (),
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        redactor.add_secrets(secrets, environment)
        self._log = JsonLog(server, Path(telemetry.file) if telemetry.file is not None else None)
        self._alert_on = frozenset(telemetry.alerts.on if telemetry.alerts is not None else ())
        self._alerts = alert_sender(server, telemetry.alerts, environment) if telemetry.alerts is not None else None
        self.observers: list[Callable[[RequestRecord], None]] = []
        self.batch_observers: list[Callable[[str, BatchRecord], None]] = []
        if telemetry.requests:
            self.observers.append(self._log.put)
        if telemetry.opentelemetry:
            from gpuserve.runtime.telemetry.otel import OpenTelemetry

            self._otel = OpenTelemetry(server)
            self.observers.append(self._otel.request)
            self.batch_observers.append(self._otel.batch)
            self.shutdown: Callable[[], None] = self._otel.close
        else:
            self.shutdown = _nothing
        atexit.register(self.close)

    def event(self, event: dict[str, Any]) -> None:
        """Log *event*, and send it where its kind alarms."""
        self._log.put(event)
        if self._alerts is not None and event["event"] in self._alert_on:
            details = ", ".join(f"{name}: {value}" for name, value in event.items() if name not in {"event", "server"})
            self._alerts.send(event["event"], f"{event['event'].replace('_', ' ')} ({details})")

    def close(self) -> None:
        """Write and send what waits; what comes later is dropped."""
        atexit.unregister(self.close)
        self._log.close()
        if self._alerts is not None:
            self._alerts.close()
        self.shutdown()


def _nothing() -> None:
    """No traces, nothing to end."""


def alert_sender(server: str, alerts: Alerts | JobAlerts, environment: Mapping[str, str] = os.environ) -> AlertSender:
    """What sends the alerts of *server*.

    Raises:
        WebhookError: If there is nowhere to send them.
    """
    url = environment.get(ALERT_WEBHOOK, "")
    if not url:
        name = alerts.webhook.name
        raise WebhookError(f"{ALERT_WEBHOOK} is not set; run: modal secret create {name} {ALERT_WEBHOOK}=https://…")
    return AlertSender(url, server, per_hour=alerts.per_hour, slots=LeaseEntries(SLOTS_DICT))
