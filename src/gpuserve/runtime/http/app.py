"""The routes of a served model, as a FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic.errors import PydanticSchemaGenerationError
from starlette.exceptions import HTTPException

from gpuserve.exceptions import RequestError
from gpuserve.runtime.http.direct import Direct, DirectMethod
from gpuserve.runtime.http.encoding import encode
from gpuserve.runtime.http.guard import (
    OPEN_PATHS,
    REPORTED,
    Application,
    Guard,
    internal_error,
    refusal,
    report_failure,
)
from gpuserve.runtime.http.inputs import InputReader, check_media, fault_of, strict_route
from gpuserve.runtime.http.keys import keys_of
from gpuserve.runtime.http.metrics import Metrics
from gpuserve.runtime.http.openapi import described
from gpuserve.runtime.server import ServerRuntime
from gpuserve.specs.http import Http

__all__ = ["build_app"]

_JSON = "application/json"
# A server's `stream` beside its `predict` is found where clients look for it; no method can be named with a slash.
_MORE_PATHS = {"stream": ("predict/stream",)}


class _EventStream(StreamingResponse):
    media_type = "text/event-stream"


def build_app(runtime: ServerRuntime, http: Http, routes: Callable[[APIRouter], None]) -> Application:
    """The guarded ASGI application of one server.

    Raises:
        KeysError: If the server has no keys.
    """
    keys = keys_of(http)
    app = FastAPI(title=runtime.name, docs_url=None, redoc_url=None)
    app.openapi = described(app, OPEN_PATHS | frozenset(http.public_paths))  # type: ignore[method-assign]
    router = APIRouter(route_class=strict_route(http.max_json_values))

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", responses={503: {"description": "not ready", "content": {_JSON: {}}}})
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": runtime.ready}, 200 if runtime.ready else 503)

    metrics = Metrics(runtime)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        body, content_type = metrics.page()
        return Response(body, media_type=content_type)

    direct = []
    for name in (*runtime.batched, *runtime.streaming):
        try:
            reader = InputReader(name, runtime.annotation(name), http.max_json_values)
        except PydanticSchemaGenerationError:
            continue  # JSON has no word for this type: RPC alone serves it
        if name in runtime.streaming:
            for path in (name, *_MORE_PATHS.get(name, ())):
                _add_route(router, path, name, _streaming(runtime, name, reader), reader, _EventStream)
        else:
            _add_route(router, name, name, _described, reader, JSONResponse)
            direct.append(DirectMethod(runtime, name, reader, router.routes[-1]))
    routes(router)
    app.include_router(router)

    @app.exception_handler(RequestError)
    async def refuse(_request: Request, error: RequestError) -> Response:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def refuse_input(_request: Request, error: RequestValidationError) -> Response:
        errors = list(error.errors())
        if errors[0]["type"] == "json_invalid":
            fault = f"the body is not JSON: {errors[0]['ctx']['error']} at character {errors[0]['loc'][-1]}"
            return _refusal(RequestError(fault, "invalid_json", 400))
        return _refusal(fault_of(errors, [], skip=1))

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, RequestError):
            return _refusal(error.__cause__)  # FastAPI wraps what goes wrong while it reads a body
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        fault = f"{request.method} {request.scope['path'][:200]}: {error.detail}"
        answer = _refusal(RequestError(fault, code, error.status_code))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def refuse_failure(request: Request, _error: Exception) -> Response:
        request_id = request.scope["gpuserve_request_id"]
        report_failure(request_id)  # before it is answered: who was told of the log finds it there
        request.scope[REPORTED] = True
        return _refusal(internal_error(request_id))

    served: Application = Direct(app, direct)
    if http.cors_origins:
        served = CORSMiddleware(
            served,
            allow_origins=list(http.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    guard = Guard(served, http, keys, metrics.answered, runtime.request_observers)
    runtime.on_cut_off.append(guard.cut_off)
    return guard


def _refusal(error: RequestError) -> Response:
    headers, body = refusal(error)
    return Response(body, error.status, headers)


async def _described() -> None:
    # stands for a batched method among the routes: `Direct` answers its requests before they get so far
    pass


def _streaming(runtime: ServerRuntime, name: str, reader: InputReader) -> Callable[..., Any]:
    async def stream(request: Request) -> StreamingResponse:
        check_media(request.scope["headers"])
        item = reader.read(await request.body())
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        events = _events(runtime.stream(name, item), str(request.scope["gpuserve_request_id"]))
        return _EventStream(events, headers=headers)

    return stream


def _add_route(
    router: APIRouter, path: str, name: str, endpoint: Callable[..., Any], reader: InputReader, answer: type[Response]
) -> None:
    content = {_JSON: {"schema": reader.schema()}}
    router.add_api_route(
        f"/{path}",
        endpoint,
        methods=["POST"],
        name=name,
        response_model=None,
        response_class=answer,
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )


async def _events(stream: AsyncGenerator[Any], request_id: str) -> AsyncGenerator[bytes]:
    """The pieces of an answer as server-sent events; the last one says how it ended.

    A stream that ends without ``done`` or ``error`` was cut off.
    """
    try:
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                yield b"data: %s\n\n" % encode({"output": piece})
        yield b"event: done\ndata: {}\n\n"
    except RequestError as error:
        yield b"event: error\ndata: %s\n\n" % refusal(error)[1]
    except Exception:  # noqa: BLE001 (told in the log, not to the caller)
        report_failure(request_id)
        yield b"event: error\ndata: %s\n\n" % refusal(internal_error(request_id))[1]
