"""A chat completion request: OpenAI's, with the fields of vLLM that clients know besides.

A field that is not here is refused, rather than ignored: the caller would take it for granted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

ServiceTier = Literal["auto", "default", "flex", "priority", "scale"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    url: str = Field(description="http(s) URL, or data:image/...;base64,...")
    detail: Literal["auto", "low", "high"] = Field("auto", description="Accepted; the size decides.")


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(Strict):
    url: str = Field(description="http(s) URL, or data:video/...;base64,...")


class VideoPart(Strict):
    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]
# Which of the two it is meant to be is told by what it is, so that errors are told of that one alone.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("parts")],
    Discriminator(lambda value: "parts" if isinstance(value, list) else "text"),
]


class FunctionCall(Strict):
    name: str
    arguments: str = Field(description="A JSON object, as text.")


class ToolCall(Strict):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = Field(None, description="What an earlier answer thought first.")
    reasoning_content: str | None = Field(None, description="The older name of reasoning.")
    # Clients send an answer back as they got it, with these empty.
    refusal: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing")
        return self

    @property
    def thoughts(self) -> str | None:
        """Under either name; a client that sends an answer back as it got it gives both."""
        return self.reasoning_content if self.reasoning is None else self.reasoning


class Function(Strict):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict, description="JSON Schema of the arguments.")
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionName


class TextFormat(Strict):
    type: Literal["text"]


class JsonFormat(Strict):
    type: Literal["json_object"]


class NamedSchema(Strict):
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)
    name: str
    json_schema: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = Field(False, description="Accepted; nothing is padded.")


class ChatRequest(Strict):
    """What is left out of temperature, top_p, top_k, min_p and repetition_penalty is the checkpoint's own
    choice (generation_config.json)."""

    model: str | None = Field(None, description="As in /v1/models.")
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="Default: what the context holds.")
    max_tokens: int | None = Field(None, ge=1, description="The older name of max_completion_tokens.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 or -1: no limit.")
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int = Field(1, ge=1, le=8)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    presence_penalty: float = Field(0, ge=-2, le=2)
    frequency_penalty: float = Field(0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] | None = (
        None
    )
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    ignore_eos: bool = Field(False, description="Answer on to the limit; for measuring.")
    parallel_tool_calls: bool = Field(True, description="Accepted; the model decides.")
    # Facts about the caller that change no answer. Of these, only who it is matters, to share slots evenly.
    user: str | None = Field(None, description="Whoever is behind the caller; users get their turns evenly.")
    safety_identifier: str | None = Field(None, description="The newer name of user.")
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: ServiceTier | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_nothing(cls, data: Any) -> Any:
        """Clients send null for what they leave to the server, as OpenAI lets them."""
        if not isinstance(data, dict):
            return data
        return {
            name: value for name, value in data.items() if value is not None or name not in cls.model_fields
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options is given without stream")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is given without logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens and max_completion_tokens are both given")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice is given without tools")
        names = [tool.function.name for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(
                f"tool_choice names {self.tool_choice.function.name}, tools has no such function"
            )
        if self.stop is not None and not all([self.stop] if isinstance(self.stop, str) else self.stop):
            raise ValueError("a stop string is empty")
        return self

    @property
    def characters(self) -> int:
        """How much is written, media aside."""
        count = sum(len(tool.model_dump_json()) for tool in self.offered_tools)
        for message in self.messages:
            content = message.content or ""
            texts = [content] if isinstance(content, str) else []
            texts += [part.text for part in content if isinstance(part, TextPart)]
            texts += [call.function.arguments for call in message.tool_calls or ()]
            count += len(message.thoughts or "") + sum(map(len, texts))
        return count

    @property
    def named_client(self) -> str:
        """On whose behalf the request is made, as far as it says."""
        return self.safety_identifier or self.user or ""

    @property
    def forced_tools(self) -> list[Tool]:
        """The tools of which one has to be called; empty when the answer is free."""
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            return [tool for tool in self.tools or () if tool.function.name == name]
        return list(self.tools or ()) if self.tool_choice == "required" else []

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools the model is told of."""
        return [] if self.tool_choice == "none" else list(self.tools or ())
