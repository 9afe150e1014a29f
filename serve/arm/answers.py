"""What a chat completion answers, whole and in chunks, in OpenAI's form."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

FinishReason = Literal["stop", "length", "tool_calls"]


def absent(value: object) -> bool:
    """Of fields that are left out when there is nothing to say, as OpenAI does."""
    return value is None


class CalledFunction(BaseModel):
    name: str
    arguments: str


class Call(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class IndexedCall(Call):
    index: int


class LikelyToken(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(LikelyToken):
    top_logprobs: list[LikelyToken]


class Logprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class PromptDetails(BaseModel):
    cached_tokens: int = Field(description="Tokens of the prompt that were known and not computed again.")


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | None = Field(
        None, exclude_if=absent, description="What a Thinking checkpoint thought first."
    )
    reasoning_content: str | None = Field(None, exclude_if=absent, description="The older name of reasoning.")
    tool_calls: list[Call] | None = Field(None, exclude_if=absent)


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str | None = Field(description="Digest of the artifact that answers.")


class Delta(BaseModel):
    role: Literal["assistant"] | None = Field(None, exclude_if=absent)
    content: str | None = Field(None, exclude_if=absent)
    reasoning: str | None = Field(None, exclude_if=absent)
    reasoning_content: str | None = Field(None, exclude_if=absent)
    tool_calls: list[IndexedCall] | None = Field(None, exclude_if=absent)


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = Field(None, exclude_if=absent)
    system_fingerprint: str | None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "qwen3-vl-variants"
    variant: str | None = Field(description="Label of the artifact.")
    digest: str | None = Field(description="sha256 of the artifact's manifest.")
    max_model_len: int | None = Field(description="Tokens of prompt and answer.")


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class State(BaseModel):
    """Of /health and /ready."""

    status: Literal["ok", "loading", "draining", "failed"]
