"""What a run came to, for a program and for people: one value, one page of HTML with its curve, one JSON file."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from gpuserve.exceptions import DivergedError

__all__ = ["TrainingReport", "page"]

_WIDTH, _HEIGHT, _MARGIN = 720, 260, 44
_COLOURS = {"loss": "#2563eb", "eval_loss": "#d97706"}


@dataclass(frozen=True)
class TrainingReport:
    """What an attempt, or a whole run, came to.

    Attributes:
        name: The job's name, and its alias's.
        run: The run's name.
        state: ``finished``, ``continued`` (the next attempt goes on) or ``diverged``.
        step: Steps of the optimiser that are done.
        steps: Steps that there are.
        attempts: Attempts that worked on it.
        metrics: Of the evaluation at the end.
        served_metrics: Those of the adapter in service, on the same rows; empty if nothing was.
        adapter: The published snapshot's name; empty until it is published.
        promoted: Whether that is in service now.
        reason: Why it is, or is not.
        served: The snapshot in service under the job's name.
        history: Metrics by step, as they were logged.
        next_call: The id of the call that goes on, where the state is ``continued``.
        quantity: What is no number, where the state is ``diverged``.
        kept: The step of the last good checkpoint, where the state is ``diverged``.
    """

    name: str
    run: str
    state: Literal["finished", "continued", "diverged"]
    step: int
    steps: int
    attempts: int = 1
    metrics: Mapping[str, float] = field(default_factory=dict)
    served_metrics: Mapping[str, float] = field(default_factory=dict)
    adapter: str = ""
    promoted: bool = False
    reason: str = ""
    served: str = ""
    history: Sequence[Mapping[str, float]] = ()
    next_call: str = ""
    quantity: str = ""
    kept: int | None = None

    def raised(self) -> Self:
        """The same, unless it is of a run that cannot go on.

        Raises:
            DivergedError: If it diverged.
        """
        if self.state == "diverged":
            raise DivergedError(self.step, self.quantity, self.kept)
        return self

    def to_json(self) -> str:
        """As a file holds it."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

    def followed_by(self, call: str) -> Self:
        """The same, with the call that goes on."""
        return replace(self, next_call=call)


def page(report: TrainingReport) -> str:
    """One page that needs nothing else: the loss as a curve, the metrics, the gate's word.

    Examples:
        >>> text = page(TrainingReport("bot", "7", "finished", 2, 2, history=({"step": 1, "loss": 2.0},)))
        >>> "<svg" in text and "http" not in text.replace("http://www.w3.org", "")
        True
    """
    title = html.escape(f"{report.name}, run {report.run}")
    verdict = ("promoted" if report.promoted else "not promoted") if report.state == "finished" else report.state
    facts: dict[str, Any] = {
        "state": report.state,
        "steps": f"{report.step:,} of {report.steps:,}",
        "attempts": report.attempts,
        "adapter": report.adapter or "not published",
        "served alias": f"{verdict}: {report.reason}" if report.reason else verdict,
        "in service": report.served or "nothing",
    }
    lines = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    names = sorted(report.metrics)
    metrics = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{report.metrics[name]:.6g}</td>"
        f"<td>{_shown(report.served_metrics.get(name))}</td></tr>"
        for name in names
    )
    table = f"<table><tr><th></th><th>this run</th><th>in service</th></tr>{metrics}</table>" if names else ""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #111 }}
th {{ text-align: left; font-weight: 600; padding-right: 1.5rem; vertical-align: top }}
td {{ padding-right: 1.5rem; overflow-wrap: anywhere }} svg {{ width: 100%; height: auto }}
</style>
<h1>{title}</h1>
<table>{lines}</table>
<h2>Loss by step</h2>
{_curve(report.history)}
<h2>Metrics</h2>
{table or "<p>none yet</p>"}
</html>
"""


def _shown(value: float | None) -> str:
    return f"{value:.6g}" if value is not None else ""


def _curve(history: Sequence[Mapping[str, float]]) -> str:
    series = {
        name: [(one["step"], one[name]) for one in history if name in one and abs(one[name]) < float("inf")]
        for name in _COLOURS
    }
    points = [point for one in series.values() for point in one]
    if not points:
        return "<p>nothing was logged yet</p>"
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    across, up = max(right - left, 1), max(high - low, 1e-9)

    def placed(x: float, y: float) -> str:
        px = _MARGIN + (x - left) / across * (_WIDTH - 2 * _MARGIN)
        return f"{px:.1f},{_HEIGHT - _MARGIN - (y - low) / up * (_HEIGHT - 2 * _MARGIN):.1f}"

    drawn = ""
    for place, (name, found) in enumerate((name, one) for name, one in series.items() if one):
        colour = _COLOURS[name]
        path = " ".join(placed(x, y) for x, y in found)
        drawn += f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>'
        drawn += "".join(
            f'<circle fill="{colour}" r="2.5" cx="{at[0]}" cy="{at[1]}"><title>{name} {y:.4g} at step {x:g}</title>'
            f"</circle>"
            for (x, y), at in ((point, placed(*point).split(",")) for point in found)
        )
        drawn += f'<text x="{_MARGIN + 130 * place}" y="16" fill="{colour}">{name}</text>'
    base = _HEIGHT - _MARGIN
    axes = (
        f'<path d="M{_MARGIN},{_MARGIN} V{base} H{_WIDTH - _MARGIN}" fill="none" stroke="#999"/>'
        f'<text x="4" y="{_MARGIN + 5}">{high:.3g}</text><text x="4" y="{base + 5}">{low:.3g}</text>'
        f'<text x="{_MARGIN}" y="{base + 20}">{left:g}</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{base + 20}" text-anchor="end">step {right:g}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="12" role="img" '
        f'aria-label="loss by step">{axes}{drawn}</svg>'
    )
