"""Fetchers that are killed, that come all at once, and that run out of disk."""

import contextlib
import os
import random
import signal
import threading

import pytest
from weights_hub import COMMIT, OTHER_COMMIT, REPO, model_files

import gpuserve
from gpuserve.runtime.ports import PlainFolder
from gpuserve.runtime.weights.fetch import begin_reading
from gpuserve.runtime.weights.store import WeightsStore

SOURCE = gpuserve.HubSource(REPO, revision=COMMIT)
CHUNK = 4096


def published(root):
    """What a reader sees now: a whole snapshot, or none; anything else raises."""
    try:
        return begin_reading(WeightsStore(root), SOURCE, PlainFolder()).wait()
    except gpuserve.WeightsNotFoundError:
        return None


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed_and_resumed(hub, fetchers, root, rng, steps):
    """One fetch killed at a random byte or step, and then another to its end; what the second fetched again."""
    hub.sent, hub.on_sent = 0, lambda _total: None
    size = sum(map(len, hub.commits[COMMIT].values()))
    job = {"root": root, "endpoint": hub.url, "revision": COMMIT, "chunk": CHUNK}
    by_byte = rng.random() < 0.5
    if by_byte:
        at = rng.randrange(1, size)
        pids: list[int] = []
        started, fired = threading.Event(), threading.Event()

        def kill(total):
            if total >= at and not fired.is_set():
                fired.set()  # once: later the pid may be another process's
                started.wait(10)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids[0], signal.SIGKILL)

        hub.on_sent = kill
        pids += fetchers.start(**job)
        started.set()
        codes, _ = fetchers.wait()
    else:
        codes, _ = fetchers.run(**job, kill_at_step=rng.randrange(1, steps + 1))
    hub.on_sent = lambda _total: None
    before = published(root)
    held = sum(path.stat().st_size for path in root.glob("incomplete/*/parts/*"))
    held += sum(path.stat().st_size for path in root.glob("incomplete/*/snapshot/files/**/*") if path.is_file())
    codes_again, [report] = fetchers.run(**job)
    assert codes_again == [0], report
    assert "error" not in report, report["text"]
    assert contents(published(root).path) == hub.commits[COMMIT]
    assert before is not None or report["published"]
    # what is on disk is not fetched again, and what is not on disk is what was in flight
    assert report["fetched"] == (0 if before is not None else size - held)
    assert [path for path in root.glob("incomplete/hub--*") if path.is_dir()] == []
    return codes == [-signal.SIGKILL]


def kill_many(hub, fetchers, tmp_path, count):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    hub.commits[COMMIT] = model_files(0, numbers=10_000)
    job = {"endpoint": hub.url, "revision": COMMIT, "chunk": CHUNK}
    _, [whole] = fetchers.run(root=tmp_path / "whole", **job)
    assert "error" not in whole, whole["text"]
    killed = sum(
        killed_and_resumed(hub, fetchers, tmp_path / str(number), rng, whole["steps"]) for number in range(count)
    )
    assert killed >= count // 2


def test_a_killed_fetch_leaves_nothing_half_published_and_is_taken_up(hub, fetchers, tmp_path):
    kill_many(hub, fetchers, tmp_path, 20)


@pytest.mark.heavy
@pytest.mark.timeout(3000)
def test_a_thousand_kills_leave_nothing_half_published(hub, fetchers, tmp_path):
    kill_many(hub, fetchers, tmp_path, 1000)


@pytest.mark.parametrize("lease", [False, True])
def test_twenty_fetchers_at_once_publish_once_and_all_succeed(hub, fetchers, tmp_path, lease):
    hub.commits[COMMIT] = model_files(0, numbers=10_000)
    job = {"root": tmp_path, "endpoint": hub.url, "revision": COMMIT, "lease": lease, "count": 20}
    codes, reports = fetchers.run(**job)
    assert codes == [0] * 20
    assert [one["text"] for one in reports if "error" in one] == []
    assert sum(one["published"] for one in reports) == 1
    assert len({one["snapshot"] for one in reports}) == 1
    assert contents(published(tmp_path).path) == hub.commits[COMMIT]
    if lease:
        assert hub.sent == sum(map(len, hub.commits[COMMIT].values()))


@pytest.mark.heavy
def test_fifty_times_twenty_fetchers_at_once_publish_once(hub, fetchers, tmp_path):
    hub.commits[COMMIT] = model_files(0, numbers=2_000)
    for number in range(50):
        root = tmp_path / str(number)
        job = {"root": root, "endpoint": hub.url, "revision": COMMIT, "lease": False, "count": 20}
        codes, reports = fetchers.run(**job)
        assert codes == [0] * 20
        assert [one["text"] for one in reports if "error" in one] == []
        assert sum(one["published"] for one in reports) == 1
        assert contents(published(root).path) == hub.commits[COMMIT]


@pytest.fixture
def disk(small_disk):
    return small_disk("2m")


def test_too_little_room_is_told_before_a_byte_is_fetched(hub, disk):
    hub.commits[COMMIT] = model_files(0, numbers=600_000)
    with pytest.raises(gpuserve.DiskFullError) as full:
        gpuserve.VolumeWeightsCache(source=SOURCE).fetch(root=disk)
    assert (full.value.path, full.value.need) == (str(disk), sum(map(len, hub.commits[COMMIT].values())))
    assert full.value.free < full.value.need
    assert hub.sent == 0


def test_a_disk_that_fills_at_any_moment_costs_no_snapshot(hub, disk, quick_retries):
    """The disk fills after each twentieth of the download."""
    hub.commits[COMMIT] = model_files(0, numbers=20_000)
    hub.commits[OTHER_COMMIT] = model_files(1, numbers=60_000)
    first = gpuserve.VolumeWeightsCache(source=SOURCE)
    second = gpuserve.VolumeWeightsCache(source=gpuserve.HubSource(REPO, revision=OTHER_COMMIT), workers=1)
    first.fetch(root=disk)
    size = sum(map(len, hub.commits[OTHER_COMMIT].values()))
    ballast = disk / "ballast"
    full = 0
    for twentieth in range(20):
        hub.sent = 0

        def fill(total, at=size * twentieth // 20):
            if total >= at and not ballast.exists():
                with ballast.open("wb", buffering=0) as file:
                    try:
                        while file.write(b"x" * 4096):
                            pass
                    except OSError:
                        return

        hub.on_sent = fill
        try:
            second.fetch(root=disk)
        except gpuserve.DiskFullError as error:
            full += error.path.startswith(str(disk))
        hub.on_sent = lambda _total: None
        ballast.unlink()
        assert contents(published(disk).path) == hub.commits[COMMIT]
    assert full >= 18
    second.fetch(root=disk)
    assert contents(second.path(root=disk)) == hub.commits[OTHER_COMMIT]


def test_a_damaged_snapshot_is_mended_by_many_at_once(hub, fetchers, tmp_path):
    hub.commits[COMMIT] = model_files(0, numbers=10_000)
    job = {"root": tmp_path, "endpoint": hub.url, "revision": COMMIT, "lease": True}
    fetchers.run(**job)
    next(tmp_path.glob("snapshots/*/files/config.json")).write_bytes(b"{}")
    codes, reports = fetchers.run(**job, count=8)
    assert codes == [0] * 8
    assert [one["text"] for one in reports if "error" in one] == []
    assert sum(one["published"] for one in reports) == 1
    assert contents(published(tmp_path).path) == hub.commits[COMMIT]
