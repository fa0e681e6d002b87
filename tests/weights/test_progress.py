"""What a fetch tells while it runs, and how many files it asks for at once."""

import threading

import pytest
from weights_hub import COMMIT, REPO, model_files, tensors

import gpuserve

SOURCE = gpuserve.HubSource(REPO, revision=COMMIT)
SHARD = "model-00001-of-00002.safetensors"
FILES = 16


def fetch(root, moved, **fields):
    return gpuserve.VolumeWeightsCache(source=SOURCE, **fields).fetch(root=root, on_progress=moved.append)


def sizes(hub):
    return {path: len(data) for path, data in hub.commits[COMMIT].items()}


def steps(moved):
    """How far each report is from the one before, and of which file it is."""
    return [
        (now.file, now.done - before) for now, before in zip(moved, [0, *(one.done for one in moved)], strict=False)
    ]


def told_of(moved, file):
    return [step for one, step in steps(moved) if one == file]


def test_progress_grows_piece_by_piece_to_the_whole_of_each_file_and_of_all(hub, tmp_path, quick_retries):
    hub.commits[COMMIT] = model_files(0, numbers=10_000)
    moved = []
    fetch(tmp_path, moved, workers=1)

    assert {one.total for one in moved} == {sum(sizes(hub).values())}
    assert moved[0].done == 0
    assert all(step >= 0 for _file, step in steps(moved))
    assert {file: sum(told_of(moved, file)) for file in sizes(hub)} == sizes(hub)
    # told as it comes, and not when it is over: no piece is longer than what is read at once
    assert max(told_of(moved, SHARD)) == 4096
    assert len(told_of(moved, SHARD)) > 4


def test_progress_of_many_files_at_once_counts_every_piece_once(hub, tmp_path, quick_retries):
    """Each thread tells its own count of all, and each count is told once, in whichever order they are heard."""
    hub.commits[COMMIT] = model_files(0, numbers=10_000)
    moved, by_thread = [], {}

    def hear(progress):
        moved.append(progress)
        by_thread.setdefault(threading.get_ident(), []).append(progress.done)

    gpuserve.VolumeWeightsCache(source=SOURCE, workers=4).fetch(root=tmp_path, on_progress=hear)
    moved.sort(key=lambda one: one.done)

    assert moved[-1].done == moved[-1].total == sum(sizes(hub).values())
    assert {file: sum(told_of(moved, file)) for file in sizes(hub)} == sizes(hub)
    assert all(counts == sorted(counts) for counts in by_thread.values())


def test_what_is_thrown_away_is_taken_back_from_the_progress_and_never_counted_twice(hub, tmp_path, quick_retries):
    hub.commits[COMMIT] = model_files(0, numbers=10_000)
    hub.break_file(SHARD, "flip", times=1)
    moved = []
    fetch(tmp_path, moved, workers=1)

    size = sizes(hub)[SHARD]
    assert [step for _file, step in steps(moved) if step < 0] == [-size]
    assert sum(told_of(moved, SHARD)) == size
    assert max(one.done for one in moved) == moved[-1].done == moved[-1].total


def test_what_an_interrupted_fetch_has_left_is_told_at_once(hub, tmp_path, quick_retries):
    hub.commits[COMMIT] = model_files(0, numbers=10_000)
    last = list(sizes(hub))[-1]
    hub.break_file(last, "moved")
    with pytest.raises(gpuserve.WeightsSourceError):
        fetch(tmp_path, [], workers=1)
    hub.modes.clear()
    moved = []
    report = fetch(tmp_path, moved, workers=1)

    assert {file: told_of(moved, file) for file in sizes(hub) if file != last} == {
        file: [size] for file, size in sizes(hub).items() if file != last
    }
    assert (report.fetched, moved[-1].done) == (sizes(hub)[last], report.size)


def test_a_fetch_of_what_is_there_tells_nothing(hub, tmp_path):
    moved = []
    fetch(tmp_path, [])
    fetch(tmp_path, moved)
    assert moved == []


@pytest.mark.parametrize("fields", [{"workers": 1}, {"workers": 2}, {"workers": 4}, {}], ids=str)
def test_as_many_files_as_declared_are_fetched_at_once_and_never_one_more(hub, tmp_path, fields):
    """The hub holds each stream after its first piece, until as many as are allowed have been asked for."""
    workers = fields.get("workers", 8)
    hub.commits[COMMIT] = {f"model-{number}.safetensors": tensors(number, 5_000) for number in range(FILES)}
    [size] = set(sizes(hub).values())
    assert size > 2 * hub.piece
    begun, under_way, alone, one_more = [], [], [], threading.Event()
    # those of the first round wait a little for one more, which must not come
    together = threading.Barrier(workers, lambda: one_more.wait(0.2 if len(begun) == workers else 0))
    stream, lock = threading.local(), threading.Lock()

    def hold(_total):
        if hasattr(stream, "is_begun"):
            return
        stream.is_begun = True
        with lock:
            begun.append(1)
            whole = sum(part.stat().st_size == size for part in tmp_path.glob("incomplete/*/parts/*"))
            under_way.append(len(begun) - whole)
            if len(begun) > workers:
                one_more.set()
        try:
            together.wait(8)
        except threading.BrokenBarrierError:
            alone.append(len(begun))

    hub.on_sent = hold
    report = gpuserve.VolumeWeightsCache(source=SOURCE, **fields).fetch(root=tmp_path)

    assert (report.files, len(begun), alone) == (FILES, FILES, [])
    assert max(under_way) == workers


def test_progress_is_heard_in_the_order_in_which_it_is_counted(hub, tmp_path, quick_retries):
    """One thread is slow to hear: a later count must wait for it, or a bar that shows the last one goes back."""
    hub.commits[COMMIT] = {f"model-{number}.safetensors": tensors(number, 20_000) for number in range(2)}
    later, first, heard = threading.Event(), [], []

    def hear(progress):
        if progress.done and not first:
            first.append(threading.get_ident())
            later.wait(0.5)
        elif first and threading.get_ident() != first[0]:
            later.set()
        heard.append(progress.done)

    gpuserve.VolumeWeightsCache(source=SOURCE, workers=2).fetch(root=tmp_path, on_progress=hear)
    assert heard == sorted(heard)
