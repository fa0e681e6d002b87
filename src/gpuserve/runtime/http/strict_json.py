"""JSON as the standard has it: no NaN, no key twice, no broken text, not too deep, not too much."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, NoReturn

from gpuserve.exceptions import RequestError

__all__ = ["MAX_VALUES", "parse_json"]

_DEEPEST = 64
# Source: every integer of 308 digits is below the largest float, 1.8e308.
_MOST_DIGITS = 308
MAX_VALUES = 100_000
"""Values that a body may hold unless told otherwise."""

# What only a second look can judge, found at the speed of a search; inside a text it is harmless.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_EXPONENT = re.compile(rb"[eE]\+?[0-9]{2}")
_AS_ZEROS = bytes(ord("0") if byte in b"0123456789" else byte for byte in range(256))
_LONG_RUN = b"0" * (_MOST_DIGITS + 1)
# A text that is not closed runs to the end, so that nothing is looked at twice.
_TEXT = r'"(?:[^"\\]++|\\.)*+"?'
_TEXT_OR_LONG_NUMBER = re.compile(rf"{_TEXT}|[0-9][0-9.]{{{_MOST_DIGITS},}}+", re.DOTALL)
_TEXT_OR_MARK = re.compile(rf"{_TEXT}|[\[\]{{}},:]", re.DOTALL)


def parse_json(body: bytes, *, max_values: int = MAX_VALUES) -> Any:
    """The value of *body*.

    Raises:
        RequestError: 400 with what is wrong and where.

    Examples:
        >>> parse_json(b'{"input": "a"}')
        {'input': 'a'}
        >>> try:
        ...     parse_json(b'{"a": NaN}')
        ... except RequestError as error:
        ...     error.code
        'invalid_number'
    """
    if not body or body.isspace():
        raise RequestError("the body is empty; send a JSON object", "empty_body")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 at byte {error.start}", "invalid_utf8") from None
    if len(body) > _MOST_DIGITS and _LONG_RUN in body.translate(_AS_ZEROS):
        _refuse_long_numbers(text)
    opened = text.count("[") + text.count("{")
    # between two values there is a comma, a colon or a bracket; those in texts are told apart on a second look
    if opened > _DEEPEST or opened + text.count(",") + text.count(":") >= max_values:
        _refuse_structure(text, max_values)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error.msg} at character {error.pos}", "invalid_json") from None
    if _EXPONENT.search(body) or (b"\\u" in body and _SURROGATE.search(body)):
        _refuse_broken(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise RequestError(f"the key {_shown(twice)} is there twice", "duplicate_key")
    return found


def _shown(name: str) -> str:
    """A caller's word in a message of ours: short, and in characters that every log can take."""
    return ascii(name if len(name) <= 64 else f"{name[:64]}…")  # noqa: PLR2004 (what a name has)


def _no_constant(name: str) -> NoReturn:
    raise RequestError(f"{name} is not a JSON number; numbers must be finite", "invalid_number")


def _refuse_long_numbers(text: str) -> None:
    for found in _TEXT_OR_LONG_NUMBER.finditer(text):
        number = found[0]
        if number[0] != '"':
            fault = f"a number has {len(number):,} digits at character {found.start()}; {_MOST_DIGITS} are the most"
            raise RequestError(fault, "number_too_long")


def _refuse_structure(text: str, max_values: int) -> None:
    """Count depth and values without building anything."""
    depth = 0
    values = 1
    for found in _TEXT_OR_MARK.finditer(text):
        mark = found[0]
        if mark in "[{":
            depth += 1
            values += 1
            if depth > _DEEPEST:
                raise RequestError(f"the body is nested deeper than {_DEEPEST}", "too_deep")
        elif mark in "]}":
            depth -= 1
        elif mark in ",:":
            values += 1
        if values > max_values:
            raise RequestError(f"the body holds more than {max_values} values; send less at a time", "too_many_values")


def _refuse_broken(value: Any) -> None:
    todo: list[Any] = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                raise RequestError("a text holds half of a surrogate pair", "invalid_unicode") from None
        elif isinstance(one, float):
            if one in {float("inf"), float("-inf")}:
                raise RequestError("a number is too large; numbers must be finite", "invalid_number")
        elif isinstance(one, dict):
            todo += one
            todo += one.values()
        elif isinstance(one, list):
            todo += one
