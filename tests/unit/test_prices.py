"""Prices: Modal's keys to ours and back, rates that are none, and figures that follow the prices."""

from __future__ import annotations

import json
import math
import pickle
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserve import Gpu, Prices, PricesError
from gpuserve.specs.budget import HourlyCost, cost_line
from gpuserve.specs.gpu import CATALOGUE, PRICES_AS_OF

DAY = "2026-11-25"
# As `modal billing rates --json` prints them; what is no GPU of ours, core or GiB is there too.
ANSWERED = {
    "cpu_hour_cost": "0.04730",
    "cpu_hour_cost_sandbox": "0.141900",
    "gpu_hour_cost_a100_40gb": "2.10000",
    "gpu_hour_cost_a100_80gb": "2.50000",
    "gpu_hour_cost_a10g": "1.10000",
    "gpu_hour_cost_b200": "6.25000",
    "gpu_hour_cost_z900": "9.10000",
    "gpu_hour_cost_h100": "3.95000",
    "gpu_hour_cost_h200": "4.54000",
    "gpu_hour_cost_l4": "0.80000",
    "gpu_hour_cost_l40s": "1.95000",
    "gpu_hour_cost_rtx6000": "3.03000",
    "gpu_hour_cost_t4": "0.59000",
    "mem_gib_hour_cost": "0.00800",
    "mem_gib_hour_cost_sandbox": "0.024000",
    "volume_storage_gib_month_cost": "0.09000",
}
KEYS = sorted(Prices.listed().rates())
amounts = st.floats(0, 1e6, allow_nan=False)


def of_rates(**rates):
    return Prices.of_rates(rates, as_of=DAY)


def test_the_list_is_the_catalogues_and_says_its_day_and_source():
    listed = Prices.listed()

    assert listed.gpus == {name: kind.usd_per_hour for name, kind in CATALOGUE.items()}
    assert (listed.kind, listed.as_of, listed.source) == ("list", PRICES_AS_OF, "modal.com/pricing")
    assert listed.told_of("H100") == f"list of {PRICES_AS_OF}"


def test_what_modal_answers_is_read_whole_and_a_gpu_of_tomorrow_is_named():
    live = Prices.of_rates(ANSWERED, as_of=DAY)

    assert (live.gpus["A10"], live.gpus["A100-80GB"], live.gpus["RTX-PRO-6000"]) == (1.1, 2.5, 3.03)
    assert (live.core_usd_per_hour, live.gib_usd_per_hour) == (0.0473, 0.008)
    assert (live.missing, live.unknown) == ((), ("gpu_hour_cost_z900",))
    for name, usd in Prices.listed().gpus.items():
        assert live.gpus[name] == pytest.approx(usd, rel=0.01)  # a key that means another GPU would be far off


@given(st.dictionaries(st.sampled_from(KEYS), amounts, min_size=1))
def test_rates_come_back_as_they_went_in_and_what_they_leave_out_keeps_its_list_price(rates):
    prices = Prices.of_rates(rates, as_of=DAY)

    assert {key: float(usd) for key, usd in prices.rates().items()} == rates
    assert Prices.of_rates(prices.rates(), as_of=DAY) == prices
    assert Prices.of_rates(json.loads(json.dumps(prices.rates(), default=str)), as_of=DAY) == prices
    assert pickle.loads(pickle.dumps(prices)) == prices
    listed = Prices.listed()
    assert all(prices.gpus[name] == listed.gpus[name] for name in prices.missing if name in listed.gpus)
    assert len(prices.missing) == len(KEYS) - len(rates)


@given(
    st.sampled_from(KEYS),
    st.sampled_from([-0.01, math.nan, math.inf, "-3", "free", "", None, True, [3.95], Decimal("sNaN"), 10**400]),
)
def test_a_rate_that_is_no_amount_of_money_is_refused_by_its_key(key, value):
    with pytest.raises(PricesError) as refused:
        Prices.of_rates({**ANSWERED, key: value}, as_of=DAY)

    assert f"{key} got {str(value)[:80]!r}, and US dollars an hour are allowed" in str(refused.value)
    assert "Prices.listed()" in str(refused.value)


def test_every_bad_rate_is_told_at_once_and_one_of_what_nobody_asks_for_is_no_matter():
    with pytest.raises(PricesError) as refused:
        of_rates(gpu_hour_cost_h100="-1", cpu_hour_cost="?", mem_gib_hour_cost="inf")
    assert all(key in str(refused.value) for key in ("gpu_hour_cost_h100", "cpu_hour_cost", "mem_gib_hour_cost"))
    assert of_rates(gpu_hour_cost_h100="4", cpu_hour_cost_sandbox="?").gpus["H100"] == 4


@pytest.mark.parametrize("rates", [{}, {"h100": "3.95"}])
def test_rates_that_name_nothing_known_are_not_taken_for_live_prices(rates):
    with pytest.raises(PricesError, match="and none of gpu_hour_cost_t4"):
        Prices.of_rates(rates, as_of=DAY)


def test_prices_that_are_put_together_by_hand_are_checked_too():
    with pytest.raises(PricesError, match="gpus has no T4"):
        Prices({"H100": 3.0}, 0.05, 0.008, DAY)
    with pytest.raises(PricesError, match="core_usd_per_hour got '-1'"):
        Prices(Prices.listed().gpus, -1, 0.008, DAY)
    with pytest.raises(PricesError, match="as_of got 'today', and a day is allowed"):
        Prices.of_rates(ANSWERED, as_of="today")


@pytest.mark.parametrize("ask", [lambda it: Gpu.fits(parameters=1e9, prices=it), lambda it: HourlyCost.of(prices=it)])
def test_rates_as_they_are_are_no_prices_and_the_way_out_is_told(ask):
    with pytest.raises(PricesError, match=r"prices got dict; write .*Prices\.of_rates"):
        ask(ANSWERED)


def test_the_cheapest_gpu_is_the_cheapest_by_the_prices_that_are_given():
    wanted = {"parameters": 7e9, "dtype": "bf16", "context": 4096, "kv_bytes_per_token": 524_288}
    l40s_for_nothing = of_rates(gpu_hour_cost_l40s="0.10", gpu_hour_cost_l4="0.80")

    assert str(Gpu.fits(**wanted)) == "L4"
    assert str(Gpu.fits(**wanted, prices=Prices.listed())) == "L4"
    assert str(Gpu.fits(**wanted, prices=l40s_for_nothing)) == "L40S"


@given(st.fixed_dictionaries(dict.fromkeys(KEYS, st.floats(0.001, 100))), st.floats(1e7, 4e11))
def test_whatever_the_prices_nothing_that_holds_the_model_is_cheaper(rates, parameters):
    prices = Prices.of_rates(rates, as_of=DAY)

    found = Gpu.fits(parameters=parameters, prices=prices)
    needed_gib = parameters * 2 / 2**30
    assert found.usable_gib >= needed_gib
    for kind in CATALOGUE.values():
        for count in (one for one in (1, 2, 4, 8) if one <= kind.max_count):
            other = Gpu(kind, count)
            assert other.usable_gib < needed_gib or other.usd_per_hour_at(prices) >= found.usd_per_hour_at(prices)


def test_what_a_class_costs_and_which_of_its_gpus_is_the_dearest_follow_the_prices():
    gpus = ("H100", "A100-80GB")
    live = of_rates(gpu_hour_cost_h100="1", gpu_hour_cost_a100_80gb="9", cpu_hour_cost="8", mem_gib_hour_cost="16")

    cost = HourlyCost.of(gpus=gpus, cpu=2, memory_mib=1024, max_containers=3, prices=live)

    assert cost.usd == pytest.approx(3 * (9 + 2 * 8 + 16))
    assert str(cost) == f"up to $123.00 an hour (3 containers of A100-80GB, live prices of {DAY})"
    assert HourlyCost.of(gpus=gpus).gpu == "H100"


def test_a_figure_says_what_of_it_is_by_the_list_all_the_same():
    live = of_rates(gpu_hour_cost_h100="1", cpu_hour_cost="0.05", mem_gib_hour_cost="0.01")

    assert str(HourlyCost.of(gpus=("H100",), prices=live)).endswith(f"live prices of {DAY})")
    l4 = HourlyCost.of(gpus=("L4",), prices=live)
    assert str(l4).endswith(f"live prices of {DAY}, L4 by the list of {PRICES_AS_OF})")
    assert cost_line("both", {"A": HourlyCost.of(gpus=("L4",)), "B": l4}).count(f"list of {PRICES_AS_OF}") == 2
