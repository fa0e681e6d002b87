"""What Modal would charge: the list prices, so that a program which reads them runs here too."""

from __future__ import annotations

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import Caller
from gpuserve.prices import SANDBOX_RATES, Prices

__all__ = ["BillingService"]

_MARGIN = 2


class BillingService:
    """The RPC of `modal billing rates`."""

    def __init__(self, prices: Prices | None = None) -> None:
        """Answer with *prices*, or with the list."""
        self._prices = prices or Prices.listed()

    async def WorkspaceBillingRates(
        self, _request: api_pb2.WorkspaceBillingRatesRequest, _caller: Caller
    ) -> api_pb2.WorkspaceBillingRatesResponse:
        """US dollars an hour by Modal's keys, as decimal text."""
        rates = {key: f"{usd:f}" for key, usd in {**self._prices.rates(), **SANDBOX_RATES}.items()}
        return api_pb2.WorkspaceBillingRatesResponse(rates=rates, formatted=self._formatted(rates))

    def _formatted(self, rates: dict[str, str]) -> str:
        width = max(map(len, rates)) + _MARGIN
        lines = [f"{key:<{width}}{usd:>10}" for key, usd in rates.items()]
        head = (
            f"US dollars an hour: Modal's list of {self._prices.as_of} ({self._prices.source}).\n"
            f"They may have changed. Running on gpuserve's local engine costs nothing."
        )
        return "\n".join([head, "", *lines])
