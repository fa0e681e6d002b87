"""From raw figures to lines with bars."""

from __future__ import annotations

from typing import Any

from benchmarks.record import median

__all__ = ["summary_of"]

_NAMES = {
    "plain_fastapi": "plain FastAPI",
    "lit": "LitServe",
    "ray_serve": "Ray Serve",
    "bento": "BentoML",
    "ingress": "the same through the engine's ingress",
    "asgi": "transport='asgi' through the engine",
}


def summary_of(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the table."""
    lines: list[dict[str, Any]] = []
    if "noop" in raw:
        found = raw["noop"]
        rate = {name: _rate(found[name]) for name in found}
        lines += [
            _more("no-op model, 32 clients", "plain_fastapi", rate, 0.6),
            _more("no-op model, 32 clients", "lit", rate, 3.3),
            *(_more("no-op model, 32 clients", name, rate) for name in ("ray_serve", "bento") if name in rate),
            _p99("no-op model, p99", found, "plain_fastapi", 2.0),
            *(_less(f"no-op model: {_NAMES[name]} / the container's own port", name, rate) for name in _OTHER_WAYS),
        ]
    if "embed" in raw:
        found = raw["embed"]
        alone = {name: median(values) for name, values in found["alone"].items()}
        sides = [name for name in found if name not in {"alone", "largest_difference"}]
        rate = {**{name: _rate(found[name]) for name in sides}, **alone}
        what = "MiniLM, 32 clients"
        lines += [
            _more(what, "plain_fastapi", rate, 1.8),
            _more(what, "lit", rate, 3.2),
            _p99("MiniLM, p99", found, "plain_fastapi", 0.6),
            _p99("MiniLM, p99", found, "lit", 0.6),
            _line(f"{what} / offline encode", rate["ours"], rate["encode"], "docs/s", 1.0, more=True),
            _line(f"{what} / bare matrix products", rate["ours"], rate["matmul"], "docs/s"),
            *(_less(f"MiniLM: {_NAMES[name]} / the container's own port", name, rate) for name in _OTHER_WAYS),
            _line(
                "MiniLM, one client: p50 less the model's own / 1.5 ms",
                alone["one_client_ms"] - alone["direct_ms"],
                1.5,
                "ms",
                1.0,
            ),
        ]
    return lines


_OTHER_WAYS = ("ingress", "asgi")


def _rate(rounds: list[dict[str, Any]]) -> float:
    return median([one["per_s"] for one in rounds])


def _more(what: str, peer: str, rate: dict[str, float], bar: float | None = None) -> dict[str, Any]:
    return _line(f"{what} / {_NAMES[peer]}", rate["ours"], rate[peer], "req/s", bar, more=True)


def _less(what: str, way: str, rate: dict[str, float]) -> dict[str, Any]:
    return _line(what, rate[way], rate["ours"], "req/s")


def _p99(what: str, found: dict[str, Any], peer: str, bar: float) -> dict[str, Any]:
    ours, theirs = (median([one["p99_ms"] for one in found[name]]) for name in ("ours", peer))
    return _line(f"{what} / {_NAMES[peer]}", ours, theirs, "ms", bar)


def _line(
    what: str, ours: float, floor: float, unit: str, bar: float | None = None, *, more: bool = False
) -> dict[str, Any]:
    line: dict[str, Any] = {"what": what, "ours": ours, "floor": floor, "unit": unit, "ratio": ours / floor}
    if bar is not None:
        line |= {"bar": bar, "more_is_better": more}
    return line
