"""The checks find what they are there to find: the ledger's, and the disk that loses its power."""

import random

import pytest


@pytest.fixture
def entries(chaos):
    def make(*lines):
        return [
            chaos.ledger.Entry(f"1.{n}", kind, op, args, *answer) for n, (kind, op, args, *answer) in enumerate(lines)
        ]

    return make


@pytest.mark.parametrize(
    ("lines", "seen", "fine"),
    [
        ([("set", "a", "1", None)], {"a": "1"}, True),
        ([("set", "a", "1", None)], {}, False),  # a told write is lost
        ([("set", "a", "1", None), ("set", "a", "2")], {"a": "1"}, True),  # an untold one may have happened, or not
        ([("set", "a", "1", None), ("set", "a", "2")], {"a": "2"}, True),
        ([("set", "a", "1", None), ("set", "a", "2")], {"a": "half of 2"}, False),
        ([("set", "a", "1"), ("set", "a", "2", None)], {"a": "1"}, False),  # a told one is over what was before
        ([("add", "a", "1", True), ("add", "a", "2", True)], {"a": "1"}, False),  # added twice
        ([("add", "a", "1", True), ("add", "a", "2", False)], {"a": "1"}, True),
        ([("add", "a", "1", False)], {}, False),  # not added where nothing was
        ([("set", "a", "1", None), ("take", "a", None, "1"), ("take", "a", None, "1")], {}, False),  # taken twice
        ([("set", "a", "1", None), ("take", "a", None)], {"a": "1"}, True),
        ([("set", "a", "1", None), ("look", "a", None, "2")], {"a": "1"}, False),
        ([], {"a": "1"}, False),  # from nowhere
    ],
)
def test_a_register_that_is_not_one_of_its_possible_values_is_told(lines, seen, fine, chaos, entries):
    history = entries(*(("dict", op, {"key": key, "value": value}, *rest) for op, key, value, *rest in lines))

    assert (chaos.ledger.problems_of_registers(history, seen) == []) is fine


@pytest.mark.parametrize(
    ("lines", "left", "fine"),
    [
        ([("put", ["a", "b"], None), ("take", 1, ["a"])], ["b"], True),
        ([("put", ["a", "b"], None), ("take", 1, ["a"])], [], False),  # lost
        ([("put", ["a", "b"], None), ("take", 1, ["a"])], ["a", "b"], False),  # handed out and still there
        ([("put", ["a"], None), ("take", 1)], [], True),  # it may have gone with the taker
        ([("put", ["a", "b"], None), ("take", 1)], [], False),  # but not two for one
        ([("put", ["a"])], ["a"], True),
        ([("put", ["a"])], ["a", "a"], False),
        ([("put", ["a", "b"], None)], ["b", "a"], False),
        ([], ["a"], False),
    ],
)
def test_a_queue_that_lost_doubled_or_turned_items_round_is_told(lines, left, fine, chaos, entries):
    history = entries(*(("queue", op, {"items" if op == "put" else "most": what}, *rest) for op, what, *rest in lines))

    assert (chaos.ledger.problems_of_queue(history, left) == []) is fine


@pytest.mark.parametrize(
    ("lines", "version", "tags", "fine"),
    [
        ([(1, None), (2, None)], 2, ["v1", "v2"], True),
        ([(1, None), (2, None)], 1, ["v1", "v2"], False),
        ([(1, None), (2,)], 2, ["v1", "v2"], True),
        ([(1, None), (2,)], 1, ["v1"], True),
        ([(1, None), (2, None)], 2, ["v2"], False),
        ([(1, None)], 1, ["v1", "v1"], False),
    ],
)
def test_a_deployment_that_is_not_in_force_or_not_in_the_history_once_is_told(
    lines, version, tags, fine, chaos, entries
):
    history = entries(*(("deploy", "deploy", {"version": number}, *rest) for number, *rest in lines))

    assert (chaos.ledger.problems_of_deployments(history, version, tags) == []) is fine


def test_a_ledger_whose_last_line_was_cut_short_is_read_up_to_there(chaos, tmp_path):
    path = tmp_path / "ledger"
    book = chaos.ledger.Ledger(path, 1, 2)
    name = book.intend("dict", "set", key="a", value="1")
    with path.open("ab") as file:
        file.write(b'{"n": "1.1", "to')

    (entry,) = chaos.ledger.read(path)

    assert (entry.name, entry.told) == (name, False)


def event(chaos, at, name, *paths, text=b"", flags="", result=0):
    return chaos.disk.Event(float(at), name, paths, text, 0, 3, flags, result)


@pytest.mark.parametrize(
    ("synced", "survives"),
    [
        ((), {None, b"", b"one"}),
        (("/d/f",), {None, b"one"}),  # what is in it is safe, its name is not
        (("/d",), {b"", b"one"}),  # and the other way round
        (("/d/f", "/d"), {b"one"}),
    ],
)
def test_a_power_cut_takes_what_was_not_synced_and_nothing_else(synced, survives, chaos, tmp_path):
    disk = chaos.disk.Disk("/d")
    disk.take(event(chaos, 1, "openat", "/d/f", flags="O_CREAT", result=3))
    disk.take(event(chaos, 2, "write", "/d/f", text=b"one", result=3))
    for path in synced:
        disk.take(event(chaos, 3, "fsync", path))
    seen = set()
    for seed in range(60):
        place = tmp_path / str(seed)
        disk.after_a_cut(place, random.Random(seed))
        seen.add((place / "f").read_bytes() if (place / "f").exists() else None)

    assert seen == survives


def test_a_trace_tells_which_file_was_written_where_and_when(chaos, tmp_path):
    root, renamed = str(tmp_path).encode(), b"/b"
    words = {name: "".join(f"\\x{byte:02x}" for byte in root + name) for name in (b"/a", renamed)}
    (tmp_path / "trace.7").write_text(
        f'10.5 openat(AT_FDCWD<\\x2f>, "{words[b"/a"]}", O_WRONLY|O_CREAT, 0600) = 3<{words[b"/a"]}> <0.25>\n'
        f'11.5 pwrite64(3<{words[b"/a"]}>, "\\x61\\x22", 2, 512) = 2 <0.25>\n'
        f'12.5 rename("{words[b"/a"]}", "{words[renamed]}") = 0 <0.25>\n'
        f'13.5 unlink("{words[b"/a"]}") = -1 ENOENT (No such file or directory) <0.25>\n'
        '14.5 write(1<\\x2f\\x64>, "\\x61", 1) = 1 <0.25>\n'
    )
    events = chaos.disk.trace(tmp_path / "trace", tmp_path)
    disk = chaos.disk.Disk(tmp_path)
    for one in events:
        disk.take(one)

    assert [(one.at, one.name) for one in events] == [(10.75, "openat"), (11.75, "pwrite64"), (12.75, "rename")]
    assert disk.names[f"{tmp_path}/b"].content(None) == b"\0" * 512 + b'a"'
