"""R3: workers, drivers and engines are killed, stopped, cut off and refused; nothing is lost, or there twice."""

import hashlib
import importlib.util
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import gpuserve
from gpuserve.runtime.batch.events import BatchCommitted


def _load(name):
    """A module beside this one; tests are no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("kills.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


kills = _load("batch_kills")
# Batches that a driver has under way, all of which a kill may cost. Source: MapBatching.
IN_FLIGHT = gpuserve.MapBatching().max_outstanding


def answer(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def clean_run(folder, source, window):
    """The same corpus by the same rules in this process, where nobody is killed."""

    def digests(batch):
        for text in batch:
            if not text.startswith("text"):
                raise ValueError(text)
        return [answer(text) for text in batch]

    gpuserve.BatchMapper(
        target=digests,
        source=gpuserve.Jsonl(source, id_field="id", input_field="text"),
        output=folder,
        batching=gpuserve.MapBatching(window=window),
        retries=gpuserve.MapRetries(max_attempts=1),
    ).run()
    return kills.hashes(folder)


def killed_run(
    folder,
    disk,
    *,
    items,
    count,
    stops,
    resets,
    fills,
    seed,
    window,
    batch,
    pause_s=(0.2, 2.0),
    stop_s=3.0,
    fill_s=5.0,
    at_all_counts=False,
    **rates,
):
    """Runs under a nemesis until it has dealt all that it is to; how often it did each, and the starts of drivers."""
    bad, texts = kills.corpus(folder / "corpus.jsonl", items, seed, **rates)
    clean = clean_run(folder / "clean", folder / "corpus.jsonl", window)
    total, started = Counter(), []
    number = 0
    while number == 0 or (at_all_counts and max(count, stops, resets, fills) > 0):
        place = folder / f"world-{number}"
        place.mkdir()
        output = (disk or folder) / f"out-{number}"
        world = kills.World(place, folder / "corpus.jsonl", output, seed=seed + number, window=window, items=batch)
        try:
            said = world.run(
                count, stops=stops, resets=resets, fills=fills, pause_s=pause_s, stop_s=stop_s, fill_s=fill_s
            )
        finally:
            world.close()
        assert kills.problems(output, bad, texts, answer) == []
        assert kills.hashes(output) == clean
        shutil.rmtree(output)
        again, counted = kills.done_again(world, bad)
        late = world.executed_though_committed()
        events = sum(world.killed.values())
        started += kills.starts(world)
        print(
            f"run {number}: {said}, {world.killed}, stopped {dict(world.stopped)}, {world.refused} drivers refused a "
            f"block, {world.drivers} drivers; {again} of {counted} items done again, {late} when they were committed"
        )
        assert counted > items / 2
        assert again <= events * IN_FLIGHT * batch
        # a batch that is in the engine's queue when its driver is succeeded is executed all the same
        assert late <= (world.killed["driver"] + world.killed["stopped"]) * batch
        total.update(world.killed)
        count -= sum(world.killed[name] for name in ("worker", "driver", "engine"))
        stops, resets = stops - world.killed["stopped"], resets - world.killed["reset"]
        fills -= world.killed["full"]
        number += 1
    print(f"in all: {dict(total)}, {len(bad)} of {items} items poisoned; {len(started)} starts of drivers, in "
          f"{statistics.median(started):.2f} s at the median and {max(started):.2f} s at most")  # fmt: skip
    return total, started


@pytest.fixture
def mounted(tmp_path_factory):
    """Mount a file system of so many MiB; none where that is not allowed."""
    places = []

    def mount(mib):
        place = tmp_path_factory.mktemp("d")
        command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", place]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"only root may make a small file system: {done.stderr}")
            return None
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", place], check=True)


def test_a_run_whose_workers_drivers_and_engines_are_killed_and_cut_off_is_the_clean_run(tmp_path_factory, mounted):
    folder, disk = tmp_path_factory.mktemp("k"), mounted(64)
    rates = {"raising": 0.002, "exiting": 0.0005}
    shape = {"items": 1500, "window": 256, "batch": 8, "pause_s": (0.2, 0.6), "stop_s": 0.7, "fill_s": 1.0, **rates}
    killed_run(folder, disk, count=3, stops=1, resets=2, fills=1 if disk else 0, seed=4, **shape)


@pytest.mark.heavy
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("third", [1, 2, 3])
def test_r3_at_its_full_counts(tmp_path_factory, mounted, third):
    """In thirds, for ``-n 3``: the nemesis waits more than it kills."""
    part = float(os.environ.get("GPUSERVE_KILLS", "1"))
    disk = mounted(256)

    def share(whole):
        """Of so many in all, those of this third."""
        dealt = round(whole * part)
        return dealt * third // 3 - dealt * (third - 1) // 3

    count, stops, resets, fills = share(1000), share(200), share(200), share(50 if disk else 0)
    total, started = killed_run(
        tmp_path_factory.mktemp("k"),
        disk,
        items=round(100_000 * part),
        count=count,
        stops=stops,
        resets=resets,
        fills=fills,
        seed=random.randrange(1 << 30),
        window=2048,
        batch=64,
        at_all_counts=True,
    )

    assert sum(total[name] for name in ("worker", "driver", "engine")) == count
    assert (total["stopped"], total["reset"], total["full"]) == (stops, resets, fills)
    assert min(total[name] for name in ("worker", "driver", "engine")) > count / 10
    # one that is stopped for 3 s while it starts is not slow
    assert statistics.quantiles(started, n=10)[-1] <= 2.0


def full_disk_runs(place, source, rounds, clean, seed):
    dice = random.Random(seed)
    mapper = gpuserve.BatchMapper(
        target=lambda batch: [answer(text) * 4 for text in batch],
        source=source,
        output=place / "out",
        batching=gpuserve.MapBatching(window=100, max_items=20),
    )
    full = 0
    for _ in range(rounds):
        filler = place / "filler"
        free = os.statvfs(place)
        filler.write_bytes(b"x" * max(0, free.f_bavail * free.f_bsize - dice.randrange(0, 60_000)))
        try:
            mapper.run()
        except gpuserve.DiskFullError:
            full += 1
        assert not (place / "out" / "ledger" / "driver.json").exists()  # nobody drives, so the next may
        filler.unlink()
    report = mapper.run()
    assert report.status == "finished"
    assert kills.hashes(place / "out") == clean
    return full


@pytest.mark.parametrize("rounds", [5, pytest.param(50, marks=pytest.mark.heavy)])
def test_a_full_disk_is_named_and_nothing_committed_is_lost(mounted, tmp_path, rounds):
    small_disk = mounted(4)
    if small_disk is None:
        pytest.skip("only root may make a small file system")
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(f'{{"id": {number}, "text": "text {number}"}}\n' for number in range(rounds * 400)))
    source = gpuserve.Jsonl(path, id_field="id", input_field="text")
    report = gpuserve.BatchMapper(
        target=lambda batch: [answer(text) * 4 for text in batch],
        source=source,
        output=tmp_path / "clean",
        batching=gpuserve.MapBatching(window=100),
    ).run()
    assert report.done == rounds * 400

    full = full_disk_runs(small_disk, source, rounds, kills.hashes(tmp_path / "clean"), seed=3)

    assert full > rounds // 2


def test_a_disk_that_is_full_when_ids_are_noted_is_named_too(mounted, tmp_path):
    place = mounted(4)
    if place is None:
        pytest.skip("only root may make a small file system")
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(f'{{"id": {number}, "text": "text"}}\n' for number in range(2000)))
    mapper = gpuserve.BatchMapper(
        target=lambda batch: batch,
        source=gpuserve.Jsonl(path, id_field="id", input_field="text"),
        output=place / "out",
        batching=gpuserve.MapBatching(window=1000, max_open=1),
    )

    def fill_before_the_second_window(event):
        if isinstance(event, BatchCommitted):
            kills.fill(place / "filler")

    with pytest.raises(gpuserve.DiskFullError):
        mapper.run(on_event=fill_before_the_second_window)
    (place / "filler").unlink()
    assert mapper.run().done == 2000
