"""Whatever happens to a published snapshot on disk, it is refused before anything is loaded."""

import hashlib
import json
import os
import random
import shutil
import threading

import pytest
from weights_hub import COMMIT, REPO, model_files

import gpuserve
from gpuserve.runtime.ports import PlainFolder
from gpuserve.runtime.weights.fetch import begin_reading
from gpuserve.runtime.weights.headers import read_header
from gpuserve.runtime.weights.manifest import SnapshotManifest, _canonical
from gpuserve.runtime.weights.snapshot import open_snapshot
from gpuserve.runtime.weights.store import WeightsStore

SOURCE = gpuserve.HubSource(REPO, revision=COMMIT)
REFUSALS = (gpuserve.WeightsCorruptError, gpuserve.ChecksumMismatchError, gpuserve.WeightsNotFoundError)


@pytest.fixture
def root(hub, tmp_path):
    hub.commits[COMMIT] = model_files(0, numbers=800)
    gpuserve.VolumeWeightsCache(source=SOURCE).fetch(root=tmp_path)
    return tmp_path


def flip(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def cut(data, rng):
    return data[: rng.randrange(len(data))]


def grow(data, rng):
    return data + rng.randbytes(rng.randrange(1, 50))


def zero(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + bytes(min(16, len(data) - at)) + data[at + 16 :]


def splice(data, rng):
    a, b = sorted(rng.sample(range(len(data)), 2))
    return data[b:] + data[a:b] + data[:a]


def damage_content(rng, folder, files):
    path = rng.choice(files)
    data = path.read_bytes()
    changed = rng.choice([flip, flip, flip, cut, grow, zero, splice])(data, rng)
    path.write_bytes(changed)
    return f"{path.name} changed", changed != data


def damage_names(rng, folder, files):
    path = rng.choice(files)
    match rng.randrange(8):
        case 0:
            path.unlink()
        case 1:
            (path.parent / "extra.json").write_text("{}")
        case 2:
            target = folder.parents[1] / "elsewhere"
            target.write_bytes(path.read_bytes())
            path.unlink()
            path.symlink_to(target)
        case 3:
            path.rename(path.with_name("renamed.txt"))
        case 4:
            path.unlink()
            path.mkdir()
        case 5:
            path.unlink()
            os.mkfifo(path)
        case 6:
            (folder / "files" / "empty").mkdir()
        case 7:
            one, other = rng.sample(files, 2)
            first, second = one.read_bytes(), other.read_bytes()
            one.write_bytes(second)
            other.write_bytes(first)
    return f"names around {path.name}", True


def damage_manifest_on_purpose(rng, folder, files):
    """A liar who rewrites the manifest, checksum and all, but cannot rewrite the files to fit."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    one = rng.choice(body["files"])
    match rng.randrange(7):
        case 0:
            one["path"] = rng.choice(["../../escape", "/etc/passwd", "a/../b", "./x", "", "a\\b", "a\nb"])
        case 1:
            one["sha256"] = rng.choice(["../../x", "A" * 64, "0" * 64, "0" * 63, 7])
        case 2:
            one["size"] = rng.choice([-1, 0, 1 << 60, "12", True, 1.5])
        case 3:
            body["files"].append(dict(one))
        case 4:
            body["commit"] = rng.choice(["main", "0" * 40, "", None])
        case 5:
            body[rng.choice(["schema_version", "digest", "source"])] = rng.choice([2, None, "x", {}])
        case 6:
            body["surprise"] = 1
    body.pop("checksum")
    checksum = hashlib.sha256(_canonical(body)).hexdigest()
    path.write_bytes(_canonical({**body, "checksum": checksum}))
    return "the manifest rewritten", True


def corruptions_refused(root, seed, count):
    rng = random.Random(seed)
    store = WeightsStore(root)
    key = store.pinned_key(SOURCE)
    clean = root.parent / "clean"
    shutil.copytree(store.folder(key), clean)
    refused = 0
    for number in range(count):
        folder = store.folder(key)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        damage = rng.choice([damage_content, damage_content, damage_names, damage_manifest_on_purpose])
        what, is_damage = damage(rng, folder, files)
        if is_damage:
            try:
                begin_reading(store, SOURCE, PlainFolder()).wait()
            except REFUSALS:
                refused += 1
            else:
                pytest.fail(f"seed {seed}, number {number}: {what}, and it was opened")
        shutil.rmtree(folder)
        shutil.copytree(clean, folder)
    assert begin_reading(store, SOURCE, PlainFolder()).wait().manifest.commit == COMMIT
    return refused


def test_corruptions_of_every_kind_are_refused(root):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    assert corruptions_refused(root, seed, 300) >= 290


@pytest.mark.heavy
def test_ten_thousand_corruptions_are_refused(root):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    assert corruptions_refused(root, seed, 10_100) >= 10_000


def test_every_single_byte_of_a_manifest_counts(root):
    folder = next((root / "snapshots").iterdir())
    manifest = folder / "manifest.json"
    text = manifest.read_bytes()
    for at in range(len(text)):
        changed = text[:at] + bytes([text[at] ^ 0x01]) + text[at + 1 :]
        with pytest.raises(gpuserve.WeightsCorruptError):
            SnapshotManifest.from_bytes(changed, where="manifest.json")
    assert SnapshotManifest.from_bytes(text, where="manifest.json").commit == COMMIT


def test_a_snapshot_of_another_commit_under_the_pinned_name_is_refused(root):
    store = WeightsStore(root)
    other = gpuserve.HubSource(REPO, revision="8" * 40)
    store.folder(store.pinned_key(SOURCE)).rename(store.folder(store.pinned_key(other)))
    with pytest.raises(gpuserve.WeightsCorruptError, match=f"its manifest is of .* at {COMMIT}"):
        gpuserve.VolumeWeightsCache(source=other).path(root=root)


def test_what_is_missing_is_looked_for_once_more_after_a_reload(root, tmp_path):
    store = WeightsStore(root)
    folder = store.folder(store.pinned_key(SOURCE))
    hidden = folder.rename(root / "not-yet-seen")

    class Volume:
        reloads = 0

        def reload(self):
            self.reloads += 1
            hidden.rename(folder)

    volume = Volume()
    assert begin_reading(store, SOURCE, volume).wait().manifest.commit == COMMIT
    assert begin_reading(store, SOURCE, volume).wait().manifest.commit == COMMIT
    assert volume.reloads == 1


def test_weights_that_were_never_fetched_say_how_to_fetch_them(tmp_path):
    with pytest.raises(gpuserve.WeightsNotFoundError, match="gpuserve weights fetch"):
        gpuserve.VolumeWeightsCache(source=SOURCE).path(root=tmp_path)


def header(text, data=b"", length=None):
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0", "in a file of 2"),
        (header({"a": F32}, b"1234567"), "the file at"),
        (header({"a": F32}, b"123456789"), "the file at"),
        (header({"a": F32}, b"12345678", length=1 << 62), "its header would be"),
        (header(b'{"a":' * 50_000), "not JSON"),
        (header(b'{"a": NaN}'), "no JSON number"),
        (header(b'{"a": {}, "a": {}}'), "twice"),
        (header(b"[]"), "not a JSON object"),
        (header({"a": {**F32, "extra": 1}}, b"12345678"), "not told by dtype"),
        (header({"a": {**F32, "dtype": "Q4"}}, b"12345678"), "unknown type 'Q4'"),
        (header({"a": {**F32, "shape": [3]}}, b"12345678"), "needs 96 bits and is given 64"),
        (header({"a": {**F32, "shape": [True, 2]}}, b"12345678"), "cannot be"),
        (header({"a": {**F32, "shape": [1] * 65}}, b"12345678"), "cannot be"),
        (header({"a": {**F32, "data_offsets": [8, 0]}}, b"12345678"), "cannot be"),
        (header({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, b"1" * 12), "begins at byte 4, expected at 8"),
        (header({"a": F32, "__metadata__": {"k": 1}}, b"12345678"), "not a map of texts"),
    ],
)
def test_a_header_that_does_not_describe_its_file_is_refused(tmp_path, data, reason):
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(gpuserve.WeightsCorruptError, match=reason):
        read_header(path, path.name)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 0x10280])
def test_a_header_whose_length_begins_as_a_pickle_does_is_no_pickle(tmp_path, length):
    path = tmp_path / "m.safetensors"
    text = json.dumps({"a": F32}).encode()
    path.write_bytes(header(text + b" " * (length - len(text)), b"12345678"))
    assert path.read_bytes()[0] == 0x80
    assert read_header(path, path.name)[0] == 8 + length


@pytest.mark.parametrize("protocol", [0x02, 0x03, 0x04, 0x05])
def test_a_published_file_that_begins_as_a_pickle_does_is_damaged_and_not_to_be_allowed(root, protocol):
    path = next(root.glob("snapshots/*/files/*.safetensors"))
    path.write_bytes(b"\x80" + bytes([protocol, 0x95]) + path.read_bytes()[3:])
    with pytest.raises(gpuserve.WeightsCorruptError, match=rf"{path.name}.*begins as a pickle does"):
        gpuserve.VolumeWeightsCache(source=SOURCE).path(root=root)


def test_a_snapshot_that_is_taken_away_while_it_is_checked_is_missing_or_damaged_and_nothing_else(root):
    folder = next((root / "snapshots").iterdir())
    away, over, refused = folder.with_name("away"), threading.Event(), 0

    def take_away_and_back():
        while not over.is_set():
            folder.rename(away)
            away.rename(folder)

    mender = threading.Thread(target=take_away_and_back)
    mender.start()
    try:
        for _ in range(300):
            try:
                open_snapshot(folder)
            except (gpuserve.WeightsNotFoundError, gpuserve.WeightsCorruptError):
                refused += 1
    finally:
        over.set()
        mender.join()

    assert refused
    assert open_snapshot(folder).manifest.commit == COMMIT
