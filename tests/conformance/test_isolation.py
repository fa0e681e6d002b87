"""Containers are kept apart, and own what they start: as root, as another user, and without namespaces."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

import gpuserve
from gpuserve.engine import LocalEngine
from gpuserve.exceptions import EngineError

pytestmark = pytest.mark.wide

NOBODY = 65534
# Closed folders (mode 0700) may hold the interpreter or the checkout: a mount namespace opens them for this process.
AS_NOBODY = """
set -e
stage=$1; shift
while [ "$1" != -- ]; do
    closed=$1; below=$stage/$#; shift
    mkdir "$below"
    mount --rbind "$closed" "$below"
    mount -t tmpfs -o mode=0755 none "$closed"
    for one in "$below"/* "$below"/.[!.]*; do
        if [ -d "$one" ]; then mkdir "$closed/${one##*/}"; mount --rbind "$one" "$closed/${one##*/}"; fi
    done
done
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"""


class OwnEngine:
    """An engine in a process of its own; *mode* is how its containers are kept apart."""

    def __init__(self, mode: str, home: Path) -> None:
        self.mode, self.home = mode, home
        isolation = "links" if mode == "links" else "namespaces"
        command = [sys.executable, "-m", "gpuserve.engine", "--home", str(home / "state"), "--isolation", isolation]
        environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home)}
        if mode == "nobody" and os.getuid() == 0:
            stage = home / "stage"
            stage.mkdir()
            os.chown(home, NOBODY, NOBODY)
            needed = (Path(sys.executable).resolve(), Path(sys.prefix), Path(gpuserve.__file__))
            above = dict.fromkeys(one for path in needed for one in reversed(path.parents))
            closed = [str(one) for one in above if not one.stat().st_mode & 0o001]
            command = ["unshare", "--mount", "sh", "-c", AS_NOBODY, "sh", str(stage), *closed, "--", *command]
        self.process = subprocess.Popen(command, env=environment, cwd="/", stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line, "the engine did not start"
        self.environment = {key: value for key, value in json.loads(line).items() if key.startswith("MODAL_")}

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)


@pytest.fixture(scope="module", params=["root", "nobody", "links"])
def engine(request) -> Iterator[OwnEngine]:
    if request.param == "root" and os.getuid() != 0:
        pytest.skip("the engine of this user is the one that the case 'nobody' tests")
    with tempfile.TemporaryDirectory(prefix="gpuserve-test-") as home:  # pytest's own are closed to other users
        running = OwnEngine(request.param, Path(home))
        yield running
        running.close()


@pytest.fixture
def base(engine: OwnEngine, tmp_path: Path) -> Path:
    """A folder that does not exist, where the containers of this engine may be offered something."""
    return tmp_path / "offered" if engine.mode == "links" and os.getuid() else Path(f"/gpuserve-{uuid4().hex[:12]}")


APART = """
import modal, os, pathlib, subprocess, sys, time
BASE, STATE = os.environ.get("BASE", ""), os.environ.get("STATE", "")
app = modal.App("apart")
models = modal.Volume.from_name("models", create_if_missing=True)
meet = modal.Queue.from_name("meet", create_if_missing=True)
image = (modal.Image.debian_slim().env({"BASE": BASE, "STATE": STATE}).add_local_python_source("beside")
         .add_local_dir("data", f"{BASE}/data"))

@app.function(image=image, volumes={f"{BASE}/models": models}, max_containers=2)
def look(name):
    import beside
    pathlib.Path(f"{BASE}/models/{name}").write_text(name)
    models.commit()
    meet.put(name, partition=name)
    other = {"a": "b", "b": "a"}[name]
    meet.get(partition=other, timeout=60)
    door = pathlib.Path(os.environ["MODAL_SERVER_URL"].removeprefix("unix://"))
    processes = [int(one) for one in os.listdir("/proc") if one.isdigit()]
    return {
        "volume": sorted(os.listdir(f"{BASE}/models")), "other": pathlib.Path(f"{BASE}/models/{other}").read_text(),
        "beside": beside.ANSWER, "data": sorted(str(one.relative_to(f"{BASE}/data"))
                                                for one in pathlib.Path(f"{BASE}/data").rglob("*") if one.is_file()),
        "script": subprocess.run([f"{BASE}/data/run.sh"], capture_output=True, text=True).stdout,
        "uid": os.getuid(), "processes": len(processes), "pid": os.getpid(),
        "strange": [str(one) for folder in (door.parent, pathlib.Path(STATE)) for one in folder.rglob("*")
                    if not one.is_dir() and os.environ["MODAL_TASK_ID"] not in str(one)],
        "sees itself": os.readlink("/proc/self") == str(os.getpid()),
    }

@app.local_entrypoint()
def main():
    calls = [look.spawn("a"), look.spawn("b")]
    meet.get(partition="host", block=False)
    found = [call.get(timeout=60) for call in calls]
    report({"found": found, "on the host": os.path.lexists(BASE) and sorted(os.listdir(BASE))})
"""


def test_a_container_sees_its_sources_and_volumes_at_their_paths_and_the_host_does_not(
    engine, run_app, base, tmp_path, monkeypatch
):
    (tmp_path / "beside.py").write_text("ANSWER = 42\n")
    (tmp_path / "data" / "größe").mkdir(parents=True)
    (tmp_path / "data" / "größe" / "naïve.txt").write_text("x")
    script = tmp_path / "data" / "run.sh"
    script.write_text("#!/bin/sh\necho ran\n")
    script.chmod(0o755)
    monkeypatch.setenv("BASE", str(base))
    monkeypatch.setenv("STATE", str(engine.home / "state"))

    seen = run_app(APART)

    first, second = seen["found"]
    for one in (first, second):
        assert one["volume"] == ["a", "b"]
        assert one["beside"] == 42
        assert one["data"] == ["größe/naïve.txt", "run.sh"]
        assert one["script"] == "ran\n"
        assert one["sees itself"]
        assert one["uid"] == (NOBODY if engine.mode == "nobody" and os.getuid() == 0 else os.getuid())
        assert (one["processes"] == 2) == (engine.mode != "links")  # its first process and itself
        assert (one["strange"] == []) == (engine.mode != "links")  # nothing of the engine's, or of another container's
    assert [first["other"], second["other"]] == ["b", "a"]
    assert first["pid"] != second["pid"]
    assert seen["on the host"] == (["data", "models"] if engine.mode == "links" else False)
    assert not os.path.lexists(base)


DAEMONS = """
import modal, os, pathlib, subprocess, sys, time
app = modal.App("daemons")
ports = modal.Queue.from_name("ports", create_if_missing=True)
DAEMON = '''
import socket, sys, time
server = socket.create_server(("127.0.0.1", 0))
open(sys.argv[1], "w").write(str(server.getsockname()[1]) + "\\\\n")
time.sleep(600)
'''

def leave_a_daemon(name):
    note = pathlib.Path(f"/tmp/{os.environ['MODAL_TASK_ID']}-{name}")
    # its parent ends at once, it leads a session of its own, and it carries no variable of this container
    command = ["sh", "-c", 'setsid env -i "$@" & setsid env -i "$@.child" &', "sh",
               sys.executable, "-c", DAEMON, str(note)]
    subprocess.run(command, check=True)
    while not note.exists() or not note.read_text().endswith("\\n"):
        time.sleep(0.01)
    port = int(note.read_text())
    note.unlink()
    return port

@app.function(single_use_containers=True)
def returns(): return leave_a_daemon("r")

@app.function()
def crashes():
    ports.put(leave_a_daemon("c"), partition="crashes")
    os._exit(3)

@app.function()
def runs():
    ports.put(leave_a_daemon("k"), partition="runs")
    time.sleep(600)

@app.function()
def stays(): return leave_a_daemon("s")
"""
RUN_DAEMONS = """
def closes(port, deadline=20):
    import socket
    until = time.monotonic() + deadline
    while time.monotonic() < until:
        try: socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionResetError: continue  # it was accepted by a process that ended in this instant
        except ConnectionRefusedError: return True
        time.sleep(0.01)
    return False

@app.local_entrypoint()
def main():
    closed = {"returns": closes(returns.remote())}
    crashing = crashes.spawn()
    closed["crashes"] = closes(ports.get(partition="crashes", timeout=30))
    crashing.cancel()
    running = runs.spawn()
    port = ports.get(partition="runs", timeout=30)
    running.cancel(terminate_containers=True)
    closed["is killed"] = closes(port)
    report({"closed": closed, "stays": stays.remote()})
"""


def refused(port: int, deadline_s: float = 10.0) -> bool:
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return True
        time.sleep(0.01)
    return False


def test_a_daemon_without_parent_session_or_environment_ends_with_its_container(run_app):
    found = run_app(DAEMONS + RUN_DAEMONS)

    assert found["closed"] == {"returns": True, "crashes": True, "is killed": True}
    assert refused(found["stays"])  # its container ended with the app


PLAIN = """
import modal, os
app = modal.App("plain")
started = {"PYTHONHASHSEED": "0", "PYTHONPATH": "/opt/ours", "PYTHONDONTWRITEBYTECODE": "1", "COLOUR": "blue"}
image = modal.Image.debian_slim().env(started).add_local_dir("ours", "/opt/ours")
ended = modal.Queue.from_name("ended", create_if_missing=True)

@app.cls(image=image, secrets=[modal.Secret.from_dict({"PYTHONUTF8": "1"})])
class Plain:
    @modal.enter()
    def begin(self): self.began = True

    @modal.method()
    def look(self):
        import sys, multiprocessing, subprocess, beside
        try: import hypothesis
        except ModuleNotFoundError as error: hidden = [str(error), *error.__notes__]
        program = "import beside; print(hash('x'))"
        child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        return {"hash": hash("x"), "flags": [sys.flags.dont_write_bytecode, sys.flags.utf8_mode], "began": self.began,
                "beside": beside.ANSWER, "hidden": hidden, "child": child.stdout.strip(), "first": sys.path[0],
                "main": sys.modules["__main__"].__name__, "colour": os.environ["COLOUR"],
                "spawned": multiprocessing.get_context("spawn").Pool(1).map(abs, [-1])}

    @modal.exit()
    def end(self): ended.put("exit hook ran")

@app.local_entrypoint()
def main():
    report(Plain().look.remote())
"""


@pytest.mark.parametrize("engine", ["nobody"], indirect=True)
def test_an_image_whose_variables_an_interpreter_reads_at_its_start_gets_a_new_one(run_app, modal_cli, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "beside.py").write_text("ANSWER = 42\n")
    found = run_app(PLAIN)
    seeded = subprocess.run(
        [sys.executable, "-c", "print(hash('x'))"],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert found["hash"] == int(seeded.stdout)
    assert found["child"] == seeded.stdout.strip()
    assert found["flags"] == [1, 1]
    assert found["hidden"][0] == "No module named 'hypothesis'"
    assert "pip_install" in found["hidden"][1]
    assert "exit hook ran" in modal_cli("queue", "peek", "ended").stdout
    rest = {key: found[key] for key in ("began", "beside", "first", "main", "colour", "spawned")}
    assert rest == {
        "began": True, "beside": 42, "first": "/root", "main": "__main__", "colour": "blue", "spawned": [1],
    }  # fmt: skip


@pytest.mark.parametrize("engine", ["links"], indirect=True)
def test_a_path_that_no_link_can_offer_is_refused_by_name(modal_cli, tmp_path):
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
        import modal
        app = modal.App("taken")
        volume = modal.Volume.from_name("taken", create_if_missing=True)
        @app.function(volumes={"/usr/lib": volume})
        def f(): pass
        @app.local_entrypoint()
        def main(): f.remote()
        """)
    )
    done = modal_cli("run", "app.py", check=False)
    said = " ".join((done.stdout + done.stderr).split())

    assert done.returncode != 0
    assert "/usr/lib cannot be offered to the container: without mount namespaces it would be a link" in said
    assert "Use a path that is free and writable" in said
    assert Path("/usr/lib").is_dir()
    assert not Path("/usr/lib").is_symlink()


@pytest.fixture(params=["namespaces", "links"])
def dying(request) -> Iterator[OwnEngine]:
    with tempfile.TemporaryDirectory(prefix="gpuserve-test-") as home:
        yield OwnEngine(request.param, Path(home))


def test_nothing_of_a_container_outlives_a_killed_engine(dying, tmp_path):
    engine = dying
    (tmp_path / "app.py").write_text(DAEMONS)
    client = "import modal, sys; f = modal.Function.from_name('daemons', 'stays'); sys.stdout.write(str(f.remote()))"
    environment = {**os.environ, **engine.environment}
    deploy = [sys.executable, "-m", "modal", "deploy", "app.py"]
    subprocess.run(deploy, cwd=tmp_path, env=environment, capture_output=True, check=True)
    done = subprocess.run([sys.executable, "-c", client], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    port = int(done.stdout)
    socket.create_connection(("127.0.0.1", port)).close()

    engine.process.send_signal(signal.SIGKILL)
    engine.process.communicate()

    assert refused(port)


def test_an_isolation_that_is_none_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(EngineError, match="'auto', 'namespaces' or 'links'"):
        LocalEngine(isolation="docker")
    monkeypatch.setenv("GPUSERVE_ISOLATION", "links")
    with LocalEngine() as engine:
        assert engine.status()["isolation"] == "links"
