"""The switch of an engine in a process of its own: who may use it, and when it ends by itself."""

import contextlib
import dataclasses
import json
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gpuserve.engine.running import CONTROL, find_engine
from gpuserve.exceptions import EngineError


def say(path, line):
    """What the engine answers to one line; nothing where it hangs up."""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(ConnectionError):
        connection.connect(path)
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").read()
    return b""


@pytest.fixture
def control(up):
    return json.loads((up.home / "engine.json").read_text())[CONTROL]


def test_nothing_is_told_or_done_without_the_token(up, control):
    pid = up.json("local", "status")["pid"]
    for ask in ("status", "hold", "keep", "stop"):
        for token in (None, "", "as-wrong", ["as"], 7):
            answer = say(control, json.dumps({"ask": ask, "token": token}).encode() + b"\n")
            assert json.loads(answer) == {"error": "the token is missing or wrong"}
    stranger = dataclasses.replace(find_engine(up.home), environment={"MODAL_TOKEN_SECRET": "as-wrong"})
    with pytest.raises(EngineError, match="refuses: the token is missing or wrong"):
        stranger.stop()
    assert stat.S_IMODE(Path(control).stat().st_mode) == 0o600
    assert up.json("local", "status")["pid"] == pid


@pytest.mark.parametrize("line", [b"", b"\n", b"{", b"[]\n", b"\xff\xfe\n", b"null\n", b"x" * 100_000])
def test_whatever_is_said_to_it_the_engine_goes_on(line, up, control):
    assert b"pid" not in say(control, line)
    assert up.json("local", "status")["up"] is True


def test_an_unknown_question_is_answered_with_those_that_are_known(up):
    with (
        find_engine(up.home)._ask("dance") as asked,
        pytest.raises(EngineError, match="status, prune, hold, keep or stop"),
    ):
        asked.reply()


def start(home):
    return subprocess.Popen(
        [sys.executable, "-m", "gpuserve.engine", "--transient", "--home", str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_a_transient_engine_ends_with_its_standard_input(tmp_path):
    with start(tmp_path) as engine:
        assert json.loads(engine.stdout.readline())["pid"] == engine.pid
        engine.stdin.close()
        assert engine.wait(30) == 0
    assert find_engine(tmp_path) is None


def test_a_transient_engine_ends_with_the_last_that_holds_it_and_not_before(tmp_path):
    with start(tmp_path) as engine:
        engine.stdout.readline()
        found = find_engine(tmp_path)
        first, second = found.hold(), found.hold()
        engine.stdin.close()
        first.release()
        while found.status()["holders"] > 1:  # its standard input is read by a thread of its own
            continue
        second.release()
        assert engine.wait(1) == 0


def test_an_engine_that_was_asked_to_stay_outlives_those_that_held_it(tmp_path):
    with start(tmp_path) as engine:
        engine.stdout.readline()
        found = find_engine(tmp_path)
        assert found.keep()
        engine.stdin.close()
        found.hold().release()
        assert found.status()["transient"] is False
        found.stop()
        assert engine.wait(1) == 0


def test_what_one_asks_of_an_engine_that_has_gone_says_so(tmp_path):
    with start(tmp_path) as engine:
        engine.stdout.readline()
        found = find_engine(tmp_path)
        engine.stdin.close()
    with pytest.raises(EngineError, match=f"the engine \\(pid {engine.pid}\\) has just gone"):
        found.status()


def test_a_signal_at_any_instant_of_the_wait_ends_it():
    program = """
import random, signal, sys
from gpuserve.engine.control import Ending
seed = random.SystemRandom().randrange(2**32)
print("seed", seed, flush=True)
dice = random.Random(seed)
for number in range(400):
    ending = Ending(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, dice.uniform(5e-6, 30e-6))
    ending.wait()
    assert ending.is_set()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
