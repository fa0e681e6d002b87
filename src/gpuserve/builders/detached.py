"""A run whose driver is in Modal, seen from any machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuserve.exceptions import BatchRunError, GpuserveError
from gpuserve.runtime.batch.events import BatchReport, BatchStatus, OnEvent
from gpuserve.specs.batch import Shards

if TYPE_CHECKING:
    from gpuserve.builders.batch import BatchMapper

__all__ = ["DetachedRun", "MapperHandle"]

_LOOK_EVERY_S = 2.0


@dataclass(frozen=True)
class DetachedRun:
    """A run that goes on without this process.

    Attributes:
        call_id: Modal's id of the driver's call.
        output: Where it writes.
    """

    call_id: str
    output: Shards

    def status(self) -> BatchStatus:
        """What the ledger in the volume says; a driver commits it every few seconds.

        Raises:
            BatchRunError: If the driver has not begun yet.
        """
        from gpuserve.builders.batch import batch_status

        return batch_status(self.output)

    def wait(
        self, timeout_s: float | None = None, *, on_status: Callable[[BatchStatus], None] | None = None
    ) -> BatchReport:
        """Wait for the end, here.

        Args:
            timeout_s: Seconds to wait at most.
            on_status: Told about every two seconds how far it is.

        Raises:
            TimeoutError: If it takes longer; the run goes on.
            GpuserveError: What ended the driver, as `BatchMapper.run` would raise it.
        """
        from gpuserve.runtime.ports import call_result

        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"the run in {self.output.path} goes on after {timeout_s} s; wait() again")
            step = None if on_status is None and left is None else min(_LOOK_EVERY_S, left or _LOOK_EVERY_S)
            found = call_result(self.call_id, step)
            if isinstance(found, GpuserveError):
                raise found
            if found is not None:
                report: BatchReport = found
                return report
            if on_status is not None:
                try:
                    on_status(self.status())
                except BatchRunError:
                    continue  # the driver has not begun yet


class MapperHandle:
    """A registered mapper: all that a `BatchMapper` has, and ``run(detach=True)``."""

    def __init__(self, mapper: BatchMapper, instance: Any, declared: dict[str, Any], where: tuple[str, str]) -> None:
        self._mapper, self._instance, self._declared, self._where = mapper, instance, declared, where

    def run(self, *, detach: bool = False, on_event: OnEvent | None = None, **more: Any) -> Any:
        """Run here, as `BatchMapper.run` does; or, detached, begin it in Modal and return a `DetachedRun` at once."""
        if not detach:
            return self._mapper.run(on_event=on_event, **more)
        return self._spawned(self._output(), None, on_event, more)

    def retry_failed(self, *, detach: bool = False, on_event: OnEvent | None = None, **more: Any) -> Any:
        """Run what was given up again, as `BatchMapper.retry_failed` does; or, detached, in Modal.

        Raises:
            BatchRunError: If the run is not finished, or nothing failed.
        """
        if not detach:
            return self._mapper.retry_failed(on_event=on_event, **more)
        from gpuserve.runtime.batch.status import require_dead_letters, retried
        from gpuserve.runtime.ports import is_in_volume

        output, status = self._output(), self.status()
        require_dead_letters(status.output, finished=status.state == "finished", failed=status.failed)
        volume = str(output.volume)  # or it would not be registered
        paths = ((number, f"{output.path}/{retried(number)}") for number in itertools.count())
        number, path = next(one for one in paths if not is_in_volume(volume, f"{one[1]}/manifest.json"))
        return self._spawned(Shards(path, format=output.format, volume=volume), number, on_event, more)

    def _spawned(self, output: Shards, retry: int | None, on_event: Any, more: dict[str, Any]) -> DetachedRun:
        if on_event is not None or more:
            raise BatchRunError("a detached run tells its events to nobody; follow it with .wait(on_status=…)")
        from gpuserve.runtime.ports import spawned

        return DetachedRun(spawned(self._instance, self._where, self._declared, retry), output)

    def attach(self) -> BatchStatus:
        """What the ledger in the volume says, from any machine.

        Raises:
            BatchRunError: If there is no run.
        """
        from gpuserve.builders.batch import batch_status

        return batch_status(self._output())

    status = attach

    def _output(self) -> Shards:
        return self._mapper.declaration().output

    def __getattr__(self, name: str) -> Any:
        # what is no mapper's is Modal's: the container asks for the instance by names of its own
        return getattr(self._mapper if hasattr(self._mapper, name) else self._instance, name)
