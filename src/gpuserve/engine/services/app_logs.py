"""The logs of apps: followed as they are written, and fetched afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.timestamp_pb2 import Timestamp
from grpclib import Status

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.state.logs import AppLogs, LogEntry, Logs, batches
from gpuserve.engine.state.registry import Registry

__all__ = ["AppLogService"]

_Request = api_pb2.AppGetLogsRequest | api_pb2.AppFetchLogsRequest | api_pb2.AppCountLogsRequest


class AppLogService:
    """Reads `Logs` for clients."""

    def __init__(self, registry: Registry, logs: Logs) -> None:
        """Keep the tables."""
        self._registry, self._logs = registry, logs

    def _log(self, app_id: str) -> AppLogs:
        app = self._registry.apps.get(app_id)
        if app is None:
            refuse(Status.NOT_FOUND, f"app {app_id} does not exist")
        if app.state == api_pb2.APP_STATE_STOPPED:
            self._logs.finish(app_id)  # an engine that started since knows nothing of it
        return self._logs.of(app_id)

    async def AppGetLogs(
        self, request: api_pb2.AppGetLogsRequest, _caller: Caller
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        """Log entries as they are written, until the app is done or the client's time is up."""
        log = self._log(request.app_id)
        head = request.last_entry_id.partition("-")[0]
        after = int(head) if head.isdigit() else 0
        try:
            async for fresh in log.follow(after, request.timeout or None):
                for batch in batches(entry for entry in fresh if _is_wanted(entry, request)):
                    yield batch
            yield api_pb2.TaskLogsBatch(app_done=True)
        except TimeoutError:
            return

    async def AppFetchLogs(self, request: api_pb2.AppFetchLogsRequest, _caller: Caller) -> api_pb2.AppFetchLogsResponse:
        """Past log entries in a span of time, oldest first; with a limit, the newest of them."""
        found = self._between(request)
        return api_pb2.AppFetchLogsResponse(batches=batches(found[-request.limit :] if request.limit else found))

    async def AppCountLogs(self, request: api_pb2.AppCountLogsRequest, _caller: Caller) -> api_pb2.AppCountLogsResponse:
        """How many entries there are in each stretch of ``bucket_secs``."""
        width = request.bucket_secs or 60
        buckets: dict[int, api_pb2.AppCountLogsResponse.LogBucket] = {}
        for entry in self._between(request):
            start = int(entry.at // width * width)
            bucket = buckets.setdefault(
                start, api_pb2.AppCountLogsResponse.LogBucket(bucket_start_at=Timestamp(seconds=start))
            )
            if entry.source.descriptor == api_pb2.FILE_DESCRIPTOR_STDOUT:
                bucket.stdout_logs += 1
            elif entry.source.descriptor == api_pb2.FILE_DESCRIPTOR_STDERR:
                bucket.stderr_logs += 1
            else:
                bucket.system_logs += 1
        ordered = [buckets[start] for start in sorted(buckets)]
        return api_pb2.AppCountLogsResponse(app_id=request.app_id, buckets=ordered)

    def _between(self, request: api_pb2.AppFetchLogsRequest | api_pb2.AppCountLogsRequest) -> list[LogEntry]:
        since, until = request.since.ToNanoseconds() / 1e9, request.until.ToNanoseconds() / 1e9
        return [
            entry
            for entry in self._log(request.app_id).entries
            if entry.at >= since and (not until or entry.at < until) and _is_wanted(entry, request)
        ]


def _is_wanted(entry: LogEntry, request: _Request) -> bool:
    source = entry.source
    by_origin = request.file_descriptor if isinstance(request, api_pb2.AppGetLogsRequest) else request.source
    return (
        request.task_id in {"", source.task_id}
        and request.function_id in {"", source.function_id, source.bound_id}
        and request.parametrized_function_id in {"", source.bound_id}
        and request.function_call_id in {"", source.call_id}
        and by_origin in {0, source.descriptor}
        and request.search_text in entry.text
    )
