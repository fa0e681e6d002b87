"""R3: workers, drivers and engines are killed, stopped and cut off at random; nothing is lost, or there twice."""

import hashlib
import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import gpuserve


def _load(name):
    """A module beside this one; tests are no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("kills.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


kills = _load("batch_kills")


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
    *,
    items,
    count,
    stops,
    resets,
    seed,
    window,
    batch,
    pause_s=(0.2, 2.0),
    stop_s=3.0,
    at_all_counts=False,
    **rates,
):
    bad, texts = kills.corpus(folder / "corpus.jsonl", items, seed, **rates)
    clean = clean_run(folder / "clean", folder / "corpus.jsonl", window)
    total = dict.fromkeys(("worker", "driver", "engine", "stopped", "reset"), 0)
    number = 0
    while number == 0 or (at_all_counts and max(count, stops, resets) > 0):
        place = folder / f"world-{number}"
        place.mkdir()
        output = folder / f"out-{number}"
        world = kills.World(place, folder / "corpus.jsonl", output, seed=seed + number, window=window, items=batch)
        try:
            said = world.run(count, stops=stops, pause_s=pause_s, stop_s=stop_s, resets=resets)
        finally:
            world.close()
        assert kills.problems(output, bad, texts, answer) == []
        assert kills.hashes(output) == clean
        for name, killed in world.killed.items():
            total[name] += killed
        count -= sum(world.killed[name] for name in ("worker", "driver", "engine"))
        stops, resets = stops - world.killed["stopped"], resets - world.killed["reset"]
        number += 1
        print(f"run {number}: {said}, killed {world.killed}, {world.drivers} drivers")
    print(f"in all: {total}, {len(bad)} of {items} items poisoned")
    return total


def test_a_run_whose_workers_drivers_and_engines_are_killed_and_cut_off_is_the_clean_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("k")
    rates = {"raising": 0.002, "exiting": 0.0005}
    shape = {"items": 1500, "window": 256, "batch": 8, "pause_s": (0.2, 0.6), "stop_s": 0.7, **rates}
    killed_run(folder, count=3, stops=1, resets=2, seed=4, **shape)


@pytest.mark.heavy
@pytest.mark.timeout(7200)
def test_r3_at_its_full_counts(tmp_path_factory):
    part = float(os.environ.get("GPUSERVE_KILLS", "1"))
    killed_run(
        tmp_path_factory.mktemp("k"),
        items=round(100_000 * part),
        count=round(1000 * part),
        stops=round(200 * part),
        resets=round(200 * part),
        seed=random.randrange(1 << 30),
        window=2048,
        batch=64,
        at_all_counts=True,
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"only root may make a small file system: {done.stderr}")
    yield place
    subprocess.run(["umount", place], check=True)


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
def test_a_full_disk_is_named_and_nothing_committed_is_lost(small_disk, tmp_path, rounds):
    source = [f"text {number}" for number in range(rounds * 400)]
    report = gpuserve.BatchMapper(
        target=lambda batch: [answer(text) * 4 for text in batch],
        source=source,
        output=tmp_path / "clean",
        batching=gpuserve.MapBatching(window=100),
    ).run()
    assert report.done == len(source)

    full = full_disk_runs(small_disk, source, rounds, kills.hashes(tmp_path / "clean"), seed=3)

    assert full > rounds // 2
