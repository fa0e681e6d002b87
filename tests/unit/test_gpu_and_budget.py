"""What holds a model, what it costs, and what is too dear to declare."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpuserve
from gpuserve import Budget, DeclarationError, Gpu, ImageSpec, Scaling
from gpuserve.specs.budget import HourlyCost
from gpuserve.specs.gpu import CATALOGUE, parse_gpu


@pytest.mark.parametrize(
    ("wanted", "gpu"),
    [
        ({"parameters": 22e6, "dtype": "fp32"}, "T4"),
        ({"parameters": 7e9, "dtype": "bf16", "context": 4096, "kv_bytes_per_token": 524_288}, "L4"),
        ({"parameters": 7e9, "dtype": "nf4"}, "T4"),
        ({"parameters": 70e9, "dtype": "bf16", "context": 8192, "kv_bytes_per_token": 327_680}, "A100-80GB:2"),
        ({"parameters": 405e9, "dtype": "fp8"}, "H200:4"),
    ],
)
def test_the_cheapest_gpu_that_holds_a_model_is_named(wanted, gpu):
    found = Gpu.fits(**wanted)
    weights = wanted["parameters"] * {"fp32": 4, "bf16": 2, "fp8": 1, "nf4": 0.5}[wanted["dtype"]]
    needed_gib = (weights + wanted.get("context", 0) * wanted.get("kv_bytes_per_token", 0)) / 2**30
    cheaper = [
        Gpu(kind, count)
        for kind in CATALOGUE.values()
        for count in (1, 2, 4, 8)
        if count <= kind.max_count and Gpu(kind, count).usd_per_hour < found.usd_per_hour
    ]
    assert found.usable_gib >= needed_gib
    assert all(one.usable_gib < needed_gib for one in cheaper)
    assert str(found) == gpu


@given(st.floats(1e6, 2e12), st.sampled_from(["bf16", "fp32", "int8", "nf4"]), st.integers(0, 100_000))
def test_a_longer_context_never_needs_a_cheaper_gpu(parameters, dtype, context):
    def price(tokens: int) -> float:
        try:
            return Gpu.fits(parameters=parameters, dtype=dtype, context=tokens).usd_per_hour
        except DeclarationError:
            return float("inf")

    assert price(context) <= price(context * 2)


def test_what_nothing_holds_and_what_means_nothing_is_refused_with_the_way_out():
    with pytest.raises(DeclarationError, match="fewer bits"):
        Gpu.fits(parameters=5e12)
    with pytest.raises(DeclarationError) as wrong:
        Gpu.fits(parameters=-1, dtype="bf61", context=-4)
    assert len(wrong.value.faults) == 3


@pytest.mark.parametrize("text", ["A10G", "A100", "H100!", "B200+", "h100:8", "RTX-PRO-6000"])
def test_every_name_that_modal_takes_is_known(text):
    kind, count = parse_gpu(text)
    assert 1 <= count <= kind.max_count


def test_a_declaration_that_could_cost_more_than_its_budget_is_refused_with_what_would_fit():
    with pytest.raises(DeclarationError, match="lower max_containers to 2") as refused:

        class Dear(gpuserve.WarmModelServer):
            image = ImageSpec.debian("3.11")
            gpu = ("L4", "H100")
            scaling = Scaling(max_containers=4)
            budget = Budget(max_usd_per_hour=10)

            @gpuserve.batched
            def predict(self, batch: list[int]) -> list[int]:
                return batch

    assert "$15.8" in str(refused.value)


def test_pools_regions_and_preemption_are_priced():
    one = HourlyCost.of(gpus=("T4",))
    assert HourlyCost.of(gpus=("T4",), max_containers=2, parameter_sets=3).usd == pytest.approx(6 * one.usd)
    assert HourlyCost.of(gpus=("T4",), region=True).usd > one.usd
    assert HourlyCost.of(cpu=2, nonpreemptible=True).usd == pytest.approx(3 * HourlyCost.of(cpu=2).usd)
    assert "1 container of T4" in str(one)
