"""What a declaration can cost an hour, by the list or live, and a limit that it must keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from gpuserve.prices import PRICES_AS_OF, Prices, prices_or_listed
from gpuserve.specs.base import Spec
from gpuserve.specs.gpu import Gpu

__all__ = ["Budget", "HourlyCost", "cost_line"]

# Source: Modal's guide to resources: what a container reserves that says nothing.
_LEAST_CORES, _LEAST_MIB = 0.125, 128
_MIB_A_GIB = 1024
# Source: Modal's guides to regions and preemption: both raise the base price; the factors are the dearest given there.
_REGION_FACTOR, _NONPREEMPTIBLE_FACTOR = 1.75, 3.0


@dataclass(frozen=True, slots=True)
class HourlyCost:
    """The most that one class can cost in an hour.

    Attributes:
        usd: US dollars.
        containers: That may run at once.
        gpu: The dearest that they may have.
        priced: By which prices, and of which day.

    Examples:
        >>> cost = HourlyCost.of(gpus=("H100", "A100-80GB"), max_containers=2)
        >>> f"{cost.usd:.2f}", cost.containers
        ('7.91', 2)
        >>> dearer = Prices.of_rates({"gpu_hour_cost_h100": 8, "gpu_hour_cost_a100_80gb": 5}, as_of="2026-11-25")
        >>> print(HourlyCost.of(gpus=("H100", "A100-80GB"), prices=dearer))
        up to $8.01 an hour (1 container of H100, live prices of 2026-11-25, cpu and memory by the list of 2026-05-07)
    """

    usd: float
    containers: int
    gpu: str
    priced: str = f"list of {PRICES_AS_OF}"

    @classmethod
    def of(
        cls,
        *,
        gpus: tuple[str, ...] = (),
        cpu: float | None = None,
        memory_mib: int | None = None,
        max_containers: int = 1,
        parameter_sets: int = 1,
        region: bool = False,
        nonpreemptible: bool = False,
        prices: Prices | None = None,
    ) -> HourlyCost:
        """Price every container that may run at once, with the dearest of the GPUs.

        Args:
            gpus: As declared, in the order of preference.
            cpu: Physical cores reserved.
            memory_mib: Memory reserved.
            max_containers: Of one pool.
            parameter_sets: Pools: each set of ``modal.parameter`` values is one.
            region: Whether a region was chosen, which raises the price.
            nonpreemptible: Whether the container may not be preempted, which raises it more.
            prices: E.g. ``gpuserve.live_prices()``; the list unless given.

        Raises:
            PricesError: If *prices* are none.
        """
        prices = prices_or_listed(prices)
        choices = [Gpu.parse(text) for text in gpus]
        dearest = max(choices, key=lambda one: one.usd_per_hour_at(prices), default=None)
        each = (dearest.usd_per_hour_at(prices) if dearest else 0.0) + (
            max(cpu or 0.0, _LEAST_CORES) * prices.core_usd_per_hour
            + max(memory_mib or 0, _LEAST_MIB) / _MIB_A_GIB * prices.gib_usd_per_hour
        )
        each *= (_REGION_FACTOR if region else 1.0) * (_NONPREEMPTIBLE_FACTOR if nonpreemptible else 1.0)
        containers = max_containers * parameter_sets
        priced = prices.told_of(*([dearest.kind.name] if dearest else []), "cpu", "memory")
        return cls(each * containers, containers, str(dearest) if dearest else "", priced)

    def __str__(self) -> str:
        """One line, for people."""
        many = f"{self.containers} container{'s' if self.containers != 1 else ''}"
        return f"up to ${self.usd:,.2f} an hour ({many}{f' of {self.gpu}' if self.gpu else ''}, {self.priced})"


def cost_line(app: str, costs: Mapping[str, HourlyCost]) -> str:
    """What an app can cost, in one line: the sum, and what each part of it adds.

    Examples:
        >>> one = HourlyCost.of(gpus=("L4",))
        >>> print(cost_line("reviews", {"Reviews": one}))
        reviews can cost up to $0.81 an hour (1 container of L4, list of ...)
        >>> print(cost_line("reviews", {"Reviews": one, "Ranker": HourlyCost.of(gpus=("L4",), max_containers=2)}))
        reviews can cost up to $2.42 an hour (Reviews $0.81, Ranker $1.61, list of ...)
    """
    if len(costs) == 1:
        return f"{app} can cost {next(iter(costs.values()))}"
    parts = ", ".join(f"{name} ${cost.usd:,.2f}" for name, cost in costs.items())
    total = sum(cost.usd for cost in costs.values())
    priced = ", ".join(dict.fromkeys(cost.priced for cost in costs.values()))
    return f"{app} can cost up to ${total:,.2f} an hour ({parts}, {priced})"


class Budget(Spec):
    """A limit on what a class can cost while everything that it may start runs.

    A declaration that could cost more is refused when it is made, **at list prices**: the same class is then allowed or
    refused on every machine and every day, without an account. What it costs at today's prices:
    ``gpuserve.hourly_cost(MyServer, gpuserve.live_prices())``.

    Examples:
        >>> Budget(max_usd_per_hour=10).max_usd_per_hour
        10.0
    """

    max_usd_per_hour: Annotated[float, Field(gt=0, le=1_000_000)]
    """US dollars an hour, at list prices"""

    def fault(self, cost: HourlyCost) -> str | None:
        """Why *cost* is too much, with what would fit; ``None`` if it is not."""
        if cost.usd <= self.max_usd_per_hour:
            return None
        affordable = int(self.max_usd_per_hour / (cost.usd / cost.containers))
        way_out = f"lower max_containers to {affordable}" if affordable else "choose a smaller gpu"
        return f"budget allows ${self.max_usd_per_hour:,.2f} an hour and this is {cost}; {way_out}, or raise the budget"
