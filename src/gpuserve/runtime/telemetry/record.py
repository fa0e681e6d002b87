"""What is known of one request, gathered while it is answered."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any

__all__ = ["CURRENT", "RequestRecord"]


class RequestRecord:
    """One request: who asked, what became of it, and what its items went through.

    Attributes:
        key: The name of the caller's key; never the key.
        begun: When it came in, by `time.perf_counter`.
        status: As answered; 499 if the caller left before.
        items: How many of its items were in batches that ran.
        queue_s: The longest that one of them waited.
        model_s: The longest that a batch with one of them ran.
        model_ended: When the last such batch ended, by `time.perf_counter`.
        batch_size: Of the largest of these batches.
        cost: The items' costs, summed: tokens, where the server's `cost` counts tokens.
        cold_start: Whether it was the first that the container answered.
        parent: The caller's ``traceparent``, if it sent one.
    """

    __slots__ = (
        "batch_size", "begun", "cold_start", "cost", "items", "key", "latency_s", "method", "model_ended", "model_s",
        "parent", "queue_s", "request_id", "route", "status",
    )  # fmt: skip

    def __init__(self, request_id: str, method: str, begun: float) -> None:
        self.request_id = request_id
        self.method = method
        self.begun = begun
        self.key = ""
        self.route = ""
        self.status = 499  # as nginx has it: the caller left before there was an answer
        self.latency_s = 0.0
        self.items = 0
        self.queue_s = 0.0
        self.model_s = 0.0
        self.model_ended = 0.0
        self.batch_size = 0
        self.cost = 0.0
        self.cold_start = False
        self.parent = ""

    def ran(self, queue_s: float, model_s: float, batch_size: int, cost: float) -> None:
        """One of its items was in a batch."""
        self.items += 1
        self.cost += cost
        self.queue_s = max(self.queue_s, queue_s)
        self.model_s = max(self.model_s, model_s)
        self.model_ended = time.perf_counter()
        self.batch_size = max(self.batch_size, batch_size)

    def as_event(self, model: str) -> dict[str, Any]:
        """As the log has it."""
        return {
            "event": "request",
            "model": model,
            "request_id": self.request_id,
            "key": self.key,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "latency_ms": round(self.latency_s * 1000, 3),
            "queue_ms": round(self.queue_s * 1000, 3),
            "model_ms": round(self.model_s * 1000, 3),
            "batch_size": self.batch_size,
            "items": self.items,
            "tokens": self.cost,
            "cold_start": self.cold_start,
        }


CURRENT: ContextVar[RequestRecord | None] = ContextVar("gpuserve_request", default=None)
"""The request that the running task answers; what its items went through is noted there."""
