"""What ``/openapi.json`` says of every route beside what it takes: keys, and errors in one shape."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

__all__ = ["described"]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "code", "message", "param"],
            "additionalProperties": False,
            "properties": {
                "type": {"enum": ["invalid_request_error", "server_error"]},
                "code": {"type": "string"},
                "message": {"type": "string"},
                "param": {"type": ["string", "null"]},
            },
        }
    },
}
_EVENT = {
    "type": "object",
    "description": 'data: one piece as {"output": …}; the last event is done, or error with the error as its data',
}
_ALWAYS = {
    "400": "the request is malformed, or its JSON is",
    "401": "there is no key, or a wrong one",
    "404": "there is no such route",
    "405": "the route has another method",
    "429": "too many requests: of this key, or waiting; Retry-After says when to try again",
    "431": "the headers are too large",
    "500": "the server failed; its log has the reason",
    "503": "the server is not ready, or leaving",
    "504": "the answer took too long",
}
_WITH_BODY = {
    "408": "the body did not come",
    "413": "the body is too large",
    "415": "the body is not JSON",
    "422": "the body is not what is asked for",
}


def described(app: FastAPI, open_paths: Collection[str]) -> Callable[[], dict[str, Any]]:
    """What `FastAPI.openapi` is to be: its own answer, made once, with our keys and errors in it."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            page = get_openapi(title=app.title, version=app.version, routes=app.routes)
            components = page.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)  # FastAPI's own shape, which nobody is answered in here
            schemas["Error"] = _ERROR
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, operations in page.get("paths", {}).items():
                for operation in operations.values():
                    schemas.update(_parts(operation))
                    _describe(operation, is_open=path in open_paths)
            app.openapi_schema = page
        return app.openapi_schema

    return openapi


def _parts(operation: dict[str, Any]) -> dict[str, Any]:
    """The models that the schema of a body names, taken out of it, under the names by which it refers to them."""
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return {f"{schema['title']}.{name}": part for name, part in schema.pop("$defs", {}).items()}


def _describe(operation: dict[str, Any], *, is_open: bool) -> None:
    if not is_open:
        operation["security"] = [{"key": []}]
    takes_input = "requestBody" in operation or operation.get("parameters")
    responses = operation.setdefault("responses", {})
    own = {code: one for code, one in responses.items() if "HTTPValidationError" not in str(one)}
    events = own.get("200", {}).get("content", {}).get("text/event-stream")
    if events is not None:
        events["schema"] = _EVENT
    errors = {**_ALWAYS, **(_WITH_BODY if takes_input else {})}
    described = {
        code: {
            "description": text,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for code, text in errors.items()
    }
    operation["responses"] = {**described, **own}
