"""`gpuserve prices`, and modal's own `billing rates` on the engine."""

from __future__ import annotations

from gpuserve.prices import SANDBOX_RATES, Prices
from gpuserve.specs.gpu import CATALOGUE


def test_the_catalogue_needs_no_account_and_no_engine(cli):
    told = cli("prices").stdout

    for kind in CATALOGUE.values():
        line = next(line.split() for line in told.splitlines() if line.split()[:1] == [kind.name])
        assert line[1:] == [str(kind.memory_gib), str(kind.max_count), f"${kind.usd_per_hour:.4f}"]
    assert "a physical core" in told
    assert "the list: modal.com/pricing, 2026-05-07" in told
    assert "live" not in told
    assert not cli.home.exists()
    facts = cli.json("prices")
    assert facts["live"] is None
    assert {one["name"]: one["list_usd_per_hour"] for one in facts["prices"]} == {
        **Prices.listed().gpus,
        "cpu": 0.04716,
        "memory": 0.007992,
    }


def test_live_prices_stand_beside_the_list_with_the_difference_and_where_they_are_from(up):
    environment = up.json("local", "env")

    told = up("prices", "--live", **environment).stdout

    assert "difference" in told
    assert "live: Workspace.billing.rates() of local" in told
    h100 = next(line.split() for line in told.splitlines() if line.split()[:1] == ["H100"])
    assert h100 == ["H100", "80", "8", "$3.9492", "$3.9492", "+0.0%"]


def test_live_prices_of_the_local_engine_start_one_and_leave_none(cli):
    facts = cli.json("prices", "--live", "--local")

    assert facts["live"]["source"] == "Workspace.billing.rates() of local"
    assert all(one["live_usd_per_hour"] == one["list_usd_per_hour"] for one in facts["prices"])
    assert cli.processes() == []
    assert "the local engine answers with the list" in cli("prices", "--live", "--local").stdout


def test_who_cannot_be_asked_is_told_once_with_the_way_out_and_code_1(cli):
    nobody = {"MODAL_TOKEN_ID": None, "MODAL_TOKEN_SECRET": None, "MODAL_CONFIG_PATH": str(cli.folder / "none.toml")}

    told = cli.refused("prices", "--live", code=1, **nobody)

    assert "Token missing" in told
    assert "Prices.listed()" in told
    assert "--live --local" in cli.refused("prices", "--local")


def test_modals_own_command_prints_the_list(up):
    rates = up.json("local", "billing", "rates")

    assert rates == {key: f"{usd:f}" for key, usd in {**Prices.listed().rates(), **SANDBOX_RATES}.items()}
    told = up("local", "billing", "rates").stdout
    assert "list of 2026-05-07" in told
    assert "costs nothing" in told
    assert "gpu_hour_cost_h100" in told
