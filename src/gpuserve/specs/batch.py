"""What a `BatchMapper` declares: where items come from, where answers go, and how batches are made and tried."""

from __future__ import annotations

import codecs
import os
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from gpuserve.specs.base import Spec

__all__ = [
    "BatchDeclaration",
    "Csv",
    "HfDataset",
    "Items",
    "Jsonl",
    "MapBatching",
    "MapRetries",
    "Parquet",
    "Shards",
]

_DAY_S = 24 * 3600
_Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
_Iterables = Iterable[Any] | AsyncIterable[Any] | Callable[[], Iterable[Any] | AsyncIterable[Any]]
_FieldName = Annotated[str, Field(min_length=1, max_length=1000)]


def _as_text(path: Any) -> Any:
    """A path as text; what is none stays what it is, for its field to refuse."""
    return os.fspath(path) if isinstance(path, PathLike) else path


class _Fielded(Spec):
    id_field: _FieldName | None = None
    """the field with each item's own id, text or a whole number; its position unless given"""
    input_field: _FieldName | None = None
    """the field that the target is called with; the whole row unless given"""


class _Files(_Fielded):
    path: str | tuple[str, ...]
    """a file, a pattern such as 'docs/*.jsonl', or several"""

    def __init__(self, path: Any = None, **data: Any) -> None:
        if path is not None:
            data["path"] = path
        super().__init__(**data)

    @field_validator("path", mode="before")
    @classmethod
    def _some(cls, value: Any) -> Any:
        listed = [_as_text(one) for one in (value if isinstance(value, list | tuple) else [value])]
        if not listed or not all(isinstance(one, str) and one for one in listed):
            raise ValueError("write the path of a file, or several")
        return tuple(listed)

    @property
    def paths(self) -> tuple[str, ...]:
        """All of them."""
        return (self.path,) if isinstance(self.path, str) else self.path


class _Text(_Files):
    encoding: str = "utf-8"
    """how text is written: utf-8, or one byte a character such as latin-1 or cp1252"""

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            newline = "\n".encode(value)
        except LookupError:
            raise ValueError(f"{value!r} is no encoding; write 'utf-8', 'latin-1' or 'cp1252'") from None
        if newline != b"\n":
            raise ValueError(f"lines of {value} cannot be told apart byte by byte; convert: iconv -f {value} -t UTF-8")
        return codecs.lookup(value).name


class Jsonl(_Text):
    """Lines of JSON, each an item.

    Examples:
        >>> Jsonl("docs/*.jsonl", id_field="id", input_field="text").paths
        ('docs/*.jsonl',)
    """

    if TYPE_CHECKING:

        def __init__(self, path: _Paths, *, id_field: str | None = None, input_field: str | None = None,
                     encoding: str = "utf-8") -> None: ...  # fmt: skip


class Csv(_Text):
    """Comma-separated values with a header; each row is a dictionary of texts, or the one field that is named.

    Examples:
        >>> Csv("reviews.csv", input_field="text", delimiter=";").delimiter
        ';'
    """

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """one character"""

    if TYPE_CHECKING:

        def __init__(self, path: _Paths, *, id_field: str | None = None, input_field: str | None = None,
                     encoding: str = "utf-8", delimiter: str = ",") -> None: ...  # fmt: skip


class Parquet(_Files):
    """Parquet files; needs ``gpuserve[batch]``.

    Examples:
        >>> Parquet("docs.parquet", id_field="url", input_field="text").id_field
        'url'
    """

    if TYPE_CHECKING:

        def __init__(self, path: _Paths, *, id_field: str | None = None,
                     input_field: str | None = None) -> None: ...  # fmt: skip


class HfDataset(_Fielded):
    """A Hugging Face dataset: an object, a name on the hub, or a folder that ``save_to_disk`` wrote.

    Examples:
        >>> HfDataset("imdb", split="train", input_field="text").split
        'train'
    """

    dataset: Any
    """a datasets.Dataset, a name, or a folder"""
    split: str | None = None
    """which split of it, where it has several"""
    revision: str | None = None
    """the commit of a dataset on the hub"""

    if TYPE_CHECKING:

        def __init__(self, dataset: Any, *, split: str | None = None, revision: str | None = None,
                     id_field: str | None = None, input_field: str | None = None) -> None: ...  # fmt: skip

    else:

        def __init__(self, dataset: Any = None, **data: Any) -> None:
            if dataset is not None:
                data["dataset"] = dataset
            super().__init__(**data)


class Items(_Fielded):
    """Any iterable or async iterable, or a function that makes one.

    To resume a run, it must bring the same items in the same order again.

    Examples:
        >>> Items(["a", "b"], name="letters").name
        'letters'
    """

    items: Any
    """the iterable, or a function without arguments that returns one"""
    name: Annotated[str, Field(min_length=1, max_length=200)] = "items"
    """what the items are called in messages; another name is another input"""

    if TYPE_CHECKING:

        def __init__(self, items: _Iterables, *, name: str = "items", id_field: str | None = None,
                     input_field: str | None = None) -> None: ...  # fmt: skip

    else:

        def __init__(self, items: Any = None, **data: Any) -> None:
            if items is not None:
                data["items"] = items
            super().__init__(**data)

    @field_validator("items")
    @classmethod
    def _iterable(cls, value: Any) -> Any:
        if isinstance(value, str | bytes) or not (
            callable(value) or hasattr(value, "__iter__") or hasattr(value, "__aiter__")
        ):
            raise ValueError(f"{type(value).__name__} brings no items; give an iterable, or a function that makes one")
        return value


class Shards(Spec):
    """Where answers go: a folder of files, one a window, in input order.

    Examples:
        >>> Shards("embeddings", format="parquet").format
        'parquet'
    """

    path: str
    """the folder; of this machine, or in *volume*"""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """jsonl, or parquet (needs gpuserve[batch])"""
    volume: str | None = None
    """the Modal Volume that the folder is in, for a driver that runs in Modal"""

    if TYPE_CHECKING:

        def __init__(self, path: str | PathLike[str], *, format: Literal["jsonl", "parquet"] = "jsonl",  # noqa: A002
                     volume: str | None = None) -> None: ...  # fmt: skip

    else:

        def __init__(self, path: Any = None, **data: Any) -> None:
            if path is not None:
                data["path"] = _as_text(path)
            super().__init__(**data)

    @field_validator("path")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("write the path of a folder")
        return value

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.volume is not None and (self.path.startswith("/") or ".." in self.path.split("/")):
            raise ValueError(f"path={self.path!r} is not inside the volume; write a relative path such as 'runs/docs'")
        return self


class MapBatching(Spec):
    """How items are gathered into batches.

    The items of a window are sorted by cost and parted into batches of like cost; answers come in input order.

    Examples:
        >>> MapBatching(max_items=256, cost="tokens").window
        4096
    """

    window: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """items that are sorted, and committed as one file, together"""
    max_items: Annotated[int, Field(ge=1, le=100_000)] = 128
    """items in a batch at most"""
    max_cost: Annotated[float | None, Field(gt=0)] = None
    """the cost of a batch at most; the window's cost spread evenly unless given"""
    cost: Literal["items", "characters", "tokens"] | Callable[[Any], float] = "characters"
    """what an item costs: items (1 each), characters, tokens (words and marks), or a function of the item"""
    padded: bool = False
    """whether a batch costs its number of items times its dearest one, as padded tensors do"""
    max_outstanding: Annotated[int, Field(ge=1, le=1000)] = 8
    """batches that run at once"""
    max_open: Annotated[int, Field(ge=1, le=64)] = 4
    """windows under way at once, which is what bounds the driver's memory"""


class MapRetries(Spec):
    """How often an item that fails by itself is tried, and the delays between; Modal's own words where it has them.

    Examples:
        >>> MapRetries(max_attempts=5).backoff_coefficient
        2.0
    """

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """runs of an item by itself, before it goes to the dead letters"""
    initial_delay_s: Annotated[float, Field(ge=0, le=3600)] = 1.0
    """seconds before the second of them"""
    backoff_coefficient: Annotated[float, Field(ge=1, le=10)] = 2.0
    """what each further delay is multiplied by"""
    max_delay_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """the longest delay"""
    patience_s: Annotated[float, Field(ge=1, le=_DAY_S)] = 600.0
    """seconds that Modal may be out of reach before the run stops"""


Source = Jsonl | Csv | Parquet | HfDataset | Items


class BatchDeclaration(Spec):
    """What a `BatchMapper` declares; see there."""

    target: Any
    """a registered server, a modal.Function, 'app/Class.method', or a function of a list"""
    method: Annotated[str | None, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = None
    """the server's batched method; the only one unless given"""
    source: Any
    """Jsonl, Csv, Parquet, HfDataset, Items, a path, or an iterable"""
    output: Shards
    """where answers go: Shards('folder', format='parquet'), or a folder's path"""
    batching: MapBatching = MapBatching()
    """how batches are made"""
    retries: MapRetries = MapRetries()
    """how failures are tried again"""
    on_bad_input: Literal["dead_letter", "stop"] = "dead_letter"
    """whether a row that cannot be used goes to the dead letters, or stops the run"""
    max_usd: Annotated[float | None, Field(gt=0)] = None
    """US dollars, at list prices, at which the run stops; it can be resumed"""
    deadline_s: Annotated[float | None, Field(gt=0)] = None
    """seconds after which the run stops; it can be resumed"""
    usd_per_container_hour: Annotated[float | None, Field(ge=0)] = None
    """what a container of the target costs; its declaration says unless given"""
    name: str = ""
    """what the run is called"""

    @field_validator("output", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        return value if isinstance(value, Shards | dict) else Shards(value)

    @field_validator("source", mode="before")
    @classmethod
    def _source(cls, value: Any) -> Any:
        return source_of(value)


_SUFFIXES: dict[str, type[_Files]] = {".jsonl": Jsonl, ".ndjson": Jsonl, ".csv": Csv, ".parquet": Parquet}


def source_of(value: Any) -> Source:
    """The source that a path, a dataset or an iterable stands for.

    Raises:
        ValueError: If it stands for none.

    Examples:
        >>> type(source_of("docs.csv")).__name__
        'Csv'
    """
    if isinstance(value, Jsonl | Csv | Parquet | HfDataset | Items):
        return value
    if type(value).__module__.partition(".")[0] == "datasets":
        return HfDataset(value)
    text = str(value) if isinstance(value, str) or hasattr(value, "__fspath__") else None
    if text is not None:
        kind = next((kind for suffix, kind in _SUFFIXES.items() if text.endswith(suffix)), None)
        if kind is None:
            raise ValueError(
                f"{text!r} ends in none of {', '.join(_SUFFIXES)}; write Jsonl({text!r}) or another source"
            )
        found: Any = kind(text)
        return found  # type: ignore[no-any-return]
    return Items(value)
