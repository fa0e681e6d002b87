"""Rows to learn from: read, each checked, and brought into the form that TRL learns the wanted part of.

Three forms are known: ``{"text": …}``, ``{"prompt": …, "completion": …}``, ``{"messages": [{"role", "content"}, …]}``.

Source:
    TRL's dataset formats: language modelling, prompt-completion, and both as conversations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpuserve.exceptions import DatasetError
from gpuserve.specs.dataset import FileDataset, HubDataset, VolumeDataset

__all__ = ["Rows", "checked_rows", "held_back", "read_rows"]

Form = Literal["text", "prompt", "messages"]
_FIELDS: dict[Form, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt": ("prompt", "completion"),
    "text": ("text",),
}
_MOST_FAULTS = 10
_MOST_SHOWN = 80
_ROLES = frozenset({"system", "user", "assistant", "tool", "developer"})


@dataclass(frozen=True)
class Rows:
    """Rows of one form.

    Attributes:
        rows: What TRL is given.
        loss: Which of its losses is meant.
        digest: The sha256 of all rows in their order.
        chat: Whether a chat template is needed.
    """

    rows: tuple[Mapping[str, Any], ...]
    loss: Literal["completion", "assistant", "all"]
    digest: str
    chat: bool

    def __len__(self) -> int:
        """How many there are."""
        return len(self.rows)


def read_rows(source: FileDataset | VolumeDataset | HubDataset) -> Iterator[Mapping[str, Any]]:
    """The rows of a declared dataset, in its order.

    Raises:
        DatasetError: If it is not there, or a line of it is no row.
    """
    if isinstance(source, HubDataset):
        yield from _of_hub(source)
        return
    path = Path(source.path) if isinstance(source, FileDataset) else Path(source.mount_path) / source.path
    if not path.is_file():
        bring = "bring it with the image"
        if isinstance(source, VolumeDataset):
            bring = f"run: modal volume put {source.volume} FILE {source.path}"
        raise DatasetError(str(source), (f"{path} is not a file here; correct the path, or {bring}",))
    yield from _of_parquet(path, str(source)) if path.suffix.lower() == ".parquet" else _of_jsonl(path, str(source))


def checked_rows(given: Iterable[Any], loss: str, *, where: str) -> Rows:
    """Every row checked, and cut into what is read and what is learnt.

    Args:
        given: Rows as they come.
        loss: As declared: ``auto``, ``completion``, ``assistant`` or ``all``.
        where: What to call them in an error.

    Raises:
        DatasetError: With the first of the rows that cannot be used, and why.
    """
    rows, faults, digest = [], [], hashlib.sha256()
    form: Form | None = None
    chat = False
    for number, row in enumerate(given, 1):
        fault = None
        if form is None:
            form = _form(row)
            if form is None:
                fault = "has neither 'messages', nor 'prompt' and 'completion', nor 'text'"
        fault = fault or _fault(row, form)
        if fault is not None:
            faults.append(f"row {number} {fault}")
            if len(faults) == _MOST_FAULTS or form is None:
                break
            continue
        kept = {name: row[name] for name in _FIELDS[form or "text"]}
        chat = chat or not all(isinstance(value, str) for value in kept.values())
        digest.update(json.dumps(kept, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass") + b"\n")
        rows.append(kept)
    chosen = _loss(form, loss)
    if not faults and not rows:
        faults.append("there is no row in it")
    if not faults and chosen is None:
        faults.append(f"loss = {loss!r} cannot be told apart in rows of {', '.join(_FIELDS[form or 'text'])}; {_WAYS}")
    if not faults and form == "messages" and chosen == "completion":
        faults = [f"row {n} ends with {_ended(row)}" for n, row in enumerate(rows, 1) if _ended(row)][:_MOST_FAULTS]
    if faults or chosen is None:
        raise DatasetError(where, faults)
    if form == "messages" and chosen == "completion":
        # the last answer is learnt, whatever the template; TRL's own mask needs one that marks the answers
        rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    return Rows(tuple(rows), chosen, digest.hexdigest(), chat)


def held_back(rows: Rows, fraction: float, *, seed: int, where: str) -> tuple[Rows, Rows]:
    """The rows to learn from, and those kept back: chosen by their content, so that a longer file moves none of them.

    Raises:
        DatasetError: If nothing would be left on one side.
    """
    parts: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
    for row in rows.rows:
        told = json.dumps(row, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass")
        drawn = int.from_bytes(hashlib.sha256(seed.to_bytes(4, "big") + told).digest()[:8], "big") / (1 << 64)
        parts[drawn < fraction].append(row)
    if not all(parts):
        raise DatasetError(where, (f"of {len(rows)} rows, evaluation = {fraction} leaves none on one side; give more",))
    learnt, kept = (
        Rows(tuple(part), rows.loss, hashlib.sha256(json.dumps(part).encode()).hexdigest(), rows.chat) for part in parts
    )
    return learnt, kept


_WAYS = "'completion' needs a prompt and a completion, or messages; 'assistant' needs messages"


def _loss(form: Form | None, loss: str) -> Literal["completion", "assistant", "all"] | None:
    if loss == "auto":
        return "all" if form == "text" else "completion"
    if loss == "completion":
        return None if form == "text" else "completion"
    if loss == "assistant":
        return "assistant" if form == "messages" else None
    return "all"


def _form(row: Any) -> Form | None:
    if isinstance(row, Mapping):
        for form, fields in _FIELDS.items():
            if all(name in row for name in fields):
                return form
    return None


def _fault(row: Any, form: Form | None) -> str | None:
    if not isinstance(row, Mapping):
        return f"is {str(row)[:_MOST_SHOWN]!r}, and must be an object"
    for name in _FIELDS[form or "text"]:
        if name not in row:
            return f"has no {name!r}, which the rows before it have"
        value = row[name]
        if form == "text" or isinstance(value, str):
            if not isinstance(value, str) or not value.strip():
                return f"has {str(value)[:_MOST_SHOWN]!r} as {name!r}, and must have text"
        else:
            fault = _message_fault(value)
            if fault is not None:
                return f"has in {name!r} {fault}"
    return None


def _message_fault(value: Any) -> str | None:
    if not isinstance(value, list) or not value:
        return f"{str(value)[:_MOST_SHOWN]!r}, and must have a list of messages, or text"
    for place, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            return f"a message {place} without text: {str(message)[:_MOST_SHOWN]!r}"
        if message.get("role") not in _ROLES:
            return f"a message {place} of the role {message.get('role')!r}; write one of {', '.join(sorted(_ROLES))}"
    return None


def _ended(row: Mapping[str, Any]) -> str:
    messages = row["messages"]
    if len(messages) < 2:  # noqa: PLR2004 (a question and an answer)
        return "its only message, and must have one to answer; give the question too"
    role = messages[-1]["role"]
    return "" if role == "assistant" else f"a message of the {role}, and must end with the assistant's"


def _of_jsonl(path: Path, where: str) -> Iterator[Mapping[str, Any]]:
    faults: list[str] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                faults.append(f"line {number} is not JSON in UTF-8: {error}")
                if len(faults) == _MOST_FAULTS:
                    break
                continue
            if not faults:
                yield row
    if faults:
        raise DatasetError(where, faults)


def _of_parquet(path: Path, where: str) -> Iterator[Mapping[str, Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise DatasetError(where, (f"{path} is not Parquet: {error}",)) from error


def _of_hub(source: HubDataset) -> Iterator[Mapping[str, Any]]:
    import datasets

    try:
        found = datasets.load_dataset(source.repo, source.subset or None, split=source.split, revision=source.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # of a file that cannot be read, only the cause says what is wrong with it
        why = f"{error}: {error.__cause__}" if error.__cause__ is not None else str(error)
        raise DatasetError(str(source), (f"the hub does not give it: {why}",)) from error
    yield from found
