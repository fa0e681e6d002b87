"""Streams of chunks and of log lines: complete, in order, and bounded."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state import logs as logs_module
from gpuserve.engine.state import streams as streams_module
from gpuserve.engine.state.logs import Logs, Source, batches
from gpuserve.engine.state.streams import Stream, Streams
from gpuserve.exceptions import EngineError


def chunk(data, index=0):
    return api_pb2.DataChunk(data=data, index=index)


async def collect(items):
    return [one async for one in items]


def numbers(stream, after=0):
    return [one.index for one in asyncio.run(collect(stream.read(after)))]


@given(st.lists(st.integers(1, 12), max_size=20))
def test_a_chunk_that_is_sent_again_is_not_added_twice(indexes):
    stream, highest = Stream(), 0
    for index in indexes:
        stream.put(chunk(b"x", index))
        highest = max(highest, min(index, highest + 1)) if index > highest else highest
    stream.end()
    assert numbers(stream) == list(range(1, highest + 1))


def test_what_comes_after_the_end_is_dropped():
    stream = Stream()
    stream.put(chunk(b"a"))
    stream.end()
    stream.put(chunk(b"b"))
    assert numbers(stream) == [1]


def test_a_writer_waits_for_its_reader_and_long_read_chunks_are_let_go(monkeypatch):
    monkeypatch.setattr(streams_module, "_MOST_UNREAD_BYTES", 10)
    monkeypatch.setattr(streams_module, "_MOST_KEPT_BYTES", 10)

    async def run():
        stream, put = Stream(), []

        async def write():
            for number in range(20):
                stream.put(chunk(b"12345"))
                put.append(number)
                await stream.drained()
            stream.end()

        writer = asyncio.ensure_future(write())
        await asyncio.sleep(0)
        ahead = len(put)
        seen = await collect(stream.read(0))
        await writer
        return ahead, [one.index for one in seen], stream

    ahead, seen, stream = asyncio.run(run())
    assert ahead == 3, "more than the limit was taken without a reader"
    assert seen == list(range(1, 21))
    assert len(stream.chunks) <= 3
    assert numbers(stream, after=19) == [20]
    with pytest.raises(EngineError, match="chunk 3 of this stream was read before"):
        numbers(stream, after=2)


def test_a_writer_without_a_reader_is_freed_when_the_call_ends(monkeypatch):
    monkeypatch.setattr(streams_module, "_MOST_UNREAD_BYTES", 1)

    async def run():
        streams = Streams()
        streams.data_out("fc").put(chunk(b"12"))
        writer = asyncio.ensure_future(streams.data_out("fc").drained())
        await asyncio.sleep(0)
        assert not writer.done()
        streams.finish("fc")
        await asyncio.wait_for(writer, 5)

    asyncio.run(run())


def test_a_dropped_stream_names_the_blobs_that_it_held():
    streams = Streams()
    streams.data_out("fc").put(api_pb2.DataChunk(data_blob_id="bl-1"))
    streams.data_in("fc").put(api_pb2.DataChunk(data_blob_id="bl-2"))
    assert sorted(streams.drop("fc")) == ["bl-1", "bl-2"]
    assert streams.drop("fc") == []


HERE = Source(function_id="fu", task_id="ta")


def text_of(logs, app="ap"):
    return "".join(entry.text for entry in logs.of(app).entries)


@given(
    st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(1, 7), min_size=1), st.sampled_from([1, 2])
)
def test_text_that_arrives_in_any_pieces_is_read_as_it_was_written(text, sizes, descriptor):
    logs, data, place = Logs(), text.encode(), 0
    while place < len(data):
        for size in sizes:
            logs.write("ap", HERE, descriptor, data[place : place + size])
            place += size
    logs.forget_task("ap", HERE)
    assert text_of(logs) == text
    assert all("\n" not in entry.text[:-1] for entry in logs.of("ap").entries)


def test_half_a_character_that_never_got_its_other_half_is_shown_as_such():
    logs = Logs()
    logs.write("ap", HERE, 1, "é".encode()[:1])
    assert text_of(logs) == ""
    logs.forget_task("ap", HERE)
    assert text_of(logs) == "\N{REPLACEMENT CHARACTER}"


def test_a_log_keeps_its_newest_lines_within_its_bounds(monkeypatch):
    monkeypatch.setattr(logs_module, "_MOST_ENTRIES", 5)
    logs = Logs()
    logs.write("ap", HERE, 1, b"".join(b"%d\n" % number for number in range(9)))
    assert text_of(logs) == "4\n5\n6\n7\n8\n"
    monkeypatch.setattr(logs_module, "_MOST_CHARACTERS", 4)
    logs.write("ap", HERE, 1, b"9\n")
    assert text_of(logs) == "8\n9\n"
    assert [entry.text for entry in logs.of("ap").after(9)] == ["9\n"]


def test_a_reader_gets_what_is_there_then_what_comes_then_the_end():
    async def run():
        logs, seen = Logs(), []
        logs.write("ap", HERE, 1, b"one\n")

        async def read():
            async for fresh in logs.of("ap").follow(0):
                seen.extend(entry.text for entry in fresh)

        reader = asyncio.ensure_future(read())
        await asyncio.sleep(0)
        logs.write("ap", HERE, 1, b"two\nthr")
        await asyncio.sleep(0)
        logs.write("ap", HERE, 1, b"ee\n")
        logs.finish("ap")
        await asyncio.wait_for(reader, 5)
        with pytest.raises(TimeoutError):
            await collect(Logs().of("other").follow(0, 0.01))
        return seen

    assert asyncio.run(run()) == ["one\n", "two\n", "thr", "ee\n"]


def test_of_apps_that_are_done_the_newest_logs_are_kept(monkeypatch):
    monkeypatch.setattr(logs_module, "_MOST_DONE_APPS", 2)
    logs = Logs()
    for app in ("live", "a", "b", "c"):
        logs.write(app, HERE, 1, b"x\n")
    for app in ("a", "b", "c"):
        logs.finish(app)
    assert [app for app in ("live", "a", "b", "c") if text_of(logs, app)] == ["live", "b", "c"]


def test_the_tail_of_one_container_is_its_own_last_lines():
    logs, other = Logs(), Source(task_id="other")
    for number in range(30):
        logs.write("ap", HERE, 1 + number % 2, b"%d\n" % number)
        logs.write("ap", other, 1, b"noise\n")
    logs.say("ap", "the engine speaks\n", HERE)
    assert logs.tail("ap", "ta", lines=3) == "27\n28\n29"
    assert logs.tail("ap", "unknown") == ""


def test_lines_of_one_origin_travel_together_and_keep_their_order():
    logs, with_input = Logs(), Source(function_id="fu", task_id="ta", input_id="in", call_id="fc")
    logs.write("ap", HERE, 1, b"a\nb\n")
    logs.write("ap", with_input, 2, b"c\n")
    logs.write("ap", HERE, 1, b"d\n")
    found = batches(logs.of("ap").entries)
    assert [[item.data for item in batch.items] for batch in found] == [["a\n", "b\n"], ["c\n"], ["d\n"]]
    assert [batch.entry_id for batch in found] == ["2-0", "3-0", "4-0"]
    assert (found[1].input_id, found[1].items[0].function_call_id) == ("in", "fc")
    assert found[1].items[0].file_descriptor == api_pb2.FILE_DESCRIPTOR_STDERR
