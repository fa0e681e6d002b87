"""Nothing that was acknowledged is lost, and no process is left, whatever is killed when."""

import pytest

VICTIMS = ("engine", "engine", "container", "client", "both")


def test_a_few_kills_lose_nothing_that_was_acknowledged(new_world):
    world = new_world(1)

    for victim in ("engine", "client", "container", "both"):
        world.round(victim)


@pytest.mark.heavy
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_kills_lose_nothing_that_was_acknowledged(seed, new_world):
    world = new_world(seed)

    while sum(world.killed.values()) < 10:
        world.round(world.dice.choice(VICTIMS))
    print(world.killed)
