"""More callers than places: who is taken is answered, who is not is told at once, and nothing piles up."""

from __future__ import annotations

import contextlib
import threading
import time

import psutil
import pytest

from gpuserve import Batching, Http

from .conftest import read_answer, serving
from .served import Echo
from .test_framing import post

pytestmark = pytest.mark.wide

pytest.importorskip("gpuserve.runtime.http.serve")


class Small(Echo):
    batching = Batching(max_batch_size=4, max_queue=64)
    instance: Small

    def load(self) -> None:
        super().load()
        type(self).instance = self


def request(prompt: str) -> bytes:
    body = b'{"input": {"prompt": "%s"}}' % prompt.encode()
    return post(b"Content-Length: %d\r\n" % len(body), body=body)


def test_five_hundred_callers_of_64_places_are_answered_or_refused_at_once():
    process = psutil.Process()
    with serving(Small, Http()) as served, contextlib.ExitStack() as stack:
        held = stack.enter_context(served.connection())
        held.sendall(request("hold"))
        assert Small.instance.held.wait(10)
        before = process.memory_info().rss
        callers = [stack.enter_context(served.connection()) for _ in range(500)]
        for number, caller in enumerate(callers):
            caller.sendall(request(f"caller {number}"))
        begun = time.monotonic()
        answers: list = [None] * len(callers)

        def read(number: int) -> None:
            answers[number] = read_answer(callers[number])

        # the first 64 wait for the model; every other one is answered while it is held
        for number in range(64, 500):
            read(number)
        refused_in = time.monotonic() - begun
        threads = [threading.Thread(target=read, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        Small.instance.let_go.set()
        for thread in threads:
            thread.join(30)
        assert read_answer(held).status == 200

    assert [answer.status for answer in answers[:64]] == [200] * 64
    assert all(f"caller {number}".encode() in answer.body for number, answer in enumerate(answers[:64]))
    assert {answer.fault for answer in answers[64:]} == {(429, "queue_full")}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers[64:])
    assert refused_in < 5
    assert process.memory_info().rss - before < 50 * 2**20
