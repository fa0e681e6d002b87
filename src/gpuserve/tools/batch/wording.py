"""A run's events as lines of text. Pure."""

from __future__ import annotations

import itertools

from gpuserve.runtime.batch.events import BatchReport, BatchStatus, ItemFailed, Progress, RunStarted

__all__ = ["duration", "failed_line", "finished_lines", "plain", "progress_line", "started_line", "status_lines"]

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_LONGEST_MESSAGE = 200
_STATES = {
    "running": "is running",
    "finished": "is finished",
    "stopped": "was stopped, and can go on",
    "interrupted": "was broken off, and can go on",
}


def duration(seconds: float) -> str:
    """A time in the two units that matter.

    Examples:
        >>> [duration(one) for one in (0.4, 59, 61, 3_700, 100_000)]
        ['0 s', '59 s', '1 min 1 s', '1 h 1 min', '1 d 3 h']
    """
    whole = int(seconds)
    units = ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min"), (1, "s"))
    for (size, name), (below, its_name) in itertools.pairwise(units):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // below} {its_name}"
    return f"{whole} s"


def plain(text: str) -> str:
    """Text from an item or an error, so that it can neither steer a terminal nor fill it.

    Examples:
        >>> plain("red: " + chr(27) + "[31m") == "red: " + chr(92) + "x1b[31m", len(plain("x" * 300))
        (True, 201)
    """
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return shown if len(shown) <= _LONGEST_MESSAGE else f"{shown[:_LONGEST_MESSAGE]}…"


def started_line(event: RunStarted) -> str:
    """What a driver begins with."""
    of = f" of {event.total:,}" if event.total is not None else ""
    failed = f" and {event.failed:,} given up" if event.failed else ""
    if event.resumed:
        return f"going on with {plain(event.output)}: {event.done:,}{of} items are committed already{failed}"
    return f"into {plain(event.output)}" + (f": {event.total:,} items" if event.total is not None else "")


def progress_line(event: Progress) -> str:
    """Where a run is, in one line; what is not known is left out.

    Examples:
        >>> print(progress_line(Progress(
        ...     done=4500, failed=2, read=6000, total=10_000, outstanding=8, items_per_s=250.0, eta_s=22.0,
        ...     cost_usd=0.0412, containers=3, retries=1, elapsed_s=18.0, at=0.0)))
        4,500 of 10,000 (45 %), 250/s, 22 s left, $0.041, 3 containers, 2 failed, 1 batch again
    """
    share = event.done / event.total if event.total else None
    parts = [
        f"{event.done:,}"
        + (f" of {event.total:,}" if event.total is not None else "")
        + (f" ({share:.0%})".replace("%", " %") if share is not None else ""),
        f"{event.items_per_s:,.0f}/s" if event.items_per_s >= _TEN else f"{event.items_per_s:.1f}/s",
    ]
    if event.eta_s is not None:
        parts.append(f"{duration(event.eta_s)} left")
    if event.cost_usd is not None:
        parts.append(f"${event.cost_usd:.3f}")
    if event.containers is not None:
        parts.append(f"{event.containers} container{'s' * (event.containers != 1)}")
    if event.failed:
        parts.append(f"{event.failed:,} failed")
    if event.retries:
        parts.append(f"{event.retries:,} batch{'es' * (event.retries != 1)} again")
    return ", ".join(parts)


_TEN = 10


def failed_line(event: ItemFailed) -> str:
    """An item that was given up."""
    times = f"{event.attempts} attempt{'s' * (event.attempts != 1)}"
    return (
        f"failed: item {plain(str(event.id))} ({plain(event.where)}) after {times}: "
        f"{plain(event.error_type)}: {plain(event.message)}"
    )


def finished_lines(report: BatchReport) -> list[str]:
    """How a driver's run ended, and what to do next."""
    how = "finished" if report.status == "finished" else f"stopped ({plain(report.reason)})"
    of = f" of {report.total:,}" if report.total is not None else ""
    cost = f", ${report.cost_usd:.3f}" if report.cost_usd is not None else ""
    again = f", {report.retries:,} batch{'es' * (report.retries != 1)} run again" if report.retries else ""
    files = f"{len(report.shards)} file{'s' * (len(report.shards) != 1)}"
    speed = f"{duration(report.elapsed_s)} at {report.items_per_s:,.1f}/s"
    lines = [f"{how}: {report.done:,}{of} items in {files}; this run {speed}{cost}{again}"]
    if report.failed:
        lines.append(f"given up: {report.failed:,}, in {plain(report.dead_letters)}")
    if report.how_to_go_on:
        lines.append(plain(report.how_to_go_on))
    return lines


def status_lines(status: BatchStatus) -> list[str]:
    """What the ledger says of a run."""
    of = f" of {status.total:,}" if status.total is not None else ""
    cost = f", ${status.cost_usd:.3f}" if status.cost_usd is not None else ""
    reason = f" ({plain(status.reason)})" if status.reason else ""
    files = f"{len(status.shards)} file{'s' * (len(status.shards) != 1)}"
    work = f"{duration(status.elapsed_s)} of work{cost}"
    committed = f"{status.done:,}{of} items are committed in {files}, {status.failed:,} given up"
    return [
        f"run {plain(status.run_id)} in {plain(status.output)} {_STATES.get(status.state, status.state)}{reason}",
        f"{committed}; {work}; last driver: {plain(status.driver)}",
    ]
