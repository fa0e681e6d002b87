"""State folders that cannot be written: one clear error each, with the way out, and nothing lost."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.wide


@pytest.fixture
def mounted(tmp_path):
    """Mount something, and unmount it at the end; skipped where that is not permitted."""
    points = []

    def mount(*options, at):
        at.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *options, str(at)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        points.append(at)
        return at

    yield mount
    for point in reversed(points):
        subprocess.run(["umount", "--lazy", str(point)], check=True)


def test_a_read_only_state_folder_is_refused_with_the_way_out(new_cli, deployed, mounted, tmp_path):
    original = new_cli(state=deployed)
    folder = mounted("--bind", str(original.home), at=tmp_path / "read-only")
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    cli, before = new_cli(home=folder), original.state()
    cli.write_app()

    for command in (["up"], ["run", "kept.py"]):
        told = cli.refused("local", *command)
        assert f"state folder {folder} is not writable" in told
        assert "EROFS" in told
        assert "Set GPUSERVE_HOME to a folder that you may write" in told
    assert original.state() == before


def test_a_state_folder_without_write_permission_is_refused_with_the_way_out(new_cli, deployed):
    cli = new_cli(state=deployed)
    before = cli.state()
    cli.home.chmod(0o500)

    told = cli.refused("local", "up")

    assert f"state folder {cli.home} is not writable" in told
    assert "GPUSERVE_HOME" in told
    assert cli.state() == before


def test_a_state_file_without_permission_is_refused_with_the_way_out(new_cli, deployed):
    cli = new_cli(state=deployed)
    (cli.home / "engine.sqlite3").chmod(0o000)

    told = cli.refused("local", "up")

    assert f"state folder {cli.home} is not writable" in told
    assert "EACCES" in told


@dataclass
class Disk:
    """A small disk with a state folder on it."""

    cli: Any
    ballast: Path

    def fill(self):
        """Leave no block free."""
        with self.ballast.open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self):
        """Take the ballast away."""
        self.ballast.unlink()


@pytest.fixture
def disk(mounted, new_cli, tmp_path):
    folder = mounted("-t", "tmpfs", "-o", "size=4m", "gpuserve-test", at=tmp_path / "disk")
    cli = new_cli(home=folder / "home")
    yield Disk(cli, folder / "ballast")
    cli.leave_nothing()


def test_a_full_disk_at_the_first_start_is_named_and_leaves_nothing_behind(disk):
    cli = disk.cli
    disk.fill()

    told = cli.refused("local", "up")
    assert "no space left" in told
    assert "ENOSPC" in told
    assert "Free some space, or set GPUSERVE_HOME to another folder" in told

    disk.free()
    cli("local", "up")
    assert cli.apps() == []


def test_a_full_disk_at_a_later_start_is_named_and_nothing_is_lost(disk):
    cli = disk.cli
    cli.write_app()
    cli("local", "deploy", "kept.py")
    disk.fill()

    told = cli.refused("local", "up")
    assert "no space left" in told

    disk.free()
    assert cli.apps() == ["kept"]


PUT = """
import modal
modal.Dict.from_name("numbers", create_if_missing=True)["big"] = b"x" * 200_000
"""
QUEUE = """
import modal
modal.Queue.from_name("line", create_if_missing=True).put(b"x" * 200_000, block=False)
"""


def test_a_disk_that_fills_up_midway_fails_the_write_alone(disk):
    cli = disk.cli
    cli.write_app()
    cli.write_app("second")
    cli("local", "up")
    cli("local", "deploy", "kept.py")
    variables = cli.json("local", "env")

    def client(source):
        return subprocess.run(
            [sys.executable, "-c", source],
            env=cli.environment(**variables),
            capture_output=True,
            text=True,
            check=False,
        )

    assert client(PUT.replace("200_000", "10")).returncode == 0
    disk.fill()

    for source in (PUT, QUEUE):
        refused = client(source)
        assert refused.returncode == 1
        assert "the disk of the engine's state folder (GPUSERVE_HOME) is full" in refused.stderr
        assert "Free some space, and try again" in refused.stderr
    told = cli.refused("local", "deploy", "second.py", code=1)
    assert "is full" in told
    assert "Free some space, and try again" in told
    assert cli.apps() == ["kept"]

    disk.free()
    assert client(PUT).returncode == 0
    cli("local", "deploy", "second.py")
    assert sorted(cli.apps()) == ["kept", "second"]
    deployed = [app["version"] for app in cli.json("local", "status")["apps"] if app["state"] == "deployed"]
    assert deployed == [1, 1]
    cli.kill_engine()
    assert sorted(cli.apps()) == ["kept", "second"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"GPUSERVE_HOME": "/proc/nowhere/home"}, ["/proc/nowhere/home", "Set GPUSERVE_HOME"]),
        ({"GPUSERVE_HOME": "/dev/null"}, ["/dev/null is not a folder", "Set GPUSERVE_HOME"]),
        ({"GPUSERVE_HOME": "/dev/null/below"}, ["is not a folder", "ENOTDIR", "Set GPUSERVE_HOME"]),
        ({"GPUSERVE_HOME": "/tmp/" + "x" * 300}, ["ENAMETOOLONG", "Set GPUSERVE_HOME"]),
        ({"GPUSERVE_HOME": None, "XDG_STATE_HOME": None, "HOME": ""}, ["HOME is empty or unset", "Set GPUSERVE_HOME"]),
        (
            {"GPUSERVE_HOME": None, "XDG_STATE_HOME": None, "HOME": "/proc/no-home"},
            ["/proc/no-home/.local/state/gpuserve", "Set GPUSERVE_HOME"],
        ),
    ],
    ids=["under proc", "a device", "under a file", "too long", "HOME empty", "HOME missing"],
)
def test_an_environment_without_a_usable_folder_is_refused_by_name(variables, words, cli):
    told = cli.refused("local", "up", **variables)

    for word in words:
        assert word in told


def test_an_engine_whose_folders_have_too_long_paths_for_sockets_finds_a_short_one(tmp_path):
    home, temporary = tmp_path / ("home" * 30), tmp_path / ("long" * 30)
    temporary.mkdir()
    variables = {**os.environ, "GPUSERVE_HOME": str(home), "TMPDIR": str(temporary)}
    up = [sys.executable, "-m", "gpuserve.cli", "local", "up"]

    subprocess.run(up, env=variables, check=True, capture_output=True, timeout=60)
    url = json.loads(subprocess.check_output([*up[:-1], "status", "--json"], env=variables))["server_url"]
    subprocess.run([*up[:-1], "down"], env=variables, check=True, capture_output=True, timeout=60)

    folder = Path(url.removeprefix("unix://")).parent
    assert len(str(folder)) < 60
    assert not folder.exists()
    assert not [path for path in temporary.iterdir() if path.name.startswith("gpuserve-run-")]


def test_where_no_short_folder_is_to_be_had_the_engine_says_what_to_set(tmp_path):
    temporary = tmp_path / ("long" * 30)
    temporary.mkdir()
    variables = {**os.environ, "GPUSERVE_HOME": f"/mnt/{'home' * 30}", "TMPDIR": f"/mnt/{temporary.name}"}
    script = 'mount --bind "$1" /mnt && mount --bind /tmp /tmp && mount -o remount,bind,ro /tmp && shift && exec "$@"'
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this kernel or this user forbids mount namespaces")

    up = [sys.executable, "-m", "gpuserve.cli", "local", "up"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), *up],
        env=variables,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 2, done
    assert "too long a path for sockets" in done.stderr
    assert "Set GPUSERVE_HOME or TMPDIR to a shorter path" in done.stderr


def test_a_user_without_home_and_without_an_entry_is_told_so():
    if os.getuid():
        pytest.skip("only root may become another user")
    program = """
import os, pwd
from gpuserve.engine import default_home
from gpuserve.exceptions import StateError
for name in ("HOME", "GPUSERVE_HOME", "XDG_STATE_HOME"):
    os.environ.pop(name, None)
known = default_home()
os.setuid(123_456)
try:
    default_home()
except StateError as error:
    print(known, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.startswith(f"{Path('~root').expanduser()}/.local/state/gpuserve there is no place")
    assert "Set GPUSERVE_HOME" in done.stdout
