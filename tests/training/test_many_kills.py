"""The full count: runs of 400 steps, killed 200 times and interrupted 50 times, end with the unbroken one's bits."""

import itertools
import signal

import pytest
from training_tiny import digest_of, seeded

pytestmark = pytest.mark.wide

STEPS, EVERY, KILLS, INTERRUPTS = 400, 6, 200, 50


@pytest.mark.heavy
@pytest.mark.timeout(3600)
def test_two_hundred_kills_and_fifty_interruptions_leave_the_same_bits(trainers, tmp_path):
    dice = seeded()
    # runs of 400 steps each, until all kills are done: a kill comes within one and a half intervals of a beginning
    declared = {"steps": STEPS, "checkpoint_every": EVERY, "max_attempts": 1000, "schedule": "cosine"}
    whole = trainers.train(tmp_path, "whole", declared=declared)
    assert whole["state"] == "finished"
    wanted = [signal.SIGKILL] * KILLS + [signal.SIGINT] * INTERRUPTS
    dice.shuffle(wanted)
    done = dict.fromkeys((signal.SIGKILL, signal.SIGINT), 0)
    runs = 0
    while wanted:
        runs += 1
        run = f"broken-{runs}"
        while wanted:
            told = {"after_events": dice.randint(1, EVERY + EVERY // 2), "then_s": dice.random() / 40}
            found = trainers.run(root=tmp_path, run=run, declared=declared, signal=wanted[-1], **told)
            assert "error" not in found, found["text"]
            if found["code"] == 0:
                break  # it ended before the kill
            assert found["code"] in {-signal.SIGKILL, 130}
            done[wanted.pop()] += 1
            print(f"{sum(done.values())} of {KILLS + INTERRUPTS}", end=" ", flush=True)
        report = trainers.train(tmp_path, run, declared=declared)
        assert report["step"] == STEPS
        assert digest_of(tmp_path / "runs/tuned" / run / "adapter") == digest_of(tmp_path / "runs/tuned/whole/adapter")
        redone = [before[-1] - after[0] for before, after in itertools.pairwise(trainers.steps_of(tmp_path, run))]
        assert max(redone, default=0) <= EVERY
        print(f"{run}: {report['attempts']} attempts, at most {max(redone, default=0)} steps redone by one")
    assert done == {signal.SIGKILL: KILLS, signal.SIGINT: INTERRUPTS}
    print(f"{done} in {runs} runs of {STEPS} steps")
