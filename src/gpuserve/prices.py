"""What an hour of a GPU, a core and a GiB costs: by Modal's list, or by the rates that a workspace is asked for."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Self

from gpuserve.exceptions import PricesError

__all__ = ["LIST_SOURCE", "PRICES_AS_OF", "SANDBOX_RATES", "Prices", "prices_or_listed"]

# The day that the list prices below were read; `gpuserve` never changes them by itself.
PRICES_AS_OF = "2026-05-07"
LIST_SOURCE = "modal.com/pricing"

# Source: LIST_SOURCE on that day, which gives prices a second; here an hour, in US dollars.
_LISTED = {
    "T4": 0.5904,
    "L4": 0.7992,
    "A10": 1.1016,
    "L40S": 1.9512,
    "A100-40GB": 2.0988,
    "A100-80GB": 2.4984,
    "RTX-PRO-6000": 3.0312,
    "H100": 3.9492,
    "H200": 4.5396,
    "B200": 6.2496,
}
_CORE_USD_PER_HOUR = 0.04716  # a physical core: 0.0000131 a second
_GIB_USD_PER_HOUR = 0.007992  # 0.00000222 a second

# Source: the keys that `modal billing rates --json` prints, modal 1.5.4 and later.
_GPU_KEY = "gpu_hour_cost_"
_GPU_KEYS = {
    "T4": "gpu_hour_cost_t4",
    "L4": "gpu_hour_cost_l4",
    "A10": "gpu_hour_cost_a10g",
    "L40S": "gpu_hour_cost_l40s",
    "A100-40GB": "gpu_hour_cost_a100_40gb",
    "A100-80GB": "gpu_hour_cost_a100_80gb",
    "RTX-PRO-6000": "gpu_hour_cost_rtx6000",
    "H100": "gpu_hour_cost_h100",
    "H200": "gpu_hour_cost_h200",
    "B200": "gpu_hour_cost_b200",
}
_CORE_KEY, _GIB_KEY = "cpu_hour_cost", "mem_gib_hour_cost"
_KEYS = {**_GPU_KEYS, "cpu": _CORE_KEY, "memory": _GIB_KEY}

SANDBOX_RATES: Mapping[str, Decimal] = {
    "cpu_hour_cost_sandbox": Decimal("0.141912"),
    "mem_gib_hour_cost_sandbox": Decimal("0.024012"),
}
"""What Modal's rates name of sandboxes, by the list: nothing here has one, but who reads rates may ask for it."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What an hour costs in US dollars, in the cheapest region, preemptible.

    `Prices.listed` needs no account; `gpuserve.live_prices` asks the workspace.

    Attributes:
        gpus: One GPU of each kind, without CPU and memory, by Modal's names.
        core_usd_per_hour: A physical core.
        gib_usd_per_hour: A GiB of memory.
        as_of: The day that they are of, as in ``"2026-11-25"``.
        kind: ``"list"`` or ``"live"``.
        source: Where they were read.
        missing: What the rates did not name, and keeps its list price: GPUs, ``"cpu"``, ``"memory"``.
        unknown: GPUs that the rates name and this release does not know, by the keys of the rates.

    Raises:
        PricesError: If a price is no amount of money, or a GPU has none.

    Examples:
        >>> Prices.listed().gpus["H100"]
        3.9492
        >>> live = Prices.of_rates({"gpu_hour_cost_h100": "3.95", "cpu_hour_cost": "0.0473"}, as_of="2026-11-25")
        >>> live.gpus["H100"], live.gpus["L4"], "L4" in live.missing
        (3.95, 0.7992, True)
        >>> live.told_of("L4")
        'live prices of 2026-11-25, L4 by the list of 2026-05-07'
    """

    gpus: Mapping[str, float]
    core_usd_per_hour: float
    gib_usd_per_hour: float
    as_of: str
    kind: Literal["list", "live"] = "live"
    source: str = "Workspace.billing.rates()"
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = {**self.gpus, "core_usd_per_hour": self.core_usd_per_hour, "gib_usd_per_hour": self.gib_usd_per_hour}
        faults = [*_amount_faults(given), *_date_faults(self.as_of)]
        without = [name for name in _LISTED if name not in self.gpus]
        if without:
            faults.append(
                f"gpus has no {', '.join(without)}; begin with Prices.listed().gpus, or write Prices.of_rates(…)"
            )
        if faults:
            raise PricesError(f"these are no prices: {'; '.join(faults)}")
        object.__setattr__(self, "gpus", {name: float(usd) for name, usd in self.gpus.items()})
        for name in ("core_usd_per_hour", "gib_usd_per_hour"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @classmethod
    def listed(cls) -> Self:
        """The list prices of `PRICES_AS_OF`, which came with this release."""
        return cls(dict(_LISTED), _CORE_USD_PER_HOUR, _GIB_USD_PER_HOUR, PRICES_AS_OF, "list", LIST_SOURCE)

    @classmethod
    def of_rates(cls, rates: Mapping[str, Any], *, as_of: str, source: str = "Workspace.billing.rates()") -> Self:
        """The prices that rates of Modal's say.

        Args:
            rates: US dollars an hour by Modal's keys, e.g. ``{"gpu_hour_cost_h100": Decimal("3.95")}``: what
                ``workspace.billing.rates()`` gives, or what ``modal billing rates --json`` prints.
            as_of: The day that they are of, as in ``"2026-11-25"``.
            source: Where they were read, for people.

        Raises:
            PricesError: With every rate that is no amount of money, or if no key is known.
        """
        named = dict(rates.items())  # modal's own mapping leaves deprecated keys out only so
        used = {name: named[key] for name, key in _KEYS.items() if key in named}
        faults = [*_amount_faults({_KEYS[name]: value for name, value in used.items()}), *_date_faults(as_of)]
        if not used:
            got = ", ".join(map(str, named)) or "nothing"
            faults.append(f"rates got {got}, and none of {', '.join(_KEYS.values())}")
        if faults:
            raise PricesError(f"these rates cannot be used: {'; '.join(faults)}. The list: gpuserve.Prices.listed()")
        amounts = {name: float(value) for name, value in used.items()}
        return cls(
            {name: amounts.get(name, usd) for name, usd in _LISTED.items()},
            amounts.get("cpu", _CORE_USD_PER_HOUR),
            amounts.get("memory", _GIB_USD_PER_HOUR),
            as_of,
            source=source,
            missing=tuple(name for name in _KEYS if name not in used),
            unknown=tuple(sorted(key for key in named if key.startswith(_GPU_KEY) and key not in _GPU_KEYS.values())),
        )

    def rates(self) -> dict[str, Decimal]:
        """The same by Modal's keys; what the rates did not name is left out."""
        usd = {**self.gpus, "cpu": self.core_usd_per_hour, "memory": self.gib_usd_per_hour}
        return {key: Decimal(repr(usd[name])) for name, key in _KEYS.items() if name not in self.missing}

    def told_of(self, *names: str) -> str:
        """What a figure that was made from the prices of *names* says of them, as in ``"list of 2026-05-07"``."""
        told = f"list of {self.as_of}" if self.kind == "list" else f"live prices of {self.as_of}"
        missing = [name for name in names if name in self.missing]
        return f"{told}, {' and '.join(missing)} by the list of {PRICES_AS_OF}" if missing else told


def prices_or_listed(prices: Prices | None) -> Prices:
    """What was given, or the list.

    Raises:
        PricesError: If it is something else, such as rates as they are.
    """
    if prices is None:
        return Prices.listed()
    if not isinstance(prices, Prices):
        raise PricesError(
            f"prices got {type(prices).__name__}; write gpuserve.live_prices(), gpuserve.Prices.listed(), or "
            f"gpuserve.Prices.of_rates(rates, as_of='…') of what Modal's rates are"
        )
    return prices


def _amount_faults(amounts: Mapping[str, Any]) -> Iterator[str]:
    for name, value in amounts.items():
        try:
            usd = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            usd = math.nan
        if not (math.isfinite(usd) and usd >= 0):
            yield f"{name} got {str(value)[:80]!r}, and US dollars an hour are allowed, 0 or more, as in '3.95'"


def _date_faults(as_of: Any) -> Iterator[str]:
    try:
        dt.date.fromisoformat(as_of)
    except (TypeError, ValueError):
        yield f"as_of got {as_of!r}, and a day is allowed, as in '2026-11-25'"
