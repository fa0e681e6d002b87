"""A fetch from a hub that tells the truth, and from hubs that do not: whole and verified, or refused."""

import hashlib
import pickle

import pytest
from weights_hub import COMMIT, OTHER_COMMIT, REPO, git_oid, tensors

import gpuserve

SHARD = "model-00001-of-00002.safetensors"
PINNED = gpuserve.HubSource(REPO, revision=COMMIT)


def cache(source=PINNED, **fields):
    return gpuserve.VolumeWeightsCache(source=source, **fields)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nothing_is_published(root):
    return list((root / "snapshots").iterdir()) == []


def test_a_pinned_repository_is_fetched_once_and_loads_verified(hub, tmp_path):
    moved = []
    report = cache().fetch(root=tmp_path, on_progress=moved.append)
    before = len(hub.requests)
    again = cache().fetch(root=tmp_path)
    snapshot = cache().snapshot(root=tmp_path)

    assert contents(snapshot.path) == hub.commits[COMMIT]
    assert (report.published, report.commit, again.published) == (True, COMMIT, False)
    assert report.fetched == report.size == sum(map(len, hub.commits[COMMIT].values()))
    assert len(hub.requests) == before  # what is pinned and whole needs no hub
    assert {one.path: one.sha256 for one in snapshot.manifest.files} == {
        path: hashlib.sha256(data).hexdigest() for path, data in hub.commits[COMMIT].items()
    }
    assert moved[-1].done == moved[-1].total == report.size
    assert list((tmp_path / "incomplete").glob(f"*{COMMIT}*/")) == []


def test_every_address_of_a_file_carries_the_pinned_commit(hub, tmp_path):
    with pytest.warns(UserWarning, match=f"write revision='{COMMIT}'"):
        cache(gpuserve.HubSource(REPO)).fetch(root=tmp_path)
    files = [path for _, _, path, _ in hub.requests if "/resolve/" in path]
    assert len(files) == 8
    assert all(f"/resolve/{COMMIT}/" in path for path in files)


def test_a_branch_is_recorded_when_it_is_fetched_and_moves_only_when_told(hub, tmp_path):
    branch = cache(gpuserve.HubSource(REPO, revision="main"))
    with pytest.warns(UserWarning, match="is not pinned"):
        branch.fetch(root=tmp_path)
    hub.branches["main"] = OTHER_COMMIT
    assert branch.fetch(root=tmp_path).commit == COMMIT
    assert branch.snapshot(root=tmp_path).manifest.commit == COMMIT
    with pytest.warns(UserWarning, match=OTHER_COMMIT):
        assert branch.fetch(root=tmp_path, refresh=True).commit == OTHER_COMMIT


@pytest.mark.parametrize("mode", ["flip", "swapped", "short", "long"])
@pytest.mark.parametrize("file", [SHARD, "config.json"])
def test_a_bad_file_is_fetched_again_once_and_then_refused(hub, tmp_path, quick_retries, mode, file):
    hub.break_file(file, mode, times=1)
    healed = cache().fetch(root=tmp_path / "healed")
    hub.break_file(file, mode)
    with pytest.raises(gpuserve.ChecksumMismatchError, match=file) as refused:
        cache().fetch(root=tmp_path / "refused")
    data = hub.commits[COMMIT][file]
    assert contents(cache().path(root=tmp_path / "healed")) == hub.commits[COMMIT]
    assert healed.published
    assert refused.value.expected == (hashlib.sha256(data).hexdigest() if file == SHARD else git_oid(data))
    assert nothing_is_published(tmp_path / "refused")


def test_a_body_that_breaks_off_is_taken_up_where_it_broke(hub, tmp_path, quick_retries):
    hub.break_file(SHARD, "breaks", times=1)
    cache().fetch(root=tmp_path)
    assert [headers["range"] for _, _, path, headers in hub.requests if SHARD in path and "range" in headers] == [
        f"bytes={len(hub.commits[COMMIT][SHARD]) // 2 // 4096 * 4096 + 4096}-"
    ]
    assert contents(cache().path(root=tmp_path)) == hub.commits[COMMIT]


def test_a_range_that_is_another_range_is_found_out(hub, tmp_path, quick_retries):
    hub.break_file(SHARD, "wrong_range", times=1)
    cache().fetch(root=tmp_path)
    assert contents(cache().path(root=tmp_path)) == hub.commits[COMMIT]


def test_a_wrong_etag_decides_nothing(hub, tmp_path):
    hub.break_file(SHARD, "wrong_etag")
    cache().fetch(root=tmp_path)
    assert contents(cache().path(root=tmp_path)) == hub.commits[COMMIT]


def test_a_second_host_is_followed_without_the_token(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    hub.token = "hf_canary"
    hub.break_file(SHARD, "redirect")
    cache().fetch(root=tmp_path)
    assert contents(cache().path(root=tmp_path)) == hub.commits[COMMIT]
    elsewhere = [headers for host, _, _, headers in hub.requests if host == "cdn"]
    assert elsewhere
    assert all("authorization" not in headers for headers in elsewhere)


def test_a_revision_that_moves_during_the_fetch_is_refused(hub, tmp_path):
    hub.break_file(SHARD, "moved")
    with pytest.raises(gpuserve.WeightsSourceError, match=f"asked for commit {COMMIT}, the hub serves {OTHER_COMMIT}"):
        cache().fetch(root=tmp_path)
    assert nothing_is_published(tmp_path)


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_gated_repository_says_what_to_accept_and_where(hub, tmp_path, monkeypatch, token):
    hub.token = "hf_right"
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(gpuserve.GatedSourceError, match=r"org/model is gated: .*SecretSpec.*HF_TOKEN"):
        cache().fetch(root=tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (gpuserve.HubSource("org/absent", revision=COMMIT), "knows no org/absent"),
        (gpuserve.HubSource(REPO, revision="9" * 40), "has no revision 9999"),
        (gpuserve.HubSource(REPO, revision=COMMIT, allow_unsafe=("pytorch_model.bin",)), "has no pytorch_model.bin"),
        (gpuserve.HubSource(REPO, revision=COMMIT, include=("*.gguf",)), "leave none"),
    ],
)
def test_what_is_not_there_is_named(hub, tmp_path, source, message):
    with pytest.raises(gpuserve.WeightsSourceError, match=message):
        cache(source).fetch(root=tmp_path)


def test_pickles_and_code_are_left_and_refused_where_there_is_nothing_else(hub, tmp_path):
    files = hub.commits[COMMIT]
    files |= {"pytorch_model.bin": b"PK\x03\x04", "modeling_evil.py": b"raise SystemExit", ".gitattributes": b""}
    cache().fetch(root=tmp_path)
    assert not {"pytorch_model.bin", "modeling_evil.py", ".gitattributes"} & set(contents(cache().path(root=tmp_path)))

    only = gpuserve.HubSource(REPO, revision=COMMIT, exclude=("*.safetensors",))
    with pytest.raises(gpuserve.UnsafeWeightsError, match=r'safetensors.*allow_unsafe=\("pytorch_model.bin",\)'):
        cache(only).fetch(root=tmp_path)

    allowed = cache(only.model_copy(update={"allow_unsafe": ("pytorch_model.bin",)}))
    allowed.fetch(root=tmp_path)
    assert [one.path for one in allowed.snapshot(root=tmp_path).manifest.files if one.unsafe] == ["pytorch_model.bin"]


def test_an_old_torch_is_refused_where_pickles_were_allowed(hub, tmp_path, monkeypatch):
    hub.commits[COMMIT]["pytorch_model.bin"] = b"PK\x03\x04"
    allowed = cache(gpuserve.HubSource(REPO, revision=COMMIT, allow_unsafe=("pytorch_model.bin",)))
    allowed.fetch(root=tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "2.9.1+cpu")
    with pytest.raises(gpuserve.UnsafeWeightsError, match=r"older than 2\.10.*Pin torch 2\.10 or newer"):
        allowed.path(root=tmp_path)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\x80\x04\x95" + b"x" * 100, gpuserve.UnsafeWeightsError),
        (b"PK\x03\x04" + b"x" * 100, gpuserve.UnsafeWeightsError),
        (tensors(1)[:-4], gpuserve.WeightsCorruptError),
        (b"", gpuserve.WeightsCorruptError),
    ],
)
def test_what_only_looks_like_safetensors_is_never_published(hub, tmp_path, data, error):
    hub.commits[COMMIT][SHARD] = data
    with pytest.raises(error, match=SHARD) as refused:
        cache().fetch(root=tmp_path)
    assert "allow_unsafe" not in str(refused.value)  # which takes files by their names, and this one's is a lie
    assert nothing_is_published(tmp_path)


def test_a_damaged_snapshot_is_mended_from_its_good_files(hub, tmp_path):
    cache().fetch(root=tmp_path)
    path = next(tmp_path.glob(f"snapshots/*/files/{SHARD}"))
    data = bytearray(path.read_bytes())
    data[5000] ^= 4
    path.write_bytes(data)
    mended = cache().fetch(root=tmp_path)
    assert (mended.published, mended.fetched) == (True, len(data))
    assert contents(path.parent) == hub.commits[COMMIT]


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "../../escape.json", "size": 1, "oid": "0" * 40},
        {"path": "/etc/x.json", "size": 1, "oid": "0" * 40},
        {"path": "x.json", "size": -1, "oid": "0" * 40},
        {"path": "x.json", "size": 1, "oid": "../../../escape"},
        {"path": "x.safetensors", "size": 1, "oid": "0" * 40, "lfs": {"oid": "../../e", "size": 1, "pointerSize": 1}},
        {"path": f"config.json/{'x' * 9}.json", "size": 1, "oid": "0" * 40},
        {"path": f"{'x' * 300}.json", "size": 1, "oid": "0" * 40},
    ],
)
def test_a_hub_that_names_what_cannot_be_a_file_is_not_believed(hub, tmp_path, entry):
    hub.extra_entries.append({"type": "file", **entry})
    with pytest.raises(gpuserve.WeightsSourceError, match="do not trust it"):
        cache().fetch(root=tmp_path / "store")
    assert hub.sent == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_a_branch_whose_snapshot_is_damaged_is_mended_at_its_recorded_commit(hub, tmp_path):
    branch = cache(gpuserve.HubSource(REPO))
    with pytest.warns(UserWarning, match="is not pinned"):
        branch.fetch(root=tmp_path)
    hub.branches["main"] = OTHER_COMMIT
    next(tmp_path.glob(f"snapshots/*/files/{SHARD}")).write_bytes(b"")
    assert (mended := branch.fetch(root=tmp_path)).published
    assert (mended.commit, branch.snapshot(root=tmp_path).manifest.commit) == (COMMIT, COMMIT)


def test_one_content_at_two_paths_is_fetched_once(hub, tmp_path):
    hub.commits[COMMIT]["again.safetensors"] = hub.commits[COMMIT][SHARD]
    report = cache().fetch(root=tmp_path)
    assert report.size - report.fetched == len(hub.commits[COMMIT][SHARD])
    assert contents(cache().path(root=tmp_path)) == hub.commits[COMMIT]


def test_every_error_survives_pickling():
    for error in (
        gpuserve.ChecksumMismatchError("f", "1", "2"),
        gpuserve.UnsafeWeightsError(("a", "b"), "why"),
        gpuserve.UnsafeWeightsError(("a", "b"), "why", "do this"),
        gpuserve.WeightsCorruptError("f", "why"),
        gpuserve.DiskFullError("/p", 5, 3),
        gpuserve.GatedSourceError("gated"),
        gpuserve.WeightsNotFoundError("none"),
    ):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back), back.__dict__) == (type(error), str(error), error.__dict__)
