"""R4: whenever a fetch of a new revision is killed, the revision before it still verifies, and loads."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from weights_hub import COMMIT, OTHER_COMMIT, REPO, tensors

import gpuserve
from gpuserve.runtime.loading import load_safetensors
from gpuserve.runtime.ports import PlainFolder
from gpuserve.runtime.weights.fetch import begin_reading
from gpuserve.runtime.weights.pruning import verified
from gpuserve.runtime.weights.store import WeightsStore

SHARD = "model.safetensors"


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="the models extra is not installed")


@pytest.fixture
def small(hub):
    """A hub with two revisions of one model, of one file of tensors each, so that a folder of it loads as it is."""
    for number, commit in enumerate((COMMIT, OTHER_COMMIT)):
        hub.commits[commit] = {
            "config.json": b'{"revision": %d}' % number,
            "tokenizer/vocab.txt": b"\n".join(b"word%d" % n for n in range(500 + number)),
            SHARD: tensors(number, 5_000),
        }
    return hub


def opened(root, revision):
    """The folder of a revision as a process sees it that has read nothing before: every byte is verified again."""
    source = gpuserve.HubSource(REPO, revision=revision)
    return begin_reading(WeightsStore(root), source, PlainFolder()).wait().path


def require_loads(hub, folder, commit):
    """What the loading helper makes of a folder is what the hub has at this commit."""
    from safetensors.torch import load

    loaded, expected = load_safetensors(folder), load(hub.commits[commit][SHARD])
    assert set(loaded) == set(expected)
    assert all(loaded[name].equal(tensor) for name, tensor in expected.items())
    assert (folder / "config.json").read_bytes() == hub.commits[commit]["config.json"]


def require_whole(root):
    """Everything that has a snapshot's name is whole, whatever was killed; how many there are."""
    found = verified(WeightsStore(root))
    assert [fault for _key, fault in found if fault] == []
    return len(found)


def kill_at(hub, byte, kill):
    """Call *kill* once, as soon as the hub has sent this many bytes."""
    fired = threading.Event()

    def sent(total):
        if total >= byte and not fired.is_set():
            fired.set()
            kill()

    hub.sent, hub.on_sent = 0, sent


def test_a_fetch_of_a_new_revision_killed_at_any_step_leaves_the_one_before_to_load(small, fetchers, tmp_path, torch):
    """At every file that it opens, makes, renames, lists, locks or removes: from its first to past its publication."""
    job = {"endpoint": small.url, "lease": True}
    new = {**job, "revision": OTHER_COMMIT}
    fetchers.run(root=tmp_path / "whole", **job, revision=COMMIT)
    before = shutil.copytree(tmp_path / "whole", tmp_path / "before")
    _codes, [whole] = fetchers.run(root=tmp_path / "whole", **new)
    published = []
    for step in range(1, whole["steps"] + 1):
        root = shutil.copytree(before, tmp_path / str(step))
        codes, _ = fetchers.run(root=root, **new, kill_at_step=step)
        assert codes == [-signal.SIGKILL], step
        published.append(require_whole(root) == 2)
        require_loads(small, opened(root, COMMIT), COMMIT)
    # killed before the new one had its name, and after: once it has, it stays
    assert set(published) == {False, True}
    assert published == sorted(published)


def test_a_fetch_of_a_new_revision_killed_at_any_byte_leaves_the_one_before_to_load(small, fetchers, tmp_path, torch):
    job = {"endpoint": small.url, "lease": True}
    fetchers.run(root=tmp_path / "before", **job, revision=COMMIT)
    size = sum(map(len, small.commits[OTHER_COMMIT].values()))
    small.piece, ended = 1024, []
    for byte in range(1, size, small.piece):
        root = shutil.copytree(tmp_path / "before", tmp_path / str(byte))
        started, pids = threading.Event(), []

        def kill(started=started, pids=pids):
            started.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGKILL)

        kill_at(small, byte, kill)
        pids += fetchers.start(root=root, **job, revision=OTHER_COMMIT)
        started.set()
        ended += fetchers.wait()[0]
        require_whole(root)
        require_loads(small, opened(root, COMMIT), COMMIT)
    small.on_sent = lambda _total: None
    # but for the last pieces, which may be all that it waited for
    assert ended[:-3] == [-signal.SIGKILL] * (len(ended) - 3)
    assert len(ended) > 20

    codes, [report] = fetchers.run(root=root, **job, revision=OTHER_COMMIT)
    assert codes == [0], report
    assert require_whole(root) == 2
    require_loads(small, opened(root, OTHER_COMMIT), OTHER_COMMIT)
    require_loads(small, opened(root, COMMIT), COMMIT)


@pytest.mark.filterwarnings("ignore:.* is not pinned")
def test_a_branch_stays_what_it_was_when_its_refresh_is_killed_and_moves_when_one_ends(small, tmp_path, torch):
    """The command itself, as a user starts it: what the branch stands for is recorded after all else is whole."""
    gpuserve.VolumeWeightsCache(source=gpuserve.HubSource(REPO, revision="main")).fetch(root=tmp_path)
    small.branches["main"] = OTHER_COMMIT
    size = sum(map(len, small.commits[OTHER_COMMIT].values()))
    command = [sys.executable, "-m", "gpuserve.cli", "weights", "fetch", REPO, "--refresh", "--folder", str(tmp_path)]
    start = functools.partial(
        subprocess.Popen, [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for byte in (1, size // 2):
        started, processes = threading.Event(), []

        def kill(started=started, processes=processes):
            started.wait(10)
            processes[0].kill()

        kill_at(small, byte, kill)
        with start() as process:
            processes.append(process)
            started.set()
            assert process.wait(60) == -signal.SIGKILL
        assert require_whole(tmp_path) == 1
        require_loads(small, opened(tmp_path, "main"), COMMIT)

    small.on_sent = lambda _total: None
    with start() as process:
        assert process.wait(60) == 0
    assert require_whole(tmp_path) == 2
    require_loads(small, opened(tmp_path, "main"), OTHER_COMMIT)
    require_loads(small, opened(tmp_path, COMMIT), COMMIT)
