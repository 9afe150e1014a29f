"""The arm over HTTP: OpenAI's routes, and those that keep a service alive."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engines.config import validation_message
from serve.arm import page
from serve.arm.answers import ModelCard, Models, State
from serve.arm.arm import Arm
from serve.arm.body import read
from serve.arm.errors import ApiError
from serve.arm.middleware import Context
from serve.arm.openapi import document
from serve.arm.reply import Reply
from serve.arm.schema import ChatRequest
from serve.arm.upload import VisionForm

T = TypeVar("T", bound=BaseModel)
V = TypeVar("V")


def build_app(arm: Arm) -> Starlette:
    """The ASGI application of `arm`, which may still be loading."""
    described = json.dumps(document()).encode()

    async def chat(request: Request) -> Reply:
        return Reply(arm, _checked(ChatRequest.model_validate_json, await read(request)))

    async def vision(request: Request) -> Reply:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ApiError(
                400, "expected multipart/form-data, a file `image` and a `prompt`, as curl -F sends"
            )
        async with request.form(max_files=1, max_fields=16, max_part_size=1_000_000) as form:
            fields: dict[str, Any] = dict(form)
            if isinstance(image := fields.get("image"), UploadFile):
                fields["image"] = await image.read()
        return Reply(arm, _checked(VisionForm.model_validate, fields).chat_request())

    async def models(request: Request) -> Response:
        return _json(Models(data=[ModelCard(**arm.card())]))

    async def model(request: Request) -> Response:
        arm.check_name(request.path_params["name"])
        return _json(ModelCard(**arm.card()))

    async def health(request: Request) -> Response:
        return _json(State(status=arm.status), 500 if arm.status == "failed" else 200)

    async def ready(request: Request) -> Response:
        return _json(State(status=arm.status), 200 if arm.status == "ok" else 503)

    async def metrics(request: Request) -> Response:
        return Response(arm.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(request: Request) -> Response:
        return Response(described, media_type="application/json")

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/chat/vision", vision, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            *page.routes(),
        ],
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=arm.settings.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-request-id"],
                expose_headers=["retry-after", "x-request-id"],
            ),
            Middleware(Context, arm=arm),
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error},
    )


def _json(value: BaseModel, status: int = 200) -> Response:
    return Response(value.model_dump_json(), status, media_type="application/json")


def _checked(validate: Callable[[V], T], value: V) -> T:
    try:
        return validate(value)
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        raise ApiError(400, validation_message(error), param=str(where[0]) if where else None) from None


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(error.body.model_dump_json(), error.status, error.headers, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route or method, a form that is none."""
    assert isinstance(error, HTTPException)
    message = f"{request.url.path}: {error.detail}"
    if error.status_code == 404:
        message = f"there is no {request.url.path} here: /openapi.json tells what there is"
    elif error.status_code == 405:
        message = f"{request.url.path} takes no {request.method}, but {(error.headers or {}).get('Allow')}"
    return await _api_error(request, ApiError(error.status_code, message, headers=error.headers))
