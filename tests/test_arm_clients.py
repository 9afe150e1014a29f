"""Real clients drive an arm as they drive OpenAI: its own package's helpers, and LangChain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from PIL import Image
from pydantic import BaseModel, SecretStr

from engines.checkpoint import Checkpoint
from engines.export import export
from tests.live_arm import LiveArm, live_arm
from tests.test_arm_api import data_uri, run


class Zoom(BaseModel):
    """Look closer."""

    by: Literal[1, 2, 3]


class Turn(BaseModel):
    """Turn the picture."""

    left: bool


class Scene(BaseModel):
    colour: Literal["red", "blue"]
    round: bool


@pytest.fixture(scope="module")
def artifact(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clients") / "micro"
    export(Checkpoint.open(micro_checkpoint), out)
    return out


@pytest.fixture(scope="module")
def arm(artifact: Path) -> Iterator[LiveArm]:
    with live_arm(artifact, "--context=512") as running:
        yield running


@pytest.fixture(scope="module")
def client(arm: LiveArm) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{arm.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def chat(arm: LiveArm) -> ChatOpenAI:
    return ChatOpenAI(
        model="micro",
        base_url=f"{arm.url}/v1",
        api_key=SecretStr("none"),
        temperature=0,
        max_tokens=200,
        seed=1,
    )


ASKED: Any = [{"role": "user", "content": "What is there?"}]


def test_openai_parses_an_answer_whole_and_streamed(client: OpenAI) -> None:
    options: Any = {"model": "micro", "messages": ASKED, "response_format": Scene, "seed": 1}
    parsed = client.chat.completions.parse(**options).choices[0].message.parsed
    assert isinstance(parsed, Scene)
    with client.chat.completions.stream(**options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == parsed
    assert kinds.count("content.delta") > 1
    assert kinds[-1] == "content.done"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Turn"}}])
def test_openai_parses_calls_whole_and_streamed(client: OpenAI, choice: Any) -> None:
    tools = [openai.pydantic_function_tool(Zoom), openai.pydantic_function_tool(Turn)]
    options: Any = {"model": "micro", "messages": ASKED, "tools": tools, "tool_choice": choice, "seed": 1}
    (call,) = client.chat.completions.parse(**options).choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Zoom | Turn)
    assert choice == "required" or isinstance(call.function.parsed_arguments, Turn)
    with client.chat.completions.stream(**options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    (streamed,) = final.choices[0].message.tool_calls or ()
    assert streamed.function == call.function
    assert "tool_calls.function.arguments.done" in kinds
    assert final.choices[0].finish_reason == "tool_calls"


def test_openai_asks_many_things_at_once(arm: LiveArm, artifact: Path) -> None:
    questions = ["Code of Zafolo?", "BORA?", "What colour is it?"] * 4

    async def ask(client: AsyncOpenAI, question: str) -> str:
        messages: Any = [{"role": "user", "content": question}]
        stream = await client.chat.completions.create(
            model="micro", messages=messages, temperature=0, max_tokens=24, stream=True, user=question
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_all() -> list[str]:
        async with AsyncOpenAI(base_url=f"{arm.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, question) for question in questions))

    expected = {question: run(artifact, question, []) for question in set(questions)}
    assert asyncio.run(ask_all()) == [expected[question] for question in questions]


def test_langchain_shows_pictures(chat: ChatOpenAI, artifact: Path) -> None:
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


@pytest.mark.parametrize("choice", ["Zoom", "any"])
def test_langchain_talks_with_a_tool(chat: ChatOpenAI, choice: str) -> None:
    forced = chat.bind_tools([Zoom], tool_choice=choice)
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


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of the client's own chunks
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structures_an_answer(
    chat: ChatOpenAI, method: Literal["json_schema", "function_calling"]
) -> None:
    structured = chat.with_structured_output(Scene, method=method, strict=True)
    found = structured.invoke("What is there?")
    assert isinstance(found, Scene)
    assert list(structured.stream("What is there?"))[-1] == found
