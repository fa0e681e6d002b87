"""Committed output: one file a window, in JSONL or Parquet, the same bytes whenever it is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gpuserve.exceptions import AnswerError
from gpuserve.runtime.batch.answers import plain
from gpuserve.runtime.batch.rows import Item

__all__ = ["JsonlWriter", "ParquetWriter", "ShardWriter", "writer_of"]


class ShardWriter(Protocol):
    """Writes one format."""

    suffix: str

    def check(self, answer: Any) -> None:
        """Refuse an answer that the format cannot hold.

        Raises:
            AnswerError: If so.
        """

    def write(self, path: Path, items: Sequence[Item], answers: Sequence[Any], schema: str) -> str:
        """Write the file, not yet durably; return the type of the answers, where the format has one."""


def writer_of(form: str) -> ShardWriter:
    """The writer of a format, by its name."""
    return ParquetWriter() if form == "parquet" else JsonlWriter()


class JsonlWriter:
    """A line of JSON an item: ``{"id": …, "output": …}``."""

    suffix = ".jsonl"

    def check(self, answer: Any) -> None:
        """Refuse what JSON has no word for."""
        plain(answer)

    def write(self, path: Path, items: Sequence[Item], answers: Sequence[Any], schema: str) -> str:
        """Write the lines."""
        with path.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
            for item, answer in zip(items, answers, strict=True):
                file.write(json.dumps({"id": item.id, "output": plain(answer)}, separators=(",", ":"), allow_nan=False))
                file.write("\n")
        return schema


class ParquetWriter:
    """Two columns, ``id`` and ``output``; the type of the first shard's answers holds for all."""

    suffix = ".parquet"

    def __init__(self) -> None:
        try:
            import pyarrow as pa  # noqa: F401
        except ImportError:
            raise AnswerError("Parquet needs pyarrow: pip install 'gpuserve[batch]', or write format='jsonl'") from None

    def check(self, answer: Any) -> None:
        """Arrow decides, for the whole shard."""

    def write(self, path: Path, items: Sequence[Item], answers: Sequence[Any], schema: str) -> str:
        """Write the table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        fixed = _schema(schema)
        column = _column(answers, fixed.field("output").type if fixed is not None else None)
        ids = _ids(items, fixed.field("id").type if fixed is not None else None)
        table = pa.table({"id": ids, "output": column})
        pq.write_table(table, path, compression="zstd")
        if schema or pa.types.is_null(column.type):
            return schema
        return bytes(table.schema.serialize()).hex()


def _schema(text: str) -> Any:
    if not text:
        return None
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))


def _ids(items: Sequence[Item], wanted: Any) -> Any:
    import pyarrow as pa

    ids = [item.id for item in items]
    try:
        return pa.array(ids, type=wanted)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise AnswerError(
            f"ids are of several types, and a Parquet column has one: {error}; make them all text"
        ) from None


def _column(answers: Sequence[Any], wanted: Any) -> Any:
    import pyarrow as pa

    try:
        made = _array(answers)
        return made if wanted is None or made.type == wanted else made.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        meant = f"the first shard's are {wanted}" if wanted is not None else "those of one shard must be alike"
        raise AnswerError(
            f"answers have changed their type: {meant}, and {error}; what is answered is kept: make the target answer "
            f"alike, or write format='jsonl' into another folder"
        ) from None


def _array(answers: Sequence[Any]) -> Any:
    import pyarrow as pa

    first: Any = answers[0] if answers else None
    if type(first).__module__ == "numpy" and all(
        getattr(one, "shape", None) == first.shape and getattr(one, "dtype", None) == first.dtype for one in answers
    ):
        import numpy as np

        if first.ndim == 0:
            return pa.array(np.stack(answers))
        if first.ndim == 1:
            return pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(answers)), first.shape[0])
    return pa.array([one.tolist() if type(one).__module__ == "numpy" else one for one in answers])
