"""Alerts: what happened, told to a chat's webhook, never twice as often as was asked for."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import random
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gpuserve.exceptions import GpuserveError
from gpuserve.runtime.telemetry.redact import redactor

__all__ = ["AlertSender", "AlertSlots", "LocalSlots", "WebhookError"]

_TRIES = 5
# Seconds before the second try; twice as long before each further one, and no longer than the last.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_TIMEOUT_S = 10.0
_MOST_WAITING = 100
_HOUR_S = 3600
_LONGEST_TEXT = 3000
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_TOO_MANY, _SERVER_ERROR = 429, 500


class WebhookError(GpuserveError, ValueError):
    """The webhook's address is missing or cannot be used; the message never holds it."""


class AlertSlots(Protocol):
    """The alerts that an hour has room for, shared by all who send them."""

    def put_new(self, key: str, value: tuple[str, float]) -> bool:
        """Take the slot *key* unless somebody has; whether it was taken."""


class LocalSlots:
    """The slots of this process alone."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def put_new(self, key: str, value: tuple[str, float]) -> bool:  # noqa: ARG002 (the port's)
        """Take the slot *key* unless it is taken."""
        if key in self._taken:
            return False
        self._taken.add(key)
        return True


@dataclass(frozen=True, slots=True)
class _Alert:
    kind: str
    text: str


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A webhook that sends elsewhere is not followed there: the address that was declared is the only one called."""

    def redirect_request(self, *_args: Any) -> None:
        return None


class AlertSender:
    """Sends alerts from a thread of its own.

    Args:
        url: The webhook.
        server: Whose alerts they are.
        per_hour: Alerts of one kind in an hour.
        slots: Where containers agree on who sends; a crash loop is as many containers as it is crashes.
        clock: Seconds since 1970.

    Raises:
        WebhookError: If the address is no https address (http is for loopback).
    """

    def __init__(
        self,
        url: str,
        server: str,
        *,
        per_hour: int,
        slots: AlertSlots,
        clock: Callable[[], float] = time.time,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or not (
            parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        ):
            raise WebhookError("the webhook of the alerts is not an https address; look at the secret that brings it")
        redactor.add([url])
        self._url, self._server = url, server
        self._per_hour, self._slots, self._own = per_hour, slots, LocalSlots()
        self._clock = clock
        self._waiting: queue.Queue[_Alert | None] = queue.Queue(_MOST_WAITING)
        self._leaving = threading.Event()
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._thread: threading.Thread | None = None

    def send(self, kind: str, text: str) -> None:
        """Have *text* sent, unless as many of the kind were this hour; nobody waits for it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gpuserve-alerts", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(_Alert(kind, text))
        except queue.Full:
            _told("an alert was dropped: 100 wait already")

    def close(self, timeout_s: float = 10.0) -> None:
        """Send what waits, for *timeout_s* at most, with one try each from now on."""
        if self._thread is None:
            return
        self._leaving.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (alert := self._waiting.get()) is not None:
            try:
                slot = self._slot(alert.kind)
                if slot is not None:
                    self._post(alert, last=slot == self._per_hour - 1)
            except Exception as error:  # noqa: BLE001 (an alert that cannot be sent must not end those after it)
                _told(f"an alert could not be sent: {type(error).__name__}")

    def _slot(self, kind: str) -> int | None:
        """A place among this hour's alerts of the kind; none if all are taken."""
        now = self._clock()
        for slot in range(self._per_hour):
            key = f"{self._server}/{kind}/{int(now // _HOUR_S)}/{slot}"
            try:
                taken = self._slots.put_new(key, (self._server, now))
            except Exception as error:  # noqa: BLE001 (whatever it is: then this process counts for itself)
                _told(f"alerts are counted in this container alone: {type(error).__name__}")
                self._slots = self._own
                taken = self._slots.put_new(key, (self._server, now))
            if taken:
                return slot
        _told(f"an alert of {kind} was held back: {self._per_hour} an hour are allowed")
        return None

    def _post(self, alert: _Alert, *, last: bool) -> None:
        text = redactor(f"{self._server}: {alert.text}")[:_LONGEST_TEXT]
        if last:
            text += "\n(the last of its kind this hour)"
        body = json.dumps({"text": text}).encode()
        for attempt in range(1, _TRIES + 1):
            pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempt - 1)) * random.uniform(0.8, 1.2)  # noqa: S311
            request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})  # noqa: S310
            try:
                with self._opener.open(request, timeout=_TIMEOUT_S):
                    return
            except urllib.error.HTTPError as error:
                error.close()
                fault = f"it answered {error.code}"
                if error.code != _TOO_MANY and error.code < _SERVER_ERROR:
                    _told(f"an alert could not be sent: {fault}; look at the webhook")
                    return
                asked = error.headers.get("Retry-After", "")
                pause = min(_LONGEST_PAUSE_S, float(asked)) if asked.isdigit() else pause
            except (OSError, http.client.HTTPException) as error:
                fault = type(error).__name__
            if attempt == _TRIES or self._leaving.is_set():
                _told(f"an alert could not be sent in {attempt} tries: {fault}")
                return
            self._leaving.wait(pause)


def _told(text: str) -> None:
    sys.stderr.write(f"gpuserve alerts: {redactor(text)}\n")
