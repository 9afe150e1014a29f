"""The OpenAPI document, made from the models that requests are checked by."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from serve.arm.answers import ChatCompletion, ChatCompletionChunk, ModelCard, Models, State
from serve.arm.errors import ErrorBody
from serve.arm.schema import ChatRequest
from serve.arm.upload import VisionForm

READ: tuple[type[BaseModel], ...] = (ChatRequest, VisionForm)
WRITTEN: tuple[type[BaseModel], ...] = (
    ChatCompletion,
    ChatCompletionChunk,
    Models,
    ModelCard,
    State,
    ErrorBody,
)
ANSWER_ERRORS = (400, 401, 404, 408, 413, 429, 500, 503, 504)

# Each server-sent event of an answer with "stream": true.
DATA = {
    "type": "string",
    "contentMediaType": "application/json",
    "contentSchema": {
        "anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("ChatCompletionChunk", "ErrorBody")]
    },
}
EVENT = {
    "schema": {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, DATA]}},
    }
}


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    pairs: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((model, "validation") for model in READ),
        *((model, "serialization") for model in WRITTEN),
    ]
    _, schemas = models_json_schema(pairs, ref_template="#/components/schemas/{model}")
    chat = _answering("Chat completion", {"application/json": _ref("ChatRequest")})
    vision = _answering("A question about one picture", {"multipart/form-data": _ref("VisionForm")})
    paths = {
        "/v1/chat/completions": {"post": chat},
        "/chat/vision": {"post": vision},
        "/v1/models": {"get": _reading("What is served here", "Models", errors=(401,))},
        "/v1/models/{name}": {
            "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": _reading("One model", "ModelCard", errors=(401, 404)),
        },
        "/health": {"get": _reading("Whether the process lives", "State", states=(500,))},
        "/ready": {"get": _reading("Whether requests are taken", "State", states=(503,))},
        "/metrics": {"get": _plain("Prometheus metrics", "text/plain")},
        "/openapi.json": {"get": _plain("This document", "application/json", errors=(401,))},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Qwen3-VL arm", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _ref(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _responses(ok: dict[str, Any], errors: tuple[int, ...]) -> dict[str, Any]:
    failed = {"application/json": _ref("ErrorBody")}
    found = {str(status): {"description": "Error", "content": failed} for status in errors}
    return {"200": {"description": "OK", "content": ok}, **found}


def _answering(summary: str, content: dict[str, Any]) -> dict[str, Any]:
    ok = {"application/json": _ref("ChatCompletion"), "text/event-stream": EVENT}
    body = {"required": True, "content": content}
    return {"summary": summary, "requestBody": body, "responses": _responses(ok, ANSWER_ERRORS)}


def _reading(
    summary: str, model: str, *, states: tuple[int, ...] = (), errors: tuple[int, ...] = ()
) -> dict[str, Any]:
    """`states`: statuses besides 200 that come with the same model."""
    content = {"application/json": _ref(model)}
    also = {str(status): {"description": "Not now", "content": content} for status in states}
    return {"summary": summary, "responses": _responses(content, errors) | also}


def _plain(summary: str, kind: str, *, errors: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"summary": summary, "responses": _responses({kind: {}}, errors)}
