"""Requests gathered into batches: a queue without I/O, and its asyncio shell."""

from __future__ import annotations

from gpuserve.runtime.batcher.queue import BatchQueue, Ticket
from gpuserve.runtime.batcher.shell import Batcher, BatchRecord

__all__ = ["BatchQueue", "BatchRecord", "Batcher", "Ticket"]
