"""Sources: what they bring, what is wrong with it, and that they go on where they were."""

import asyncio
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuserve
from gpuserve.builders.batch_run import source_for
from gpuserve.runtime.batch.events import BatchCommitted
from gpuserve.specs.batch import source_of


def opened(source, cursor=None):
    return source_for(source_of(source)).open(cursor)


def faults(rows):
    return [(row.where.rpartition("/")[2], row.fault_type, row.fault) for row in rows if row.fault]


def test_a_row_that_is_no_json_or_no_utf8_is_named_by_file_row_and_byte(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": \n\n{"text": "caf\xe9"}\n{"text": "b"}\n{"text": 5}\n{"other": 1}')

    rows = opened(gpuserve.Jsonl(path, input_field="text")).read(100)

    assert [row.value for row in rows if not row.fault] == ["a", "b"]
    assert faults(rows) == [
        ("docs.jsonl row 2", "UnreadableRow", "it is no JSON: Expecting value: line 2 column 1 (char 10)"),
        ("docs.jsonl row 4", "UnreadableEncoding", "byte 38 of the file, 0xe9, is not utf-8"),
        ("docs.jsonl row 6", "SchemaChanged", "the kind of the rows has changed: it was text, and is number"),
        ("docs.jsonl row 7", "SchemaChanged", "it has no 'text'; its fields are other"),
    ]


def test_an_utf16_file_and_an_encoding_without_lines_are_refused(tmp_path):
    (tmp_path / "docs.jsonl").write_text('{"a": 1}\n', encoding="utf-16")
    with pytest.raises(gpuserve.BadInputError, match="iconv -f UTF-16"):
        opened(gpuserve.Jsonl(tmp_path / "docs.jsonl")).read(1)
    with pytest.raises(gpuserve.DeclarationError, match="cannot be told apart"):
        gpuserve.Jsonl("docs.jsonl", encoding="utf-16")


def test_rows_of_csv_are_named_whatever_is_wrong_with_them(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'id,text\n1,"two\nlines"\n2\n3,caf\xe9\n4,"open\n5,e\n6,f\n')
    (tmp_path / "b.csv").write_bytes(b"id,body\n7,g\n")

    rows = opened(gpuserve.Csv((tmp_path / "a.csv", tmp_path / "b.csv"), id_field="id", input_field="text")).read(100)

    assert [(row.id, row.value) for row in rows if not row.fault] == [("1", "two\nlines"), ("5", "e"), ("6", "f")]
    assert [(where, kind) for where, kind, _ in faults(rows)] == [
        ("a.csv row 4", "SchemaChanged"),
        ("a.csv row 5", "UnreadableEncoding"),
        ("a.csv row 6", "UnreadableRow"),
        ("b.csv row 2", "SchemaChanged"),
    ]
    assert "without text and with body" in rows[-1].fault


def test_parquet_files_of_two_schemas_are_refused_with_both(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "2.parquet")
    reader = opened(gpuserve.Parquet(str(tmp_path / "*.parquet"), input_field="text"))

    with pytest.raises(
        gpuserve.BadInputError, match=r"2.parquet: column 'text' is int64, and in .*1.parquet it is string"
    ):
        reader.read(10)


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "1.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(gpuserve.BadInputError, match=r"1\.parquet: it is no Parquet file, or damaged"):
        opened(str(tmp_path / "1.parquet"))


def test_a_damaged_part_of_a_parquet_file_costs_only_its_own_rows(tmp_path):
    path = tmp_path / "1.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c", "d", "e", "f"]}), path, row_group_size=2, use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    first, size = column.data_page_offset, column.total_compressed_size
    data[first : first + size] = b"\xff" * size
    path.write_bytes(data)

    rows = opened(gpuserve.Parquet(path, input_field="text")).read(100)

    assert [row.value for row in rows if not row.fault] == ["a", "b", "e", "f"]
    ((where, kind, fault),) = faults(rows)
    assert where == "1.parquet rows 2 to 3"
    assert kind == "UnreadableRow"
    assert fault.startswith("row group 1 cannot be read")


TEXTS = [f"text {number}" + "\nline" * (number % 3) for number in range(50)]


def _files(folder):
    """The same texts in every kind of source."""
    for name, part in (("1", TEXTS[:30]), ("2", TEXTS[30:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in part))
        quoted = [one.replace('"', '""') for one in part]
        (folder / f"{name}.csv").write_text("text\n" + "".join(f'"{one}"\n' for one in quoted))
        pq.write_table(pa.table({"text": part}), folder / f"{name}.parquet", row_group_size=7)
    import datasets  # pandas comes with it: only the worker that needs it waits

    dataset = datasets.Dataset.from_dict({"text": TEXTS})
    dataset.save_to_disk(str(folder / "saved"))
    return [
        gpuserve.Jsonl(str(folder / "*.jsonl"), input_field="text"),
        gpuserve.Csv(str(folder / "*.csv"), input_field="text"),
        gpuserve.Parquet(str(folder / "*.parquet"), input_field="text"),
        gpuserve.HfDataset(dataset, input_field="text"),
        gpuserve.HfDataset(str(folder / "saved"), input_field="text"),
        gpuserve.HfDataset(dataset.to_iterable_dataset(), input_field="text"),
        gpuserve.Items(lambda: iter(TEXTS)),
        gpuserve.Items(TEXTS),
    ]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return _files(tmp_path_factory.mktemp("sources"))


@settings(max_examples=15)
@given(st.integers(0, 60), st.integers(1, 20))
def test_every_source_goes_on_where_a_cursor_says(sources, first, step):
    for source in sources:
        reader = opened(source)
        before = [row.value for row in reader.read(first)] if first else []
        cursor = json.loads(json.dumps(reader.cursor()))
        reader.close()
        again = opened(source, cursor)
        after = []
        while rows := again.read(step):
            after += [row.value for row in rows]
        again.close()
        assert before + after == TEXTS, source


def test_an_async_iterable_is_read_in_the_loop_of_the_run(tmp_path):
    async def items():
        for number in range(10):
            await asyncio.to_thread(lambda: None)
            yield number

    mapper = gpuserve.BatchMapper(
        target=lambda batch: batch, source=items, output=tmp_path / "out", batching=gpuserve.MapBatching(window=4)
    )

    assert asyncio.run(mapper.run_async()).done == 10


def test_an_iterable_that_raises_stops_the_run_and_keeps_what_was_committed(tmp_path):
    broken = [True]

    def items():
        for number in range(10):
            if number == 7 and broken[0]:
                raise OSError("the disk is gone")
            yield number

    mapper = gpuserve.BatchMapper(
        target=lambda batch: batch, source=items, output=tmp_path / "out", batching=gpuserve.MapBatching(window=2)
    )
    with pytest.raises(gpuserve.BadInputError, match="item 7: it raised OSError"):
        mapper.run()
    broken[0] = False

    report = mapper.run()

    assert (report.status, report.done) == ("finished", 10)


@pytest.mark.parametrize("piece", [1 << 20, 5], ids=["a disk that takes all", "a disk that takes a few bytes a time"])
def test_ids_that_come_twice_are_dead_letters_with_both_places_also_after_a_resume(tmp_path, monkeypatch, piece):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:piece], at))
    ids = [*range(10), 3, *range(10, 20), 14]
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"id": one, "text": "x"}) + "\n" for one in ids))
    mapper = gpuserve.BatchMapper(
        target=lambda batch: batch,
        source=gpuserve.Jsonl(path, id_field="id", input_field="text"),
        output=tmp_path / "out",
        batching=gpuserve.MapBatching(window=4),
    )

    def close_at_the_second_window(event):
        if isinstance(event, BatchCommitted) and event.window == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mapper.run(on_event=close_at_the_second_window)
    assert mapper.status().done == 8  # the first ids are those of another driver
    report = mapper.run()

    told = [json.loads(line) for line in (tmp_path / "out" / "dead-letters.jsonl").read_text().splitlines()]
    assert (report.done, report.failed) == (20, 2)
    assert [one["message"] for one in told] == [
        "the id 3 came before, at item 3 of the input; ids must be unique",
        "the id 14 came before, at item 15 of the input; ids must be unique",
    ]


def test_a_bad_row_stops_the_run_where_that_is_declared(tmp_path):
    (tmp_path / "docs.jsonl").write_text('{"a": 1}\nno\n')
    mapper = gpuserve.BatchMapper(
        target=lambda batch: batch, source=tmp_path / "docs.jsonl", output=tmp_path / "out", on_bad_input="stop"
    )
    with pytest.raises(gpuserve.BadInputError, match=r"docs\.jsonl row 2.*on_bad_input='stop'"):
        mapper.run()
