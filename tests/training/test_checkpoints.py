"""Checkpoints that are killed, damaged and out of disk: the newest whole one is always there, and is never mixed."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_saver import files_of, save
from training_tiny import seeded

import gpuserve
from gpuserve.runtime.ports import PlainFolder
from gpuserve.runtime.training.checkpoints import CheckpointStore

pytestmark = pytest.mark.wide

HERE = Path(__file__).parent


@pytest.fixture
def store(tmp_path):
    made = CheckpointStore(tmp_path, PlainFolder(), keep=2, on_fault=lambda name, why: faults.append((name, why)))
    faults = made.faults = []
    made.prepare()
    return made


@pytest.fixture(scope="module")
def saver():
    process = subprocess.Popen(
        [sys.executable, str(HERE / "saver.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(**told):
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())["code"]

    yield run
    process.stdin.close()
    process.wait(20)
    process.stdout.close()


def contents(checkpoint):
    return {path.name: path.read_bytes() for path in checkpoint.path.iterdir()}


def test_what_was_written_is_read_back_and_older_ones_make_room(store):
    assert store.newest() is None
    for step in (5, 10, 15, 20):
        save(store, step)
    assert contents(store.newest()) == files_of(20)
    assert sorted(path.name[:14] for path in store.folder.iterdir()) == ["step-000000015", "step-000000020"]


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_it_is_used(store):
    dice = seeded()
    for step in range(1, 16):
        save(store, step)
        newest = max(store.folder.iterdir())
        victim = dice.choice([path for path in newest.rglob("*") if path.is_file()])
        how = dice.choice(["flip", "cut", "gone", "more", "link"])
        data = bytearray(victim.read_bytes())
        if how == "flip":
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            victim.write_bytes(data)
        elif how == "cut":
            victim.write_bytes(data[: dice.randrange(len(data))])
        elif how == "more":
            (newest / "files" / "more.bin").write_bytes(b"x")
        else:
            victim.unlink()
            if how == "link":
                victim.symlink_to("/etc/passwd")
        found = store.newest()
        assert (found.step if found is not None else 0) == step - 1, how
        assert store.faults.pop()[0] == newest.name
        shutil.rmtree(newest)
        save(store, step)


def test_a_manifest_cannot_be_made_to_read_outside_its_checkpoint(store):
    save(store, 1)
    manifest = next(store.folder.glob("*/manifest.json"))
    manifest.write_text(manifest.read_text().replace("optimizer.pt", "../../../etc/x"))
    assert store.newest() is None


def killed(saver, root, dice, points):
    """Kill writers at random steps, one after the other on the same folder; what is left is always usable."""
    out = root.with_suffix(".out")
    assert saver(root=str(root / "whole"), checkpoints=2, out=str(out)) == 0
    most = int(out.read_text())
    store = CheckpointStore(root / "run", PlainFolder(), keep=2)
    reached = hit = 0
    for _ in range(points):
        code = saver(
            root=str(root / "run"), checkpoints=2, out=str(out), kill_at_step=dice.randrange(1, most + most // 4)
        )
        hit += code == -signal.SIGKILL
        newest = store.newest()
        assert newest is not None or reached == 0
        if newest is not None:
            assert newest.step >= reached
            assert contents(newest) == files_of(newest.step)
            reached = newest.step
    assert hit > points // 2
    assert len(list((root / "run/incomplete").iterdir())) <= 2


def test_a_writer_killed_at_any_step_leaves_the_checkpoint_before_it(saver, tmp_path):
    killed(saver, tmp_path, seeded(), 20)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_a_thousand_crash_points_leave_a_checkpoint_that_loads(saver, tmp_path):
    killed(saver, tmp_path, seeded(), 1000)


def save_all(store):
    for step in range(1, 100):
        save(store, step)


def test_a_full_disk_loses_no_checkpoint(small_disk):
    disk = small_disk("400k")
    store = CheckpointStore(disk, PlainFolder(), keep=100)
    store.prepare()
    with pytest.raises(gpuserve.DiskFullError) as full:
        save_all(store)
    assert full.value.path.startswith(str(disk))
    newest = store.newest()
    assert newest.step > 0
    assert contents(newest) == files_of(newest.step)
    with pytest.raises(gpuserve.DiskFullError):
        save(store, newest.step + 1)
    assert store.newest() == newest
    # its own partial files are gone, and there is room for what was there before
    assert list((disk / "incomplete").iterdir()) == []


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_every_system_call_of_a_checkpoint_may_fail_and_the_one_before_it_loads(error, tmp_path, debian_packages):
    """Exhaustive: the k-th write, fsync, rename or mkdir below the folder fails, for every k."""
    if shutil.which("strace") is None:
        debian_packages("strace")
    program = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from pathlib import Path\nfrom saver import CheckpointStore, PlainFolder, save\n"
        "store = CheckpointStore(Path(sys.argv[1]), PlainFolder(), keep=5)\n"
        "try: save(store, 2)\nexcept Exception as error: print(type(error).__name__, error)\n"
    )
    root = tmp_path / "run"
    store = CheckpointStore(root, PlainFolder(), keep=5)
    store.prepare()
    save(store, 1)
    before = contents(store.newest())

    def run(name, k):
        for path in (*store.folder.glob("step-000000002-*"), *(root / "incomplete").iterdir()):
            shutil.rmtree(path)
        log = tmp_path / "log"
        inject = [] if k is None else ["-e", f"inject={name}:error={error}:when={k}"]
        done = subprocess.run(
            ["strace", "-qq", "-e", f"trace={name}", "-y", "-s", "300", *inject, "-o", str(log),
             sys.executable, "-c", program, str(root)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done, log.read_text().splitlines()

    tried = 0
    for name in ("write", "fsync", "rename"):
        _, lines = run(name, None)
        ours = [place for place, line in enumerate(lines, 1) if str(root) in line]
        assert ours, name
        for k in ours:
            done, lines = run(name, k)
            injected = [line for line in lines if "(INJECTED)" in line]
            assert injected, (name, k, done.stderr)
            assert str(root) in injected[0], (name, k)
            newest = store.newest()
            assert newest is not None, (name, k)
            assert contents(newest) in (before, files_of(2)), (name, k)
            if newest.step == 1:
                word = "DiskFullError" if error == "ENOSPC" else "OSError"
                assert re.match(word, done.stdout), (name, k, done.stdout, done.stderr)
            tried += 1
    print(f"{error}: {tried} calls failed, one at a time")
