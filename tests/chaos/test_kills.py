"""Nothing that was acknowledged is lost, and no process is left, whatever is killed when."""

import pytest

VICTIMS = ("engine", "engine", "container", "client", "both")


def test_a_few_kills_lose_nothing_that_was_acknowledged(new_world):
    world = new_world(1)

    for victim in ("engine", "client", "container", "both"):
        world.round(victim)

    assert world.killed["engine"] >= 2  # one that starts anew may be killed again
    assert world.killed["container"] == 1
    assert world.killed["client"] == 2


@pytest.mark.heavy
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_kills_lose_nothing_that_was_acknowledged(seed, new_world):
    world, rounds = new_world(seed), dict.fromkeys(VICTIMS, 0)

    while sum(world.killed.values()) < 10:
        victim = world.dice.choice(VICTIMS)
        world.round(victim)
        rounds[victim] += 1

    assert world.killed["container"] == rounds["container"]
    assert world.killed["client"] == rounds["client"] + rounds["both"]
    assert world.killed["engine"] >= rounds["engine"] + rounds["both"]
