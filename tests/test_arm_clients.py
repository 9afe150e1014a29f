"""LangChain drives an arm as it drives OpenAI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from PIL import Image
from pydantic import BaseModel, SecretStr

from engines.checkpoint import Checkpoint
from engines.export import export
from tests.live_arm import live_arm
from tests.test_arm_api import data_uri, run


@pytest.fixture(scope="module")
def artifact(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clients") / "micro"
    export(Checkpoint.open(micro_checkpoint), out)
    return out


@pytest.fixture(scope="module")
def chat(artifact: Path) -> Iterator[ChatOpenAI]:
    with live_arm(artifact, "--context=512") as arm:
        key = SecretStr("none")
        yield ChatOpenAI(
            model="micro", base_url=f"{arm.url}/v1", api_key=key, temperature=0, max_tokens=200, seed=1
        )


def test_messages_and_pictures(chat: ChatOpenAI, artifact: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(4).integers(0, 256, (48, 64, 3), np.uint8))
    content = [
        {"type": "image_url", "image_url": {"url": data_uri(picture)}},
        {"type": "text", "text": "How many?"},
    ]
    expected = run(artifact, "How many?", [picture], 200)
    whole = chat.invoke([HumanMessage(content)])
    assert whole.content == expected
    assert whole.usage_metadata
    assert whole.usage_metadata["input_tokens"] > 12
    pieces = list(chat.stream([HumanMessage(content)]))
    assert "".join(str(piece.content) for piece in pieces) == expected
    assert len(pieces) > 1


def test_a_conversation_with_a_tool(chat: ChatOpenAI) -> None:
    class Zoom(BaseModel):
        """Look closer."""

        by: Literal[1, 2, 3]

    forced = chat.bind_tools([Zoom], tool_choice="Zoom")
    asked = [SystemMessage("Be brief."), HumanMessage("Closer!")]
    called = forced.invoke(asked)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    assert call["name"] == "Zoom"
    assert call["args"]["by"] in (1, 2, 3)
    streamed: AIMessageChunk | None = None
    for piece in forced.stream(asked):
        assert isinstance(piece, AIMessageChunk)
        streamed = piece if streamed is None else streamed + piece
    assert streamed
    assert streamed.tool_calls[0]["args"] == call["args"]
    answer = chat.invoke([*asked, called, ToolMessage("done", tool_call_id=call["id"])])
    assert answer.response_metadata["finish_reason"] in ("stop", "length")


def test_structured_output(chat: ChatOpenAI) -> None:
    class Scene(BaseModel):
        colour: bool
        count: bool

    found = chat.with_structured_output(Scene, method="json_schema").invoke("What is there?")
    assert isinstance(found, Scene)
