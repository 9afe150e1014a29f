"""From a request's fields to the rules its tokens are chosen by."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, TypeVar

from engines.constraint import Constraint
from engines.errors import UserError
from engines.penalties import Penalties
from engines.processor import Inputs
from engines.sampling import Sampling
from engines.thoughts import THOUGHT, thinking
from serve.arm.errors import ApiError
from serve.arm.model import Model
from serve.arm.schema import ChatRequest, JsonFormat, SchemaFormat, Tool
from serve.arm.sequence import Rules

T = TypeVar("T")


def rules(model: Model, request: ChatRequest, inputs: Inputs) -> Rules:
    """ApiError when what is asked for does not fit the context or the vocabulary."""
    room = model.slots.capacity - len(inputs.input_ids)
    asked = request.max_completion_tokens or request.max_tokens
    if asked and asked > room:
        raise ApiError(
            400,
            f"the prompt has {len(inputs.input_ids)} tokens and max_tokens is {asked}: the context has "
            f"{model.slots.capacity}, ask for at most {room}",
            param="max_tokens",
            code="context_length_exceeded",
        )
    vocabulary = model.processor.config.text.vocab_size
    bias = request.logit_bias or {}
    if beyond := [token for token in bias if not 0 <= token < vocabulary]:
        raise ApiError(400, f"logit_bias names token {beyond[0]} of {vocabulary}", param="logit_bias")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    opened = thinking(model.processor, inputs)
    return Rules(
        max_tokens=asked or room,
        sampling=sampling(request, model.defaults),
        penalties=Penalties(
            request.presence_penalty,
            request.frequency_penalty,
            _either(request.repetition_penalty, model.defaults.get("repetition_penalty", 1.0)),
            bias,
        ),
        stop=stop,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        constrain_after=model.processor.tokenizer.token_to_id(THOUGHT) if opened else None,
    )


def sampling(request: ChatRequest, defaults: dict[str, Any]) -> Sampling:
    """The request's sampling, the checkpoint's where it says nothing; a random seed if it gives none."""
    seed = secrets.randbits(63) if request.seed is None else request.seed % 2**64
    return Sampling(
        temperature=_either(request.temperature, defaults["temperature"]),
        top_p=_either(request.top_p, defaults.get("top_p", 1.0)),
        top_k=max(0, _either(request.top_k, defaults.get("top_k", 0))),
        min_p=_either(request.min_p, defaults.get("min_p", 0.0)),
        seed=seed,
    )


def constraint(model: Model, request: ChatRequest) -> Constraint | None:
    """What holds one answer to the schema asked for, if one is; ApiError for a schema that cannot be used."""
    schema: dict[str, Any]
    if tools := request.forced_tools:
        schema, param = call_schema(tools), "tools"
    elif isinstance(request.response_format, SchemaFormat):
        schema, param = request.response_format.json_schema.json_schema, "response_format"
    elif isinstance(request.response_format, JsonFormat):
        schema, param = {"type": "object"}, "response_format"
    else:
        return None
    try:
        return model.grammar.json(schema)
    except UserError as error:
        raise ApiError(400, str(error), param=param) from None


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """JSON Schema of a call of one of the tools, as Qwen writes it between its tags."""
    calls: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for tool in tools:
        place = f"#/$defs/{tool.function.name}"
        definitions[tool.function.name] = _moved(tool.function.parameters or {"type": "object"}, place)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": {"$ref": place}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls, "$defs": definitions}


def _moved(schema: Any, place: str) -> Any:
    """A JSON Schema that stands at `place` in another: its references are to its own root."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _moved(value, place) for name, value in schema.items()}
    reference = found.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        found["$ref"] = place + reference[1:]
    return found


def _either(value: T | None, default: T) -> T:
    return default if value is None else value
