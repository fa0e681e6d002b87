"""What a server tells of itself, and whom it alarms."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gpuserve.specs.base import Spec
from gpuserve.specs.secret import SecretSpec

__all__ = ["ALERT_WEBHOOK", "Alerts", "Telemetry"]

ALERT_WEBHOOK = "GPUSERVE_ALERT_WEBHOOK"
"""The variable with the address that alerts are sent to; it is a secret."""

AlertKind = Literal["start_failed", "item_failed", "stopped", "warning"]


class Alerts(Spec):
    """Messages to a chat, by a webhook that takes Slack's ``{"text": …}``.

    Examples:
        >>> Alerts(webhook=SecretSpec(name="slack")).on
        ('start_failed', 'item_failed')
    """

    webhook: SecretSpec
    """the secret that brings GPUSERVE_ALERT_WEBHOOK, an https address"""
    on: Annotated[tuple[AlertKind, ...], Field(min_length=1)] = ("start_failed", "item_failed")
    """what is told: start_failed, item_failed (the model raised on an item), stopped, warning"""
    per_hour: Annotated[int, Field(ge=1, le=60)] = 4
    """alerts of one kind in an hour, over all containers, 1 to 60; what comes past them is counted in the log"""


class Telemetry(Spec):
    """What a server writes of itself: one line of JSON a request and an event, traces where asked for, alerts.

    A line never holds a key, an input or an output; the values of declared secrets are blotted out.

    Examples:
        >>> Telemetry().requests
        True
        >>> Telemetry(file="/logs/requests.jsonl", alerts=Alerts(webhook=SecretSpec(name="slack"))).opentelemetry
        False
    """

    requests: bool = True
    """whether each request has its line"""
    file: Annotated[str | None, Field(max_length=4096)] = None
    """the file that lines are added to, by its absolute path; the container's own log unless given"""
    opentelemetry: bool = False
    """whether traces and metrics go to OpenTelemetry; the image needs gpuserve[otel]"""
    alerts: Alerts | None = None
    """whom to tell of failures, e.g. Alerts(webhook=SecretSpec(name='slack'))"""

    @field_validator("file")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and (not value.startswith("/") or ".." in value.split("/") or "\0" in value):
            raise ValueError("is not a file's absolute path; write one such as '/logs/requests.jsonl'")
        return value
