"""The prices of today, asked of the workspace that modal's client points at."""

from __future__ import annotations

import datetime as dt
from decimal import InvalidOperation

import modal

from gpuserve.exceptions import PricesError
from gpuserve.prices import Prices

__all__ = ["live_prices"]


def live_prices() -> Prices:
    """What Modal charges this workspace now, by ``modal.Workspace.from_context().billing.rates()``.

    They are asked for at each call; keep them. The local engine answers with the list prices.

    Returns:
        `Prices` of today (UTC). What the rates do not name keeps its list price and stands in ``missing``.

    Raises:
        PricesError: If Modal cannot be asked: no token, no connection, or a server without prices; or if it answers
            what is no price.
    """
    try:
        workspace = modal.Workspace.from_context()
        rates = dict(workspace.billing.rates().items())
    except InvalidOperation as error:
        raise _unanswered("the answer has a rate that is no number") from error
    except (modal.exception.Error, OSError) as error:
        raise _unanswered(str(error).rstrip(".") or type(error).__name__) from error
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return Prices.of_rates(rates, as_of=today, source=f"Workspace.billing.rates() of {workspace.name or 'Modal'}")


def _unanswered(why: str) -> PricesError:
    return PricesError(f"live prices cannot be asked for: {why}. The list prices need no account: Prices.listed()")
