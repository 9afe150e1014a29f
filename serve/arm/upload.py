"""The short form of a question about a picture: one multipart form with an image and a prompt."""

from __future__ import annotations

import base64
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from serve.arm.schema import ChatRequest, ImagePart, ImageUrl, Message, TextPart


class VisionForm(BaseModel):
    """Fields of POST /chat/vision; the answer is that of /v1/chat/completions."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    image: Annotated[bytes, Field(min_length=1, json_schema_extra={"format": "binary"})]
    prompt: Annotated[str, Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool = False

    def chat_request(self) -> ChatRequest:
        """The same in OpenAI's form."""
        url = f"data:image/any;base64,{base64.b64encode(self.image).decode()}"
        image = ImagePart(type="image_url", image_url=ImageUrl(url=url))
        content = [image, TextPart(type="text", text=self.prompt)]
        return ChatRequest(
            messages=[Message(role="user", content=content)],
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
            stream=self.stream,
        )
