"""The proxy with real sockets: what a client and a server see of each fault."""

import contextlib
import socket
import threading
import time

import pytest

from gpuserve import DeclarationError
from gpuserve.testing import (
    Bandwidth,
    Down,
    FaultProxy,
    Latency,
    LimitData,
    ResetPeer,
    Slicer,
    SlowClose,
    Timeout,
)

HELLO = b"hello, " * 1000


class Echo:
    """Sends back what it is sent, and ends when the other side does."""

    def __init__(self, family=socket.AF_INET, address=("127.0.0.1", 0)):
        self.sock = socket.socket(family)
        self.sock.bind(address)
        self.sock.listen(64)
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    @property
    def address(self):
        return f"127.0.0.1:{self.sock.getsockname()[1]}"

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.sock.accept()
                self.threads.append(threading.Thread(target=self._echo, args=(connection,)))
                self.threads[-1].start()

    def _echo(self, connection):
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def close(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        for thread in self.threads:
            thread.join(10)


@pytest.fixture(scope="module")
def echo():
    server = Echo()
    yield server
    server.close()


def ask(port, data=HELLO):
    """What comes back until the other side ends, and how long it took."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b"")), time.monotonic() - begun


def test_without_toxics_everything_gets_through(echo):
    with FaultProxy(echo.address) as proxy:
        assert ask(proxy.port)[0] == HELLO
        assert ask(proxy.port, b"x" * 3_000_000)[0] == b"x" * 3_000_000
        assert proxy.accepted == 2


@pytest.mark.parametrize(
    ("toxic", "at_least_s"),
    [(Latency(60, 10), 0.05), (Bandwidth(100), 0.06), (SlowClose(50), 0.05), (Slicer(700, 300, 5000), 0.04)],
)
def test_what_slows_down_loses_nothing(echo, toxic, at_least_s):
    with FaultProxy(echo.address, toxic) as proxy:
        answer, took = ask(proxy.port)
    assert answer == HELLO
    assert took >= at_least_s


def test_a_limit_cuts_an_answer_off(echo):
    with FaultProxy(echo.address, LimitData(1000)) as proxy:
        assert ask(proxy.port)[0] == HELLO[:1000]


def test_a_reset_and_a_timeout_are_seen_as_such(echo):
    with FaultProxy(echo.address, ResetPeer(20)) as proxy:
        connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
        with connection, pytest.raises(ConnectionResetError):
            connection.recv(1)
    with FaultProxy(echo.address, Timeout(50)) as proxy:
        answer, took = ask(proxy.port)
    assert (answer, took > 0.05) == (b"", True)


def test_down_refuses_and_resets_and_up_serves_at_the_same_port(echo):
    with FaultProxy(echo.address) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as connection:
            connection.sendall(b"a")
            assert connection.recv(1) == b"a"
            with proxy.toxics(Down()):
                with pytest.raises(ConnectionResetError):
                    connection.recv(1)
                with pytest.raises(ConnectionRefusedError):
                    ask(proxy.port)
                assert proxy.connections == 0
        assert ask(proxy.port)[0] == HELLO


def test_a_share_of_the_connections_is_struck_and_the_same_seed_strikes_the_same(echo):
    def struck():
        with FaultProxy(echo.address, LimitData(5, toxicity=0.5), seed=7) as proxy:
            return [len(ask(proxy.port)[0]) == 5 for _ in range(12)]

    first = struck()
    assert set(first) == {True, False}
    assert struck() == first


def test_toxics_go_upstream_too_and_a_server_that_is_not_there_resets(echo):
    with FaultProxy(echo.address, LimitData(5, direction="upstream")) as proxy:
        assert ask(proxy.port)[0] in {b"hello", b""}
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with FaultProxy(f"http://127.0.0.1:{nobody.getsockname()[1]}") as proxy, pytest.raises(ConnectionError):
            ask(proxy.port)


def test_a_socket_in_a_folder_can_stand_behind_it(tmp_path):
    server = Echo(socket.AF_UNIX, str(tmp_path / "s"))
    with FaultProxy(f"unix://{tmp_path}/s") as proxy:
        assert ask(proxy.port)[0] == HELLO
    server.close()


def test_an_address_that_is_none_is_refused():
    for wrong in ("nowhere", "https://a:1", "127.0.0.1:port", "unix://"):
        with pytest.raises(DeclarationError, match="upstream is"):
            FaultProxy(wrong)
