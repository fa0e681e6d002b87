"""How a run went, as one HTML file that needs nothing else: figures, a plot of throughput, files with their digests."""

from __future__ import annotations

import html
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

from gpuserve.runtime.batch.events import BatchReport
from gpuserve.tools.batch.wording import duration, finished_lines, plain

__all__ = ["batch_report_html", "rates", "ticks", "write_batch_report"]

_COLUMNS = 120
_WIDTH, _HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 40
_MOST_FILES = 1000

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2130; --soft: #5b6478; --paper: #f7f8fb; --card: #fff; --line: #e1e5ee;
  --accent: #3451c6; --tint: #c9d3f7; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e9ecf5; --soft: #a3acc2; --paper: #10131a; --card: #181c26;
  --line: #2a3040; --accent: #93a9ff; --tint: #2c3a6e; --bad: #ff8a80 } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 50rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p { margin: .25rem 0 } .soft { color: var(--soft) } .bad { color: var(--bad) }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1.25rem 0 }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .6rem .8rem }
dt { color: var(--soft); font-size: .85rem } dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums }
svg { width: 100%; height: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem }
svg text { fill: var(--soft); font-size: 12px } .grid { stroke: var(--line) } .area { fill: var(--tint) }
.rate { fill: none; stroke: var(--accent); stroke-width: 1.5 } .mean { stroke: var(--bad); stroke-dasharray: 4 4 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid var(--line) }
td.n, th.n { text-align: right }
code { font-size: .8rem; overflow-wrap: anywhere }
"""


def rates(throughput: Sequence[tuple[float, int]], columns: int = _COLUMNS) -> list[tuple[float, float, float]]:
    """Items a second between the moments that were told, in at most *columns* spans of about equal length.

    Args:
        throughput: Seconds since the start, and items answered by then.
        columns: How many spans at most.

    Returns:
        For each span its first second, its last, and its rate. Rate times length, added up, is what was answered.

    Examples:
        >>> rates([(0.0, 0), (1.0, 100), (2.0, 300)])
        [(0.0, 1.0, 100.0), (1.0, 2.0, 200.0)]
    """
    points = [one for place, one in enumerate(throughput) if place == 0 or one[0] > throughput[place - 1][0]]
    if throughput and points[-1][1] != throughput[-1][1]:
        points[-1] = points[-1][0], throughput[-1][1]
    step = max(1, math.ceil((len(points) - 1) / columns))
    kept = points[::step] if (len(points) - 1) % step == 0 else [*points[::step], points[-1]]
    return [
        (start, end, (after - before) / (end - start)) for (start, before), (end, after) in itertools.pairwise(kept)
    ]


def ticks(largest: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to *largest*, about *count* of them.

    Examples:
        >>> ticks(830)
        [0.0, 200.0, 400.0, 600.0, 800.0]
    """
    if not largest > 0 or not math.isfinite(largest):
        return [0.0]
    rough = largest / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in (1, 2, 5, 10) if power * one >= rough * 0.999)
    return [place * step for place in range(int(largest / step * (1 + 1e-9)) + 1)]


def batch_report_html(report: BatchReport) -> str:
    """The page of a run's *report*.

    It runs no script and loads nothing; what came from items and errors is shown as text.
    """
    headline, *more = finished_lines(report)
    failed = ' class="bad"' if report.failed else ""
    facts = [
        ("committed", f"{report.done:,}" + (f" of {report.total:,}" if report.total is not None else ""), ""),
        ("given up", f"{report.failed:,}", failed),
        ("this driver", duration(report.elapsed_s), ""),
        ("throughput", f"{report.items_per_s:,.1f}/s", ""),
        ("batches again", f"{report.retries:,}", ""),
        ("cost", f"${report.cost_usd:,.4f}" if report.cost_usd is not None else "no price known", ""),
    ]
    cards = "".join(f"<div><dt>{name}</dt><dd{style}>{value}</dd></div>" for name, value, style in facts)
    notes = "".join(f"<p>{html.escape(line)}</p>" for line in more)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{html.escape(plain(report.run_id))}: {html.escape(plain(report.status))}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{html.escape(plain(report.output))}</h1>
<p class="soft">run {html.escape(plain(report.run_id))}</p>
<p>{html.escape(headline)}</p>
{notes}
<dl>{cards}</dl>
<h2>Throughput</h2>
{_plot(report)}
<h2>Files</h2>
{_files(report)}
</main>
</body>
</html>
"""


def write_batch_report(report: BatchReport, path: str | Path) -> Path:
    """Write the page of *report* to *path*, whole or not at all; the path.

    Examples:
        >>> import gpuserve, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mapper = gpuserve.BatchMapper(target=lambda batch: batch, source=["a"], output=f"{folder}/out")
        ...     gpuserve.write_batch_report(mapper.run(), f"{folder}/report.html").name
        'report.html'
    """
    target = Path(path)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    fresh.write_text(batch_report_html(report), encoding="utf-8")
    fresh.replace(target)
    return target


def _plot(report: BatchReport) -> str:
    spans = rates(report.throughput)
    if not spans:
        return '<p class="soft">The run was too short for a plot.</p>'
    longest, highest = spans[-1][1], max(rate for _, _, rate in spans) or 1.0

    def x(seconds: float) -> float:
        return round(_LEFT + seconds / longest * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(rate: float) -> float:
        return round(_HEIGHT - _BOTTOM - rate / highest * (_HEIGHT - _TOP - _BOTTOM), 1)

    line = " ".join(f"{x(start)},{y(rate)} {x(end)},{y(rate)}" for start, end, rate in spans)
    answered = sum((end - start) * rate for start, end, rate in spans)
    mean = answered / (longest - spans[0][0])
    floor = y(0)
    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(at)}" y2="{y(at)}"/>'
        f'<text x="{_LEFT - 6}" y="{y(at) + 4}" text-anchor="end">{at:,g}</text>'
        for at in ticks(highest)
    )
    times = "".join(
        f'<text x="{x(at)}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{at:,g}</text>' for at in ticks(longest)
    )
    told = f"Items a second over {duration(longest)}: {mean:,.1f} on average, {highest:,.1f} at most"
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(told)}">{grid}{times}'
        f'<polygon class="area" points="{x(spans[0][0])},{floor} {line} {x(longest)},{floor}"/>'
        f'<polyline class="rate" points="{line}"/>'
        f'<line class="mean" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(mean)}" y2="{y(mean)}"/>'
        f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">seconds since this driver began</text></svg>'
        f'<p class="soft">{html.escape(told)} (dashed: the average).</p>'
    )


def _files(report: BatchReport) -> str:
    if not report.shards:
        return '<p class="soft">None yet.</p>'
    rows = "".join(
        f'<tr><td>{html.escape(plain(one.name))}</td><td class="n">{one.rows:,}</td><td class="n">{one.bytes:,}</td>'
        f"<td><code>{html.escape(one.sha256)}</code></td></tr>"
        for one in report.shards[:_MOST_FILES]
    )
    more = len(report.shards) - _MOST_FILES
    rest = f'<p class="soft">and {more:,} more, all in manifest.json</p>' if more > 0 else ""
    head = '<tr><th>file</th><th class="n">items</th><th class="n">bytes</th><th>sha256</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>{rest}"
