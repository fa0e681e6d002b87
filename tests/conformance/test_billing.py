"""Rates, asked through the real client: what Modal's own method gives here, and `gpuserve.live_prices()`."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import modal
import pytest

import gpuserve
from gpuserve.engine import LocalEngine
from gpuserve.engine.services.billing import BillingService
from gpuserve.prices import SANDBOX_RATES, Prices


def answering(monkeypatch, service):
    """An engine that has this in the place of its rates."""
    monkeypatch.setattr("gpuserve.engine.core.BillingService", service)
    return LocalEngine()


def refused():
    with pytest.raises(gpuserve.PricesError) as error:
        gpuserve.live_prices()
    assert "Prices.listed()" in str(error.value)
    return str(error.value)


def test_modals_own_client_is_told_the_list_and_that_running_here_costs_nothing(engine):
    with engine.connected():
        rates = modal.Workspace.from_context().billing.rates()

    assert dict(rates.items()) == {**Prices.listed().rates(), **SANDBOX_RATES}
    assert rates["gpu_hour_cost_h100"] == Decimal("3.9492")
    assert "list of 2026-05-07" in str(rates)
    assert "costs nothing" in str(rates)


def test_live_prices_are_of_today_and_say_where_they_were_asked_for(engine):
    before = dt.datetime.now(dt.UTC).date().isoformat()
    with engine.connected():
        live = gpuserve.live_prices()
    after = dt.datetime.now(dt.UTC).date().isoformat()

    assert before <= live.as_of <= after
    assert (live.kind, live.source) == ("live", "Workspace.billing.rates() of local")
    assert (live.missing, live.unknown) == ((), ())
    assert live.gpus == Prices.listed().gpus


def test_prices_that_changed_change_what_fits_and_what_a_class_costs(monkeypatch):
    cheap_h100 = {"gpu_hour_cost_h100": "0.5", "gpu_hour_cost_a10g": "7", "cpu_hour_cost": "0", "mem_gib_hour_cost": 0}
    changed = Prices.of_rates(cheap_h100, as_of="2026-11-25")

    class Ranker(gpuserve.WarmModelServer):
        image = gpuserve.ImageSpec.debian("3.11")
        gpu = ("H100", "A10")
        scaling = gpuserve.Scaling(max_containers=2)
        budget = gpuserve.Budget(max_usd_per_hour=8)

    with answering(monkeypatch, lambda: BillingService(changed)) as engine, engine.connected():
        live = gpuserve.live_prices()

    assert "L4" in live.missing
    assert live.rates() == changed.rates()
    assert str(gpuserve.Gpu.fits(parameters=7e9, prices=live)) == "H100"
    assert gpuserve.hourly_cost(Ranker, live).usd == 14  # over its budget, which is compared with the list
    assert gpuserve.hourly_cost(Ranker).usd == pytest.approx(2 * 3.9492, rel=0.01)


class Odd(BillingService):
    """Answers what is no price."""

    rate = ""

    async def WorkspaceBillingRates(self, request, caller):
        reply = await super().WorkspaceBillingRates(request, caller)
        reply.rates["gpu_hour_cost_h100"] = self.rate
        return reply


@pytest.mark.parametrize(
    ("rate", "told"),
    [("-4", "gpu_hour_cost_h100 got '-4', and US dollars an hour are allowed"), ("much", "a rate that is no number")],
)
def test_an_answer_that_is_no_price_is_an_error_and_not_a_cost(monkeypatch, rate, told):
    service = type("Answering", (Odd,), {"rate": rate})
    with answering(monkeypatch, service) as engine, engine.connected():
        assert told in refused()


def test_a_server_that_has_no_rates_and_one_that_does_not_know_the_token_are_told_with_the_way_out(monkeypatch, engine):
    with answering(monkeypatch, object) as older, older.connected():
        assert "does not implement WorkspaceBillingRates" in refused()
    with engine.connected(), monkeypatch.context() as patch:
        patch.setenv("MODAL_TOKEN_SECRET", "wrong")
        assert "token missing or wrong" in refused()


def test_without_a_token_nothing_is_asked(monkeypatch, tmp_path, engine):
    with engine.connected(), monkeypatch.context() as patch:
        patch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))
        for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
            patch.delenv(name)
        assert "Token missing" in refused()


def test_a_container_is_told_them_too(run_app):
    found = run_app(
        """
        import modal
        app = modal.App("asks")

        @app.function()
        def ask():
            workspace = modal.Workspace.from_context()
            return [str(workspace.billing.rates()["gpu_hour_cost_h100"]), workspace.name]

        @app.local_entrypoint()
        def main():
            report(ask.remote())
        """
    )
    assert found == ["3.9492", "local"]
