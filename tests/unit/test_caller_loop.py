"""Whoever waits for a server of this process makes its calls: no wake-up is lost, however many wait and how."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpuserve.runtime.caller import CallerLoop


@pytest.fixture
def loop():
    made = CallerLoop()
    yield made
    made.close()


async def nothing():
    return None


async def called(loop, value):
    """*value*, and the thread that the call was made in, as a batch of a server is."""
    return await asyncio.get_running_loop().run_in_executor(loop, lambda: (value, threading.get_ident()))


async def awaited(loop, value):
    return await asyncio.wait_for(loop.wait_async(called(loop, value)), 20)


def test_waits_that_were_over_at_once_take_no_turn_from_one_that_is_awaited(loop):
    for _ in range(300):
        loop.wait(nothing())

    assert asyncio.run(awaited(loop, 5)) == (5, threading.get_ident())


def test_threads_that_wait_together_all_get_their_answers(loop):
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: loop.wait(called(loop, number))[0], range(2000), timeout=60))

    assert found == list(range(2000))


def test_threads_and_an_event_loop_wait_side_by_side(loop):
    async def some():
        return [(await awaited(loop, number))[0] for number in range(500)]

    with ThreadPoolExecutor(2) as threads:
        here = threads.submit(lambda: [loop.wait(called(loop, number))[0] for number in range(500)])
        there = asyncio.run(some())
        assert here.result(60) == there == list(range(500))


def test_what_one_left_who_was_interrupted_holds_up_nobody(loop):
    def interrupt():
        raise KeyboardInterrupt

    async def several():
        here = asyncio.get_running_loop()
        await asyncio.gather(
            *(here.run_in_executor(loop, call) for call in (interrupt, int, int)), return_exceptions=True
        )

    with pytest.raises(KeyboardInterrupt):
        loop.wait(several())

    assert asyncio.run(awaited(loop, 2))[0] == 2
    assert loop.wait(called(loop, 3))[0] == 3
