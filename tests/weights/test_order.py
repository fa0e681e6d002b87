"""What is published was on disk before it had its name, and is committed after."""

import os
from pathlib import Path

from weights_hub import COMMIT, REPO

import gpuserve
from gpuserve.runtime.lease import NoLease
from gpuserve.runtime.weights.fetch import FetchRun
from gpuserve.runtime.weights.store import WeightsStore


def test_every_file_is_synced_then_the_manifest_then_renamed_once_then_committed(hub, tmp_path, monkeypatch):
    steps = []
    fsync, rename = os.fsync, os.rename

    def seen_fsync(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        steps.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink()), status.st_size))

    def seen_rename(source, target, **other):
        steps.append(("rename", str(source), str(target)))
        rename(source, target, **other)

    class Volume:
        def commit(self):
            steps.append(("commit",))

        def reload(self):
            pass

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "rename", seen_rename)
    source = gpuserve.HubSource(REPO, revision=COMMIT)
    report = FetchRun(WeightsStore(tmp_path), source, Volume(), NoLease()).run()

    published = str(tmp_path / "snapshots" / report.snapshot)
    [at] = [place for place, step in enumerate(steps) if step[0] == "rename" and step[2] == published]
    before, after = steps[:at], steps[at + 1 :]
    synced = [Path(step[1]) for step in before if step[0] == "sync"]
    sizes = sorted(step[2] for step in before if step[0] == "sync" and step[1].endswith(".part"))
    manifest = next(place for place, path in enumerate(synced) if path.name == "manifest.json")

    assert sizes == sorted(map(len, hub.commits[COMMIT].values()))
    assert all(path.suffix != ".part" for path in synced[manifest:])
    assert {path.name for path in synced[:manifest]} >= {"files", "tokenizer"}  # the folders that hold the names
    assert [path.name for path in synced[manifest + 1 :]] == ["snapshot"]
    # the emptied working folder is taken out of sight as well, which no reader looks at
    cleared = [step for step in after if step[0] == "rename" and Path(step[1]).is_relative_to(tmp_path / "incomplete")]
    seen = [step[:2] for step in after if step not in cleared]
    assert seen == [("sync", str(tmp_path / "snapshots")), ("commit",)]
