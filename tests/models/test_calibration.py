"""The setting that a device is fastest with is found, however busy the device is meanwhile."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gpuserve.models.calibration import fastest


class Device:
    """A device on a clock of its own: each run takes what its setting takes, and longer beside a neighbour."""

    def __init__(self, takes: dict[str, float], delays: list[float] | None = None) -> None:
        self.takes, self.delays = takes, iter([] if delays is None else delays)
        self.now = 0.0
        self.ran: list[str] = []

    def run(self, setting: str) -> float:
        spent = self.takes[setting] + next(self.delays, 0.0)
        self.ran.append(setting)
        self.now += spent
        return spent

    def fastest(self, budget_s: float) -> str:
        return fastest(list(self.takes), self.run, budget_s=budget_s, clock=lambda: self.now)


def test_a_device_that_is_slower_than_the_budget_still_tries_every_setting() -> None:
    device = Device({"small": 3.0, "middle": 2.5, "large": 2.0})
    assert device.fastest(budget_s=2.0) == "large"
    assert device.ran == ["small", "middle", "large"]


def test_a_neighbour_s_moment_costs_a_round_and_not_the_choice() -> None:
    device = Device({"small": 0.3, "middle": 0.2, "large": 0.25}, delays=[0.0, 5.0])
    assert device.fastest(budget_s=12.0) == "middle"


def test_rounds_end_while_the_next_still_fits_into_the_budget() -> None:
    device = Device({"small": 0.25, "large": 0.25})
    device.fastest(budget_s=2.0)
    assert len(device.ran) == 8
    assert device.now == 2.0


def test_of_equals_the_first_is_taken() -> None:
    assert Device({"small": 0.5, "large": 0.5}).fastest(budget_s=0) == "small"


@given(
    takes=st.lists(st.integers(1, 20), min_size=1, max_size=5, unique=True),
    busy=st.lists(st.booleans(), max_size=20),
)
def test_the_fastest_is_found_if_each_setting_had_one_quiet_run(takes: list[int], busy: list[bool]) -> None:
    settings = {f"setting {place}": float(one) for place, one in enumerate(takes)}
    most = 2 * (sum(takes) + 100 * len(takes)) * (len(busy) + 1)
    device = Device(settings, delays=[100.0 if one else 0.0 for one in busy])
    chosen = device.fastest(budget_s=most)
    delays = itertools.chain(busy, itertools.repeat(False))
    quiet = {setting for setting, delayed in zip(device.ran, delays, strict=False) if not delayed}
    assert quiet == set(settings)
    assert chosen == min(settings, key=settings.__getitem__)
