"""What a request brings: strict JSON, checked against the annotation of a method or by FastAPI."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from gpuserve.exceptions import RequestError
from gpuserve.runtime.http.strict_json import parse_json

__all__ = ["InputError", "InputReader", "check_media", "fault_of", "strict_route"]


class InputError(RequestError):
    """A body is JSON, but not what is asked for.

    Attributes:
        param: The field that is wrong.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message, "invalid_input", 422)
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by both fields."""
        return type(self), (self.message, self.param)


class InputReader:
    """Reads ``{"input": …}`` for one method.

    Nested models are strict and refuse unknown fields unless one of them says otherwise itself.

    Args:
        name: The method's.
        annotation: The type of one item.
        max_values: Values that a body may hold.

    Raises:
        PydanticSchemaGenerationError: If JSON has no word for the type.

    Examples:
        >>> InputReader("predict", int, 100).read(b'{"input": 3}')
        3
        >>> try:
        ...     InputReader("predict", int, 100).read(b'{"inptu": 3, "input": 3}')
        ... except RequestError as error:
        ...     print(error)
        inptu is not a field; did you mean 'input'?
    """

    def __init__(self, name: str, annotation: Any, max_values: int) -> None:
        self._max_values = max_values
        self.model: type[BaseModel] = create_model(
            f"{name.title().replace('_', '')}Request",
            __config__=ConfigDict(extra="forbid", strict=True),
            input=(annotation, ...),
        )
        nested = [one for one in _models(self.model.__pydantic_core_schema__, set()) if one is not self.model]
        self._options: dict[str, Any] = {}
        if not any("strict" in one.model_config for one in nested):
            self._options["strict"] = True
        if not any("extra" in one.model_config for one in nested):
            self._options["extra"] = "forbid"
        self._names = sorted({field for one in (self.model, *nested) for field in one.model_fields})

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the body; `described` puts its parts where its references lead."""
        prefix = f"#/components/schemas/{self.model.__name__}."
        schema = self.model.model_json_schema(ref_template=f"{prefix}{{model}}")
        if "extra" in self._options:
            for part in schema.get("$defs", {}).values():
                if "properties" in part:
                    part.setdefault("additionalProperties", False)
        return schema

    def read(self, body: bytes) -> Any:
        """The item in *body*.

        Raises:
            RequestError: 400 if it is not JSON as the standard has it.
            InputError: 422 with the field that is wrong.
        """
        parse_json(body, max_values=self._max_values)
        try:
            checked = self.model.model_validate_json(body, **self._options)
        except ValidationError as error:
            raise fault_of(error.errors(include_url=False), self._names) from None
        return checked.input  # type: ignore[attr-defined]


def fault_of(errors: list[Any], names: list[str], skip: int = 0) -> InputError:
    """The first of pydantic's *errors* as a sentence; the first *skip* parts of its place are left out."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"][skip:])[:200] or "body"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "leave it out"
        return InputError(f"{where} is not a field; {hint}", where)
    got = first.get("input")
    shown = repr(got)[:40] if got is None or isinstance(got, bool | int | float) else type(got).__name__
    if first["type"] == "missing":
        shown = "nothing"
    return InputError(f"{where}: {first['msg']}; got {shown}", where)


def _models(schema: Any, seen: set[int]) -> Iterator[type[BaseModel]]:
    """Every model in a core schema."""
    todo = [schema]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            if one.get("type") == "model":
                yield one["cls"]
            todo += one.values()
        elif isinstance(one, list | tuple):
            todo += one


_JSON = "application/json"
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


def check_media(headers: Iterable[tuple[bytes, bytes]], allowed: tuple[str, ...] = (_JSON,)) -> None:
    """Refuse a body that is not JSON, or is packed.

    Raises:
        RequestError: 415 with what to send.
    """
    for name, value in headers:
        if name == b"content-type" and value != b"application/json":
            kind = value.decode("latin-1").partition(";")[0].strip().lower()
            if kind not in allowed:
                raise RequestError(f"content-type is {kind[:64]!a}; send {_JSON}", "unsupported_media_type", 415)
        elif name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            packed = value.decode("latin-1")[:64]
            fault = f"content-encoding is {packed!a}; send the body as it is"
            raise RequestError(fault, "unsupported_media_type", 415)


def strict_route(max_values: int) -> type[APIRoute]:
    """The class of a server's own routes: their bodies are strict JSON too, and nothing but JSON or a form."""

    class StrictRequest(Request):
        async def json(self) -> Any:
            if not hasattr(self, "_json"):
                self._json = parse_json(await self.body(), max_values=max_values)
            return self._json

    class StrictRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()
            takes_body = self.body_field is not None

            async def strict(request: Request) -> Response:
                if takes_body:
                    check_media(request.scope["headers"], (_JSON, *_FORMS))
                return await handler(StrictRequest(request.scope, request.receive))

            return strict

    return StrictRoute
