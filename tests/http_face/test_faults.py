"""A bad network between client and server: each request ends in the right body or a typed error, never in half."""

from __future__ import annotations

import http.client
import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpuserve import Http
from gpuserve.testing import Bandwidth, Down, FaultProxy, Latency, LimitData, ResetPeer, Slicer, SlowClose, Timeout

from .conftest import KEY, serving
from .served import Echo
from .test_framing import wait_until

pytestmark = pytest.mark.wide

pytest.importorskip("gpuserve.runtime.http.serve")

TYPED = (http.client.HTTPException, ConnectionError, TimeoutError)
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def toxics(dice: random.Random) -> dict:
    """One of each, as bad as the dice will have it; those that cut do so at any byte."""
    way = dice.choice(("downstream", "upstream"))
    return {
        "latency": Latency(dice.uniform(0, 20), dice.uniform(0, 20), direction=way),
        "bandwidth": Bandwidth(dice.uniform(50, 500), direction=way),
        "slow_close": SlowClose(dice.uniform(0, 30), direction=way),
        "timeout": Timeout(dice.uniform(1, 20), direction=way),
        "reset_peer": ResetPeer(dice.uniform(0, 10)),
        "slicer": Slicer(dice.randint(1, 200), dice.randint(0, 100), dice.uniform(0, 20), direction=way),
        "limit_data": LimitData(dice.randint(0, 2500), direction=way),
        "down": Down(),
    }


def ask(port: int, number: int, *, stream: bool) -> str:
    """One request on a connection of its own; what became of it."""
    text = f"request {number} " * 60
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        path = "/letters" if stream else "/predict"
        connection.request("POST", path, json.dumps({"input": {"prompt": text}}), HEADERS)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            assert set(json.loads(body)) == {"error"}
            return f"status {answer.status}"
        if answer.getheader("x-request-id") is None or answer.getheader("content-type") is None:
            return "cut within the head"  # which http.client does not tell
        if not stream:
            assert json.loads(body)["output"]["text"] == text
        else:
            if not body.endswith((b"event: done\ndata: {}\n\n", b"}}\n\n")):
                return "cut within the events"
            assert b"event: error" not in body
            pieces = [json.loads(line[6:])["output"] for line in body.splitlines() if line.startswith(b'data: {"o')]
            assert "".join(pieces) == text
    except TYPED as error:
        return type(error).__name__
    else:
        return "right"
    finally:
        connection.close()


@pytest.fixture(scope="module")
def served():
    with serving(Echo, Http(body_timeout_s=2)) as running:
        yield running


@pytest.mark.parametrize("count", [8, pytest.param(500, marks=[pytest.mark.heavy, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("name", sorted(toxics(random.Random(0))))
def test_every_request_ends_in_a_typed_error_or_the_right_body(served, name, count):
    dice = random.Random(f"{name} {count}")
    proxies = [FaultProxy(served.url, toxics(dice)[name], seed=number) for number in range(min(count, 25))]
    for proxy in proxies:
        proxy.__enter__()
    try:
        with ThreadPoolExecutor(4) as pool:
            asked = [
                pool.submit(ask, proxies[number % len(proxies)].port, number, stream=number % 4 == 3)
                for number in range(count)
            ]
            ends = [one.result() for one in asked]
    finally:
        for proxy in proxies:
            proxy.__exit__()
    counted = {end: ends.count(end) for end in sorted(set(ends))}
    print(f"{name}: {counted}")
    if name in {"latency", "bandwidth", "slow_close", "slicer"}:
        assert counted == {"right": count}
    if name in {"timeout", "down"}:
        assert "right" not in counted
    wait_until(lambda: not served.thread.connections)
    assert served.predict({"prompt": "after it"}).status == 200
