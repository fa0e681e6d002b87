"""The routes of a served model, as a FastAPI application."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError
from starlette.exceptions import HTTPException

from gpuserve.exceptions import RequestError
from gpuserve.runtime.http.guard import Application, Guard, internal_error, refusal
from gpuserve.runtime.http.keys import BearerKeys
from gpuserve.runtime.http.strict_json import parse_json
from gpuserve.runtime.server import ServerRuntime
from gpuserve.specs.http import Http

__all__ = ["build_app"]


def build_app(
    runtime: ServerRuntime, http: Http, methods: Iterable[str], routes: Callable[[APIRouter], None]
) -> Application:
    """The guarded ASGI application of one server.

    Raises:
        KeysError: If the server has no keys.
    """
    keys = BearerKeys.from_environment()
    app = FastAPI(title=runtime.name, docs_url=None, redoc_url=None)
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": runtime.ready}, 200 if runtime.ready else 503)

    for name in methods:
        _add_method(router, runtime, name)
    routes(router)
    app.include_router(router)
    if http.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(http.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )

    @app.exception_handler(RequestError)
    async def refuse(_request: Request, error: RequestError) -> Response:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def refuse_input(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return _refusal(RequestError(f"{where}: {first['msg']}", "invalid_input", 422), param=where)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return _refusal(RequestError(f"{request.method} {request.url.path}: {error.detail}", code, error.status_code))

    @app.exception_handler(Exception)
    async def refuse_failure(request: Request, _error: Exception) -> Response:
        return _refusal(internal_error(request.scope["gpuserve_request_id"]))

    return Guard(app, http, keys)


def _refusal(error: RequestError, *, param: str | None = None) -> Response:
    headers, body = refusal(error, param=param)
    return Response(body, error.status, headers)


def _add_method(router: APIRouter, runtime: ServerRuntime, name: str) -> None:
    annotation = runtime.annotation(name)
    try:
        model: type[BaseModel] = create_model(
            f"{name.title().replace('_', '')}Request",
            __config__=ConfigDict(extra="forbid", strict=True),
            input=(annotation, ...),
        )
    except PydanticSchemaGenerationError:
        return  # JSON has no word for this type: RPC alone serves it

    async def answer(request: Request) -> JSONResponse:
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(f"content-type is {kind!r}; send application/json", "unsupported_media_type", 415)
        body = await request.body()
        parse_json(body)
        try:
            checked = model.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RequestError(f"{where or 'body'}: {first['msg']}", "invalid_input", 422) from None
        key: str = request.scope.get("gpuserve_key", "")
        output = await runtime.submit_checked(name, checked.input, key=key)  # type: ignore[attr-defined]
        return JSONResponse({"output": _plain(output)})

    router.add_api_route(
        f"/{name}",
        answer,
        methods=["POST"],
        name=name,
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}
        },
    )


def _plain(value: Any) -> Any:
    """Arrays as lists, models as objects: what JSON can say."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.tolist() if hasattr(value, "tolist") else value
