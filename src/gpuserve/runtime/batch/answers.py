"""Answers as bytes, for the ledger: arrays as they lie in memory, everything else as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from gpuserve.exceptions import AnswerError

__all__ = ["pack", "plain", "unpack"]


def plain(answer: Any) -> Any:
    """An answer in the words of JSON: arrays and numpy's numbers as lists and numbers.

    Raises:
        AnswerError: If JSON has no word for it.
    """
    if answer is None or isinstance(answer, str | bool | int):
        return answer
    if isinstance(answer, float):
        if not math.isfinite(answer):
            raise AnswerError(f"the answer holds {answer!r}, which JSON has no word for; answer None, or write Parquet")
        return answer
    if isinstance(answer, dict):
        for name in answer:
            if not isinstance(name, str):
                raise AnswerError(f"the answer has a field {name!r} that is {type(name).__name__}; name fields by text")
        return {name: plain(one) for name, one in answer.items()}
    if isinstance(answer, list | tuple):
        return [plain(one) for one in answer]
    if hasattr(answer, "tolist") and type(answer).__module__.partition(".")[0] in {"numpy", "torch"}:
        return plain(answer.tolist())
    raise AnswerError(
        f"the answer is {type(answer).__name__}; return text, numbers, lists, dictionaries, numpy arrays or None"
    )


def _is_array(answer: Any) -> bool:
    return type(answer).__module__ == "numpy" and hasattr(answer, "dtype") and answer.dtype.kind in "fiub"


def pack(answers: Sequence[Any]) -> tuple[str, bytes]:
    """What kind of answers these are, and their bytes.

    Raises:
        AnswerError: If one is nothing that can be kept.

    Examples:
        >>> pack(["a", 1])
        ('json', b'["a",1]')
    """
    stacked = _stacked(answers)
    if stacked is not None:
        shape = ",".join(map(str, stacked.shape))
        return f"array {stacked.dtype.str} {shape}", stacked.tobytes()
    # NaN is kept here as JSON's dialect in Python writes it: a shard of Parquet can hold it
    return "json", json.dumps([_kept(one) for one in answers], separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def _kept(answer: Any) -> Any:
    if isinstance(answer, float) or answer is None or isinstance(answer, str | bool | int):
        return answer
    if isinstance(answer, list | tuple):
        return [_kept(one) for one in answer]
    if isinstance(answer, dict):
        return {name: _kept(one) for name, one in answer.items()} if all(map(_is_text, answer)) else plain(answer)
    if _is_array(answer):
        return answer.tolist()
    return plain(answer)


def _is_text(name: Any) -> bool:
    return isinstance(name, str)


def _stacked(answers: Sequence[Any]) -> Any:
    """One array for all answers, where they are arrays of one shape and type."""
    if _is_array(answers) and getattr(answers, "ndim", 0) >= 1:
        return answers
    if not answers or not _is_array(answers[0]):
        return None
    first = answers[0]
    if any(not _is_array(one) or one.shape != first.shape or one.dtype != first.dtype for one in answers):
        return None
    import numpy as np

    return np.stack(answers)


def unpack(kind: str, data: bytes) -> list[Any]:
    """The answers again; of an array, its rows."""
    if kind == "json":
        found: list[Any] = json.loads(data.decode("utf-8", "surrogatepass"))
        return found
    import numpy as np

    _, dtype, shape = kind.split(" ")
    return list(np.frombuffer(data, dtype=dtype).reshape([int(one) for one in shape.split(",")]))
