"""State files that cannot be used: one clear error each, with the way out, and not a byte changed."""

import random
import shutil
import sqlite3

import pytest

from gpuserve.engine.store import Store
from gpuserve.exceptions import StateError

pytestmark = pytest.mark.wide


def settle(state):
    """Move everything from the log into the file, as an engine that ends by itself does."""
    db = sqlite3.connect(state / "engine.sqlite3")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def test_a_state_file_cut_short_is_refused_left_alone_and_opens_once_it_is_restored(new_cli, deployed):
    cli = new_cli(state=deployed)
    settle(cli.home)
    file = cli.home / "engine.sqlite3"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2 // 4096 * 4096])  # between two pages
    before = cli.state()

    told = cli.refused("local", "up")

    assert f"state file {file} is" in told
    assert "Nothing was changed" in told
    assert ".recover" in told
    assert cli.state() == before
    assert "no engine is up" in cli("local", "status").stdout

    file.write_bytes(whole)
    assert cli.apps() == ["kept"]


@pytest.mark.parametrize("kept", [0, 1, 15, 16, 100, 4095, 4096, 4097, 0.25, 0.5, 0.75, -4096, -1])
def test_no_length_of_a_state_file_but_its_own_is_opened(kept, deployed, tmp_path):
    state = shutil.copytree(deployed, tmp_path / "state", ignore=shutil.ignore_patterns("*.sock"))
    settle(state)
    file = state / "engine.sqlite3"
    whole = file.read_bytes()
    cut = whole[: int(len(whole) * kept) if isinstance(kept, float) else kept]
    file.write_bytes(cut)

    with pytest.raises(StateError, match=r"(is empty|is cut short|is damaged).*Nothing was changed\. (Restore|Keep)"):
        Store(state)

    assert {path.name: path.read_bytes() for path in state.glob("engine.sqlite3*")} == {"engine.sqlite3": cut}


@pytest.mark.parametrize("first", [0, 4096, 8192])
def test_a_page_of_random_bytes_is_refused_and_left_alone(first, deployed, tmp_path):
    state = shutil.copytree(deployed, tmp_path / "state", ignore=shutil.ignore_patterns("*.sock"))
    settle(state)
    file = state / "engine.sqlite3"
    content = bytearray(file.read_bytes())
    content[first : first + 4096] = random.Random(20261124).randbytes(4096)  # the seed
    file.write_bytes(content)

    with pytest.raises(StateError, match="is not a database" if first == 0 else "is damaged"):
        Store(state)

    assert file.read_bytes() == content


def test_a_state_of_a_newer_release_is_refused_and_left_alone(new_cli, deployed):
    cli = new_cli(state=deployed)
    db = sqlite3.connect(cli.home / "engine.sqlite3")
    db.execute("PRAGMA user_version=999")
    db.close()
    before = cli.state()

    told = cli.refused("local", "up")

    assert "newer gpuserve: schema 999, and this one knows 1" in told
    assert "Upgrade gpuserve, or set GPUSERVE_HOME" in told
    assert cli.state() == before


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.3, 0.5, 0.7])
def test_a_flipped_byte_of_the_log_is_found_where_finished_work_lies_behind_it(share, deployed, tmp_path):
    state = shutil.copytree(deployed, tmp_path / "state", ignore=shutil.ignore_patterns("*.sock"))
    log = state / "engine.sqlite3-wal"
    broken = bytearray(log.read_bytes())
    broken[int(len(broken) * share)] ^= 0xFF
    log.write_bytes(broken)

    with pytest.raises(StateError, match=r"damaged write-ahead log \(engine\.sqlite3-wal\): (its header|frame)"):
        Store(state)

    assert log.read_bytes() == broken


def test_a_damaged_log_is_refused_left_alone_and_read_once_it_is_restored(new_cli, deployed):
    cli = new_cli(state=deployed)
    log = cli.home / "engine.sqlite3-wal"
    whole = log.read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0xFF
    log.write_bytes(broken)
    before = cli.state()

    told = cli.refused("local", "up")

    assert "damaged write-ahead log (engine.sqlite3-wal)" in told
    assert cli.state() == before

    log.write_bytes(whole)
    assert cli.apps() == ["kept"]


def test_a_log_torn_in_its_last_write_opens_without_it(new_cli, deployed):
    cli = new_cli(state=deployed)
    log = cli.home / "engine.sqlite3-wal"
    log.write_bytes(log.read_bytes()[:-100])

    assert cli.apps() == ["kept"]


def test_a_log_without_its_state_file_is_refused(new_cli, deployed):
    cli = new_cli(state=deployed)
    (cli.home / "engine.sqlite3").unlink()
    before = cli.state()

    assert "is missing, while its write-ahead log" in cli.refused("local", "up")
    assert cli.state() == before


def test_a_killed_first_start_leaves_nothing_that_a_second_refuses(cli):
    cli.home.mkdir()
    (cli.home / "engine.sqlite3.new").write_bytes(b"half a page")

    cli("local", "up")

    assert cli.apps() == []
