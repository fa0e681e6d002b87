"""Answers as JSON: numpy's arrays and pydantic's models as they come, and never a NaN."""

from __future__ import annotations

import json
from typing import Any

import orjson
from pydantic import BaseModel

__all__ = ["encode"]


def encode(value: Any) -> bytes:
    """*value* as JSON.

    Raises:
        TypeError: If JSON has no word for it.
        ValueError: If it holds a NaN or an infinity.

    Examples:
        >>> encode({"output": [1, 2.5, "ü"]}).decode()
        '{"output":[1,2.5,"ü"]}'
    """
    try:
        body = orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        return _slowly(value)  # numbers of more than 64 bits, keys that are no text
    # orjson writes NaN as null; where there is one, the standard library tells which it was
    return _slowly(value) if b"null" in body else body


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _slowly(value: Any) -> bytes:
    return json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
