"""The ledger under drivers that are killed, succeeded, and wake up again."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

import gpuserve
from gpuserve.runtime.batch.folder import OutputFolder
from gpuserve.runtime.batch.frames import frame, frames_in
from gpuserve.runtime.batch.ledger import Commit, End

IDENTITY = {"source": "letters", "target": "upper"}


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_a_torn_or_foreign_piece_costs_only_itself(payloads, data):
    pieces = [frame(one) for one in payloads]
    place = data.draw(st.integers(0, len(pieces)))
    torn = data.draw(
        st.binary(max_size=30).filter(lambda one: b"GSL1" not in one and not one.endswith((b"G", b"GS", b"GSL")))
    )
    half = frame(b"never finished")[: data.draw(st.integers(0, 20))]

    stored = b"".join([*pieces[:place], torn, half, *pieces[place:]])

    found = [payload for _, payload in frames_in(stored)]
    assert [one for one in found if one in payloads] == payloads


class Ledger(RuleBasedStateMachine):
    """Drivers come and go on one folder, and commit windows whose content says which driver wrote it."""

    drivers = Bundle("drivers")

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="ledger-"))
        self.model = []  # what is committed, by window
        self.current = None

    @rule(target=drivers)
    def succeed(self):
        """A driver takes over; whoever was there before may be dead, or asleep."""
        folder = OutputFolder(self.root)
        folder.take(IDENTITY, takeover=True)
        assert [one.shard.sha256 for one in folder.state.commits] == self.model
        self.current = folder
        return folder

    def _commit(self, folder, *, publish):
        window = len(folder.state.commits)
        name = f"part-{window:06}.jsonl"
        with folder.new_file(f"{window:06}-{folder.owner}.jsonl") as path:
            path.write_text(f"{window} by {folder.owner}\n")
        shard = folder.published(path, name, 1)
        record = Commit(folder.owner, window, 1, 1, 0, shard, None, "", {"taken": window + 1}, "", 0.0, 0.0, 0.0)
        if not publish:
            folder._publish = lambda _record: (_ for _ in ()).throw(KeyboardInterrupt)
        folder.commit(record)
        return shard.sha256

    @rule(folder=drivers)
    def commit(self, folder):
        """The driver in force commits; one that was succeeded is told so, and changes nothing."""
        if folder is self.current:
            self.model.append(self._commit(folder, publish=True))
        else:
            with pytest.raises((gpuserve.FencedError, FileNotFoundError)):
                self._commit(folder, publish=True)

    @rule()
    def die_between_the_record_and_the_name(self):
        if self.current is not None:
            before = len(self.model)
            with pytest.raises(KeyboardInterrupt):
                self._commit(self.current, publish=False)
            committed = OutputFolder(self.root).load().commits
            assert len(committed) == before + 1
            self.model.append(committed[-1].shard.sha256)
            self.current = None
            self.succeed_quietly()

    def succeed_quietly(self):
        folder = OutputFolder(self.root)
        folder.take(IDENTITY, takeover=True)
        self.current = folder

    @invariant()
    def what_is_committed_is_there_and_is_what_it_was(self):
        for window, digest in enumerate(self.model):
            data = (self.root / f"part-{window:06}.jsonl").read_bytes()
            assert hashlib.sha256(data).hexdigest() == digest
        assert len(list(self.root.glob("part-*"))) == len(self.model)

    def teardown(self):
        shutil.rmtree(self.root)


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)


def test_a_ledger_of_a_million_items_is_loaded_at_once(tmp_path):
    folder = OutputFolder(tmp_path)
    folder.take(IDENTITY)
    for window in range(245):
        record = Commit(folder.owner, window, 4096, 4096, 0, None, None, "ab" * 16, {"byte": window}, "", 0.0, 0.0, 0.0)
        folder._append(record)
    folder._append(End(folder.owner, "deadline", None, 0.0, 0.0, 0.0))
    folder.leave()

    state = OutputFolder(tmp_path).load()

    assert (state.done, state.finished, state.end.reason) == (245 * 4096, False, "deadline")


def test_a_driver_that_is_alive_is_not_succeeded_unless_that_is_asked_for(tmp_path):
    first, second = OutputFolder(tmp_path), OutputFolder(tmp_path)
    first.take(IDENTITY)

    with pytest.raises(gpuserve.BatchBusyError, match="takeover=True"):
        second.take(IDENTITY)
    second.take(IDENTITY, takeover=True)

    with pytest.raises(gpuserve.FencedError, match="taken over"):
        first.require_mine()


def test_a_note_of_a_driver_that_was_succeeded_holds_nobody_up(tmp_path):
    first, second = OutputFolder(tmp_path), OutputFolder(tmp_path)
    first.take(IDENTITY)
    second.take(IDENTITY, takeover=True)
    second.leave()
    first.heartbeat()  # it woke up between its look at the ledger and its note

    third = OutputFolder(tmp_path)
    third.take(IDENTITY)

    assert third.state.epoch == 3
