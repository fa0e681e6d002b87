"""JSON as the standard has it: no NaN, no key twice, no broken text, not too deep."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from gpuserve.exceptions import RequestError

__all__ = ["parse_json"]

_DEEPEST = 64


def parse_json(body: bytes) -> Any:
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
    if not body.strip():
        raise RequestError("the body is empty; send a JSON object", "empty_body")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 at byte {error.start}", "invalid_utf8") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error.msg} at character {error.pos}", "invalid_json") from None
    except RecursionError:
        raise RequestError(f"the body is nested deeper than {_DEEPEST}", "too_deep") from None
    except ValueError:
        raise RequestError("a number has too many digits", "number_too_long") from None
    _check(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"the key {twice!r} is there twice", "duplicate_key")
    return found


def _no_constant(name: str) -> NoReturn:
    raise RequestError(f"{name} is not a JSON number; numbers must be finite", "invalid_number")


def _check(value: Any) -> None:
    todo: list[tuple[Any, int]] = [(value, 1)]
    while todo:
        one, depth = todo.pop()
        if depth > _DEEPEST:
            raise RequestError(f"the body is nested deeper than {_DEEPEST}", "too_deep")
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                raise RequestError("a text holds half of a surrogate pair", "invalid_unicode") from None
        elif isinstance(one, float) and one in {float("inf"), float("-inf")}:
            raise RequestError("a number is too large; numbers must be finite", "invalid_number")
        elif isinstance(one, dict):
            todo += [(part, depth + 1) for pair in one.items() for part in pair]
        elif isinstance(one, list):
            todo += [(part, depth + 1) for part in one]
