"""A run whose worker, driver, engine, network and disk fail by the dice of a seed, and what must hold after it."""

import contextlib
import errno
import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil

from gpuserve.testing import Down, FaultProxy

HERE = Path(__file__).parent
PATIENCE_S = 120.0
ACTIONS = ("worker", "driver", "engine", "stopped", "reset", "full")


def corpus(path, count, seed, *, raising=0.001, exiting=0.001, slow=0.01):
    """Write *count* items; return the ids of those that can never be answered, and every text by its id."""
    dice = random.Random(seed)
    bad, texts = {}, {}
    with path.open("w") as out:
        for number in range(count):
            luck = dice.random()
            kind = "raise" if luck < raising else "exit" if luck < raising + exiting else "text"
            if kind != "text":
                bad[f"k{number}"] = kind
            kind += " slow" if kind == "text" and dice.random() < slow else ""
            text = f"{kind} {number} " + "x" * dice.randrange(60)
            texts[f"k{number}"] = text
            out.write(json.dumps({"id": f"k{number}", "text": text}) + "\n")
    return bad, texts


class World:
    """One engine with the app, one driver that reaches it through a network, and a nemesis."""

    def __init__(self, folder, source, output, *, seed, window, items):
        """*output* is below a small file system of its own where its disk is to be filled."""
        print(f"seed {seed}")
        self.dice = random.Random(seed)
        self.folder, self.source, self.output = folder, source, output
        self._shape, self._window = (str(window), str(items)), window
        self._looks = []
        self.killed = dict.fromkeys(ACTIONS, 0)
        self.stopped = Counter()
        self.drivers = self.refused = 0
        self.engine = self.driver = None
        self.zombies = []
        (folder / "tmp").mkdir()
        self._start_engine()
        self.network = FaultProxy(self.environment["MODAL_SERVER_URL"], seed=seed).__enter__()
        self.executed = folder / "executed"
        self._cli("deploy", str(HERE / "mapped.py"), EXECUTED=str(self.executed))

    def _start_engine(self):
        with (self.folder / "engine.err").open("ab") as sink:
            self.engine = subprocess.Popen(
                [sys.executable, "-m", "gpuserve.engine", "--home", str(self.folder / "home")],
                env={**os.environ, "TMPDIR": str(self.folder / "tmp")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=sink,
            )
        note = json.loads(self.engine.stdout.readline())
        self.environment = {**os.environ, **{key: value for key, value in note.items() if key.startswith("MODAL_")}}

    def _cli(self, *arguments, **variables):
        command = [sys.executable, "-m", "modal", *arguments]
        environment = {**self.environment, **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def start_driver(self):
        self.drivers += 1
        if self.driver is not None and self.driver.poll() is not None:
            self.driver.stdout.close()
        with (self.folder / "driver.err").open("ab") as sink:
            self.driver = subprocess.Popen(
                [sys.executable, HERE / "driver.py", self.source, self.output, *self._shape],
                env={
                    **self.environment,
                    "MODAL_SERVER_URL": self.network.url,
                    "STARTS": str(self.folder / "starts"),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
            )

    def _workers(self):
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for forked in psutil.Process(self.engine.pid).children():
                found += forked.children(recursive=True)
        return found

    def kill(self, victim):
        """Whether there was somebody to kill."""
        if victim == "worker":
            workers = self._workers()
            if not workers:
                return False
            with contextlib.suppress(psutil.NoSuchProcess):
                self.dice.choice(workers).kill()
        elif victim == "driver":
            self.driver.kill()
            self.driver.wait(PATIENCE_S)
            self.driver.stdout.close()
            self.start_driver()
        elif victim == "reset":
            self.network.apply(Down())
            self.network.apply()
        else:
            self.engine.kill()
            self.engine.wait(PATIENCE_S)
            self.engine.stdout.close()
            self._start_engine()
        self.killed[victim] += 1
        return True

    def stop_for(self, seconds, *, succeed):
        """SIGSTOP for one of the three."""
        victim = self.dice.choice(("worker", "driver", "engine"))
        workers = self._workers()
        if victim == "driver" or (victim == "worker" and not workers):
            self.stopped["driver"] += 1
            self.stop_driver_for(seconds, succeed=succeed)
            return
        process = self.dice.choice(workers) if victim == "worker" else psutil.Process(self.engine.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
        self.wait(seconds)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
        self.stopped[victim] += 1
        self.killed["stopped"] += 1

    def fill_disk_for(self, seconds):
        """Not a block is left where the output is; a driver that is refused one ends, see `wait`."""
        filler = self.output.parent / "filler"
        self.killed["full"] += 1
        fill(filler)
        self.wait(seconds)
        filler.unlink()

    def stop_driver_for(self, seconds, *, succeed):
        """SIGSTOP; where *succeed*, another driver takes over meanwhile, and the first one wakes up behind it."""
        zombie = self.driver
        zombie.send_signal(signal.SIGSTOP)
        self.killed["stopped"] += 1
        if succeed:
            self.start_driver()
            said = self.driver.stdout.readline()
            if "BatchBusyError" in said:
                self.driver.wait(PATIENCE_S)  # it has said so and is about to end
                self._end_zombies()
                self.start_driver()
                said = self.driver.stdout.readline()
            assert "started" in said, said + (self.folder / "driver.err").read_text()[-4000:]
        self.wait(seconds)
        zombie.send_signal(signal.SIGCONT)
        if succeed:
            self.zombies.append(zombie)

    def wait(self, seconds):
        """Let it run; whether the driver has ended meanwhile."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.driver.wait(seconds)
        if self.driver.poll() == 4 and self.zombies:
            # one that was stopped before it had begun woke up and began first; this one then kept out of its way
            self._end_zombies()
            self.start_driver()
        elif self.driver.poll() == 4 and self.killed["full"]:
            said = self.driver.stdout.read()
            assert "DiskFullError" in said, said + (self.folder / "driver.err").read_text()[-4000:]
            self.refused += 1
            self.start_driver()
        return self.driver.poll() is not None

    def _end_zombies(self):
        for zombie in self.zombies:
            zombie.kill()
            assert zombie.wait(PATIENCE_S) in {0, 4, -signal.SIGKILL}

    def run(self, kills, *, pause_s=(0.2, 2.0), stops=0, stop_s=3.0, resets=0, fills=0, fill_s=5.0):
        """Kill so often, each victim in turn by the dice, then let it finish; return what the last driver said."""
        self.start_driver()
        todo = [("worker", "driver", "engine")[number % 3] for number in range(kills)]
        todo += ["stop"] * stops + ["reset"] * resets + ["full"] * fills
        self.dice.shuffle(todo)
        for number, one in enumerate(todo):
            if self.wait(self.dice.uniform(*pause_s)):
                break
            self._look()
            if one == "stop":
                self.stop_for(stop_s, succeed=number % 2 == 0)
            elif one == "full":
                self.fill_disk_for(fill_s)
            elif not self.kill(one):
                todo.append(one)  # later in this run: one left over would cost a run of its own
        return self.finish()

    def _look(self):
        """Note how much had been executed when so many items, from the first on, were committed."""
        parts = [int(path.stem.partition("-")[2]) for path in self.output.glob("part-*")]
        executed = self.executed.stat().st_size if self.executed.exists() else 0
        self._looks.append((executed, (max(parts, default=-1) + 1) * self._window))

    def executed_though_committed(self):
        """Items that were executed after a look had found them committed."""
        looks, at, committed, found = [*self._looks], 0, 0, 0
        for line in self.executed.read_text().splitlines(keepends=True):
            while looks and looks[0][0] <= at:
                committed = looks.pop(0)[1]
            found += sum(int(number) < committed for number in line.split())
            at += len(line)
        return found

    def finish(self, patience_s=3600.0):
        while not self.wait(patience_s):
            continue
        output = self.driver.stdout.read()
        for zombie in self.zombies:  # it had finished, or it was told that it was succeeded
            with contextlib.suppress(subprocess.TimeoutExpired):
                zombie.wait(PATIENCE_S)
            if zombie.poll() is None:
                zombie.send_signal(signal.SIGABRT)
                zombie.wait(PATIENCE_S)
                raise AssertionError((self.folder / "driver.err").read_text()[-20_000:])
            assert zombie.returncode in {0, 4, -signal.SIGKILL}
        errors = (self.folder / "driver.err").read_text()[-4000:]
        assert self.driver.returncode == 0, output + errors
        return json.loads(output.splitlines()[-1])

    def close(self):
        for process in (self.driver, *self.zombies):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            if process is not None and process.stdout is not None:
                process.stdout.close()
        if self.engine.poll() is None:
            self.engine.terminate()
        self.engine.wait(PATIENCE_S)
        self.engine.stdout.close()
        self.network.__exit__()


def problems(output, bad, texts, answer):
    """All that is wrong with a finished output."""
    found = []
    seen = []
    manifest = json.loads((output / "manifest.json").read_text())
    names = sorted(path.name for path in output.glob("part-*"))
    if names != [one["name"] for one in manifest["shards"]]:
        found.append(f"files {names} are not those of the manifest")
    for one in manifest["shards"]:
        data = (output / one["name"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != one["sha256"]:
            found.append(f"{one['name']} is not what the manifest says")
        for line in data.splitlines():
            row = json.loads(line)
            seen.append(row["id"])
            if row["output"] != answer(texts[row["id"]]):
                found.append(f"{row['id']} has another item's answer")
    if seen != [one for one in texts if one not in bad]:
        found.append(f"{len(seen)} keys are committed, {len(set(seen))} different ones, of {len(texts) - len(bad)}")
    letters = [json.loads(line) for line in (output / "dead-letters.jsonl").read_text().splitlines()]
    dead = [one["id"] for one in letters]
    if sorted(dead) != sorted(bad):
        found.append(f"dead letters {sorted(set(dead) ^ set(bad))[:10]} differ, {len(dead)} of {len(bad)}")
    for one in letters:
        wanted = "ValueError" if bad.get(one["id"]) == "raise" else "RemoteError"
        if one["error_type"] != wanted or one["attempts"] < 1:
            found.append(f"{one['id']}: {one['error_type']} after {one['attempts']}, {one['message']}")
    return found


def starts(world):
    """Seconds that each driver took from `run` until it had what it goes on with; not those of its imports."""
    return [float(line) for line in (world.folder / "starts").read_text().split()]


def done_again(world, bad):
    """How many items were executed again, of those that no poisoned item was ever in a batch with.

    A batch with a poisoned item is parted, and its other items are rightly done again.
    """
    lines = [line.split() for line in world.executed.read_text().splitlines()]
    poisoned = {one.removeprefix("k") for one in bad}
    beside = {number for line in lines if poisoned.intersection(line) for number in line}
    counted = Counter(number for line in lines for number in line if number not in beside)
    return sum(counted.values()) - len(counted), len(counted)


def fill(path):
    """Write until the disk refuses: how much is free changes under the driver's hand."""
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"x" * (1 << 16))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return


def hashes(output):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("part-*"))}


def ended_within(handle, seconds):
    return bool(select.select([handle], [], [], seconds)[0])
