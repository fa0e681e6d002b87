"""Engines that stand in each other's way, or in nobody's; ports; and starts that fail."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from gpuserve.engine import LocalEngine
from gpuserve.exceptions import EngineError, PortInUseError

pytestmark = pytest.mark.wide


def test_a_second_engine_on_the_folder_is_refused_with_the_pid_of_the_first(up, error_of):
    pid = up.json("local", "status")["pid"]

    command = [sys.executable, "-m", "gpuserve.engine", "--home", str(up.home)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)

    assert second.returncode == 2
    told = error_of(second)
    assert f"another engine (pid {pid}) uses the state folder {up.home}" in told
    assert "gpuserve local down" in told
    assert up.json("local", "status")["pid"] == pid


def test_an_engine_inside_a_program_keeps_others_off_its_folder(cli):
    with LocalEngine(cli.home):
        told = cli.refused("local", "up")

    assert f"another engine (pid {os.getpid()})" in told
    assert "end the program that it belongs to" in told
    cli("local", "up")


def test_what_a_killed_engine_left_is_taken_over_though_its_pid_is_another_process_now(cli):
    cli.write_app()
    cli("local", "up")
    cli("local", "deploy", "kept.py")
    pid = cli.kill_engine()
    note = cli.home / "engine.json"
    note.write_text(note.read_text().replace(str(pid), str(os.getpid())))
    (cli.home / "engine.lock").write_text(str(os.getpid()))

    assert cli.json("local", "status") == {"up": False, "home": str(cli.home), "pid": None}
    assert "no engine is up" in cli("local", "down").stdout
    assert "no engine is up" in cli.refused("local", "env", code=1)
    assert "doubled 42" in cli("local", "run", "kept.py").stdout
    assert cli.apps() == ["kept"]


@pytest.mark.parametrize("note", ["", "{", "[]", '{"pid": 1}', '{"GPUSERVE_CONTROL": "/nowhere"}'])
def test_a_damaged_note_means_that_no_engine_is_up(note, cli):
    cli.home.mkdir()
    (cli.home / "engine.json").write_text(note)

    assert cli.json("local", "status")["up"] is False
    cli("local", "up")
    assert cli.json("local", "status")["up"] is True


# -- ports -------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named_with_its_owner(cli):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        told = cli.refused("local", "up", "--port", str(port))

    assert f"port {port} of 127.0.0.1 is in use by pid {os.getpid()}" in told
    assert "--port 0" in told
    assert cli.json("local", "status")["up"] is False
    cli("local", "up", "--port", str(port))
    assert cli.json("local", "status")["server_url"] == f"http://127.0.0.1:{port}"


def test_an_engine_in_this_program_names_the_owner_of_its_port_as_well():
    with LocalEngine(port=0) as engine:
        port = int(engine.environment["MODAL_SERVER_URL"].rpartition(":")[2])
        with pytest.raises(PortInUseError, match=f"port {port} of 127.0.0.1 is in use by pid {os.getpid()}"):
            LocalEngine(port=port).start()
    with pytest.raises(EngineError, match="port=70000 is not allowed: it must be 0"):
        LocalEngine(port=70000)


def test_an_engine_that_dies_while_it_starts_is_told_with_its_last_words(cli):
    cli.write(
        "sitecustomize.py", "import sys\nif 'gpuserve.engine' in sys.orig_argv: raise SystemExit('no luck today')\n"
    )

    path = os.pathsep.join([str(cli.folder), os.environ.get("PYTHONPATH", "")])

    assert "the engine did not start: SystemExit: no luck today" in cli.refused("local", "up", code=1, PYTHONPATH=path)


STUCK = """
import sys, time
from pathlib import Path
from gpuserve.engine import LocalEngine, server
server._START_TIMEOUT_S = 1.0
server.Core = lambda *_arguments, **_options: time.sleep(600)
LocalEngine(Path(sys.argv[1])).start()
"""


def test_an_engine_that_does_not_start_in_time_tells_where_it_stands(cli):
    stuck = subprocess.run([sys.executable, "-c", STUCK, cli.home], capture_output=True, text=True, check=False)

    assert stuck.returncode == 1
    assert "EngineError: the engine did not start within 1 s; where it stands is told above" in stuck.stderr
    assert 'File "<string>", line 6 in <lambda>' in stuck.stderr, "each thread's stack, the one that sleeps among them"
    assert "in _open" in stuck.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", [["up"], ["run", "kept.py"]], ids=["up", "run"])
def test_a_signal_while_the_engine_starts_leaves_nothing(number, command, cli, until):
    cli.write_app()
    process = cli.start("local", *command)
    until(lambda: len(cli.processes()) > 1)

    process.send_signal(number)

    assert process.wait(30) == 130
    process.stdout.close()
    until(lambda: cli.processes() == [])
    assert cli.json("local", "status")["up"] is False


@pytest.mark.parametrize(("size", "aside"), [((1 << 20) - 1, False), (1 << 20, True)])
def test_a_log_that_has_grown_is_put_aside_at_a_start_and_one_such_is_kept(size, aside, cli):
    cli.home.mkdir(mode=0o700, exist_ok=True)
    log, old = cli.home / "engine.log", cli.home / "engine.log.1"
    log.write_text("w" * size)
    old.write_text("older")
    cli("local", "up")
    cli("local", "down")

    assert (log.stat().st_size, old.stat().st_size) == ((0, size) if aside else (size, len("older")))
