"""What the containers of a map know together: counters, sets of what was seen, rate limits, progress.

Each is one ``modal.Dict`` that every container, the driver and any later process find by name. A Dict has one atomic
operation, to store a key *unless it is there*, and all four are built on it or on keys that one writer alone writes.
Entries vanish after seven days in which nobody read or wrote them, so that this is state for a run, not a record.
"""

from __future__ import annotations

from gpuserve.runtime.state.counter import Counter
from gpuserve.runtime.state.entries import Entries, MemoryEntries
from gpuserve.runtime.state.progress import Progress, ProgressReport
from gpuserve.runtime.state.rate_limiter import RateLimiter
from gpuserve.runtime.state.seen_set import SeenSet

__all__ = ["Counter", "Entries", "MemoryEntries", "Progress", "ProgressReport", "RateLimiter", "SeenSet"]
