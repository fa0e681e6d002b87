"""What a class can cost an hour at given prices, whatever kind of class it is."""

from __future__ import annotations

import modal
import pytest

import gpuserve
from gpuserve import Budget, ImageSpec, Prices, Scaling

TEN = {"gpu_hour_cost_h100": 10, "gpu_hour_cost_l4": 1, "cpu_hour_cost": 0, "mem_gib_hour_cost": 0}
PRICES = Prices.of_rates(TEN, as_of="2026-11-25")


class Nightly(gpuserve.ScheduledJob):
    schedule = gpuserve.Schedule.cron("0 2 * * *", zone="UTC")
    image, gpu, max_containers = ImageSpec.debian(), "H100", 2

    def run(self, run):
        """Nothing."""


class Tune(gpuserve.FineTuneJob):
    image, gpu = ImageSpec.debian(), "H100"
    base = gpuserve.HubSource("org/model", revision="0" * 40)
    dataset = gpuserve.FileDataset("/root/rows.jsonl")


def cost(target, prices=PRICES):
    return gpuserve.hourly_cost(target, prices).usd


def server(name="Served", **declared):
    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[int]:
        return batch

    body = {"image": ImageSpec.debian(), "gpu": "L4", "predict": predict, **declared}
    return type(name, (gpuserve.WarmModelServer,), body)


def test_a_server_costs_the_same_registered_or_not_over_http_alone_or_not():
    app = modal.App("unsent")
    plain = server(scaling=Scaling(max_containers=3))
    assert cost(plain) == 3
    assert cost(gpuserve.register(app)(plain)) == 3
    alone = server("Alone", http=gpuserve.Http(transport="server", keys=None), scaling=Scaling(max_containers=4))
    assert cost(gpuserve.register(app)(alone)) == 4
    assert cost(gpuserve.register(app, gpu="H100")(server("Dearer"))) == 10
    assert str(gpuserve.hourly_cost(plain)).endswith("list of 2026-05-07)")


def test_a_job_and_a_fine_tuning_are_priced_too():
    app = modal.App("unsent")
    assert (cost(Nightly), cost(Tune)) == (20, 10)
    assert cost(gpuserve.register(app)(Nightly)) == 20
    assert cost(gpuserve.register(app)(Tune)) == 10


def test_a_pool_with_other_options_has_a_cost_of_its_own():
    served = gpuserve.register(modal.App("unsent"))(server(scaling=Scaling(max_containers=3)))

    other = served.with_options(gpu="H100", max_containers=2)

    assert (cost(served), cost(other)) == (3, 20)
    assert cost(other.with_options(max_containers=5)) == 50
    assert cost(other.with_options(max_containers=None, timeout=100)) == 20


def test_a_budget_is_compared_with_the_list_and_no_price_of_today_changes_that():
    served = server(budget=Budget(max_usd_per_hour=0.9))
    dear = Prices.of_rates({"gpu_hour_cost_l4": 1000}, as_of="2026-11-25")

    assert cost(served, dear) > 1000
    assert gpuserve.register(modal.App("unsent"))(served)


@pytest.mark.parametrize("target", [None, "Served", 3, dict, object(), modal.App("x")])
def test_what_has_no_cost_is_refused_with_what_has(target):
    with pytest.raises(gpuserve.DeclarationError, match="write a WarmModelServer, FineTuneJob or ScheduledJob class"):
        gpuserve.hourly_cost(target)


def test_an_instance_of_a_registered_class_is_refused_in_favour_of_the_class():
    served = gpuserve.register(modal.App("unsent"))(server())
    with pytest.raises(gpuserve.DeclarationError, match="and not its instance"):
        gpuserve.hourly_cost(served())
