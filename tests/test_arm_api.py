"""The openai client against a live arm: text, pictures, streams, schemas, tools, and every refusal."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image

from engines.checkpoint import Checkpoint
from engines.export import export
from engines.generate import generate
from engines.onnx_session import OnnxSession
from engines.processor import Processor
from tests.live_arm import LiveArm, live_arm

QUESTIONS = ["Code of Zafolo?", "BORA?", "What colour is it?", "How many?"]


@pytest.fixture(scope="module")
def artifact(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "micro"
    export(Checkpoint.open(micro_checkpoint), out)
    return out


@pytest.fixture(scope="module")
def arm(artifact: Path) -> Iterator[LiveArm]:
    with live_arm(artifact, "--slots=4", "--context=512") as running:
        yield running


@pytest.fixture(scope="module")
def client(arm: LiveArm) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{arm.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: OpenAI, content: Any, **options: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="micro", messages=messages, **options)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8))


def data_uri(image: Image.Image, kind: str = "PNG") -> str:
    stream = io.BytesIO()
    image.save(stream, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def run(artifact: Path, text: str, images: list[Image.Image], max_tokens: int = 24) -> str:
    """The answer of `python -m engines run`."""
    session, processor = OnnxSession(artifact, threads=1), Processor.load(artifact)
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": text}]
    inputs = processor([{"role": "user", "content": content}])
    return generate(session, processor, inputs, max_tokens=max_tokens).text


@pytest.mark.parametrize("count", [0, 1, 2])
def test_greedy_answers_are_those_of_engines_run(client: OpenAI, artifact: Path, count: int) -> None:
    images = [picture(seed) for seed in range(count)]
    parts = [{"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images]
    for question in QUESTIONS:
        content = [*parts, {"type": "text", "text": question}]
        expected = run(artifact, question, images)
        whole = ask(client, content, max_tokens=24, temperature=0)
        assert whole.choices[0].message.content == expected
        streamed = ask(client, content, max_tokens=24, temperature=0, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == expected


def test_a_completion_counts_what_it_took(client: OpenAI) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": data_uri(picture(9))}},
        {"type": "text", "text": "?"},
    ]
    first, again = (ask(client, content, max_tokens=4) for _ in range(2))
    assert first.choices[0].finish_reason in ("stop", "length")
    assert first.usage.completion_tokens <= 4
    assert first.usage.prompt_tokens > 12  # 64 x 48 pixels are 4 x 3 tokens
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


def test_a_stream_ends_with_its_usage(client: OpenAI) -> None:
    chunks = list(ask(client, "BORA?", stream=True, stream_options={"include_usage": True}, max_tokens=6))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] in ("stop", "length")
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens <= 6
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_turns_go_on_from_what_is_cached(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "BORA?"}]
    cached = []
    for _ in range(3):
        answer = client.chat.completions.create(model="micro", messages=messages, max_tokens=8)
        cached.append((answer.usage.prompt_tokens_details.cached_tokens, answer.usage.prompt_tokens))
        messages += [answer.choices[0].message, {"role": "user", "content": "Code of Zafolo?"}]
    assert all(now > 0.6 * before for (now, _), (_, before) in zip(cached[1:], cached, strict=False))


def test_seeds_and_choices(client: OpenAI) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "max_tokens": 12, "n": 3}
    first, again, other = (ask(client, "BORA?", seed=seed, **options) for seed in (5, 5, 6))
    texts = [[choice.message.content for choice in answer.choices] for answer in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 1
    assert first.usage.completion_tokens >= 3
    chunks = list(ask(client, "BORA?", seed=5, stream=True, **options))
    streamed = ["", "", ""]
    for chunk in chunks:
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts[0]


def test_logprobs_are_of_the_tokens_said(client: OpenAI) -> None:
    answer = ask(client, "Code of Zafolo?", logprobs=True, top_logprobs=3, temperature=0)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    text = b"".join(bytes(entry.bytes) for entry in entries).decode()
    assert text.startswith(answer.choices[0].message.content)
    for entry in entries:
        assert [likely.logprob for likely in entry.top_logprobs] == sorted(
            (likely.logprob for likely in entry.top_logprobs), reverse=True
        )
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert sum(np.exp(likely.logprob) for likely in entry.top_logprobs) <= 1.0001


def test_stop_strings_and_biases(client: OpenAI) -> None:
    whole = ask(client, "Code of Zafolo?", temperature=0).choices[0]
    assert len(whole.message.content) >= 3
    cut = ask(client, "Code of Zafolo?", temperature=0, stop=whole.message.content[2]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole.message.content[:2], "stop")
    entry = ask(client, "Code of Zafolo?", temperature=0, logprobs=True, max_tokens=1).choices[0]
    assert entry.finish_reason == "length"
    biased = ask(client, "Code of Zafolo?", temperature=0, logit_bias={"70": 100}, max_tokens=3)
    free = ask(client, "Code of Zafolo?", temperature=0, logit_bias={}, max_tokens=3)
    assert biased.choices[0].message.content != free.choices[0].message.content
    repeated = ask(client, "BORA?", temperature=0, logit_bias={"70": 100}, max_tokens=9, frequency_penalty=2)
    assert repeated.usage.completion_tokens == 9


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"min_p": 1}, {"top_p": 1e-9}, {"temperature": 0}])
def test_sampling_that_leaves_one_token_is_greedy(client: OpenAI, narrow: dict[str, float]) -> None:
    free = {"temperature": 2.0, "top_k": 0, "top_p": 1, "min_p": 0, "ignore_eos": True}
    expected = ask(client, "Code of Zafolo?", temperature=0, max_tokens=9, extra_body={"ignore_eos": True})
    found = ask(client, "Code of Zafolo?", seed=1, max_completion_tokens=9, extra_body=free | narrow)
    assert found.choices[0].message.content == expected.choices[0].message.content
    assert found.usage.completion_tokens == 9
    other = ask(client, "Code of Zafolo?", seed=1, max_completion_tokens=9, extra_body=free)
    assert other.choices[0].message.content != expected.choices[0].message.content


def test_penalties_keep_from_repeating(client: OpenAI) -> None:
    def tokens(**fields: Any) -> list[str]:
        options = {"ignore_eos": True, "temperature": 0, "max_tokens": 60} | fields
        answer = ask(client, "BORA?", logprobs=True, extra_body=options)
        return [entry.token for entry in answer.choices[0].logprobs.content]

    favoured = {"70": 40}
    assert len(set(tokens(logit_bias=favoured))) == 1
    assert len(set(tokens(logit_bias=favoured, frequency_penalty=2))) > 1
    said = tokens(repetition_penalty=100)
    assert len(set(said)) == len(said)


def test_null_is_what_is_left_out(client: OpenAI) -> None:
    names = "n stop stream logprobs top_logprobs presence_penalty frequency_penalty tools tool_choice user"
    names += " response_format stream_options max_completion_tokens temperature store metadata logit_bias"
    nothing = dict.fromkeys(names.split())
    answers = [ask(client, "BORA?", seed=1, max_tokens=4, extra_body=extra) for extra in (nothing, {})]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "maximum": 99}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 2])
def test_answers_hold_to_a_schema(client: OpenAI, temperature: float) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "scene", "schema": SCHEMA}}
    options: dict[str, Any] = {"response_format": response_format, "seed": 1, "temperature": temperature}
    answer = ask(client, "What is there?", n=2, **options)
    for choice in answer.choices:
        found = json.loads(choice.message.content)
        assert found.keys() == {"colour", "count"}
        assert found["colour"] in ("red", "blue")
        assert found["count"] <= 99
        assert choice.finish_reason == "stop"


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {field: {"$ref": "#/$defs/Size"}},
                "required": [field],
                "additionalProperties": False,
                "$defs": {"Size": {"enum": sizes}},
            },
        },
    }
    for name, field, sizes in (("zoom", "by", [1, 2, 3]), ("turn", "times", ["once", "twice"]))
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "turn"}}])
def test_forced_tools_are_called(client: OpenAI, choice: Any, stream: bool) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "seed": 3, "stream": stream}
    answer = ask(client, "Look closer.", **options)
    if stream:
        chunks = list(answer)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        reason = chunks[-1].choices[0].finish_reason
        assert [call.index for call in calls] == [0]
    else:
        calls, reason = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
        assert answer.choices[0].message.content is None
    assert reason == "tool_calls"
    (call,) = calls
    field, sizes = {"zoom": ("by", (1, 2, 3)), "turn": ("times", ("once", "twice"))}[call.function.name]
    assert choice == "required" or call.function.name == "turn"
    assert json.loads(call.function.arguments)[field] in sizes
    assert call.id.startswith("call_")


def test_results_of_tools_are_taken(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "zoom", "arguments": '{"by": 2}'}}
    messages: list[Any] = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    answer = client.chat.completions.create(model="micro", messages=messages, tools=TOOLS, max_tokens=5)
    assert answer.usage.completion_tokens >= 1


IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
STRING = {"type": "image_url", "image_url": "https://example.org/cat.png"}
OTHER = {"type": "image", "image": "https://example.org/cat.png"}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temprature": 1}, "temprature", "not permitted"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 600}, "max_tokens", "the context has 512"),
        ({"n": 100}, "n", "less than or equal to 8"),
        ({"repetition_penalty": 5e-324}, "repetition_penalty", "greater than or equal to 0.01"),
        ({"stop": [""]}, None, "a stop string is empty"),
        ({"tool_choice": "required"}, None, "tool_choice is given without tools"),
        ({"top_logprobs": 2}, None, "without logprobs"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user"}]}, "messages", "content is missing"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages", "Input should be"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages",
            "content.text: Input should be a valid str",
        ),
        (
            {"messages": [{"role": "user", "content": [STRING]}]},
            "messages",
            "image_url: Input should be an obj",
        ),
        (
            {"messages": [{"role": "user", "content": [OTHER]}]},
            "messages",
            "expected tags: 'text', 'image_url'",
        ),
        ({"messages": [{"role": "user", "content": "a <|image_pad|>"}]}, "messages", "stands for media"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "messages", "tokens, the context 512"),
        (
            {"messages": [{"role": "user", "content": "a" * 10**6}]},
            "messages",
            "1000000 characters, the context",
        ),
        ({"messages": [{"role": "user", "content": IMAGE}]}, "messages", "a picture cannot be read"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "x"}},
                }
            },
            "response_format",
            "cannot be used",
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "a"}}},
            None,
            "no such function",
        ),
        ({"logit_bias": {"512": 1}}, "logit_bias", "token 512 of 512"),
    ],
)
def test_what_is_wrong_is_said(client: OpenAI, body: dict[str, Any], param: str | None, message: str) -> None:
    messages = body.pop("messages", [{"role": "user", "content": "BORA?"}])
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="micro", messages=messages, extra_body=body)
    assert message in caught.value.message
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_other_models_routes_and_methods_are_not_here(client: OpenAI, arm: LiveArm) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "a"}])
    assert caught.value.code == "model_not_found"
    assert [model.id for model in client.models.list()] == ["micro"]
    assert client.models.retrieve("micro").id == "micro"
    with pytest.raises(openai.NotFoundError, match="this arm serves micro"):
        client.models.retrieve("gpt-9")
    for method, path, status in (("GET", "/v2", 404), ("GET", "/v1/chat/completions", 405)):
        found = httpx2.request(method, arm.url + path)
        assert found.status_code == status
        assert found.json()["error"]["type"]


def test_short_form(client: OpenAI, arm: LiveArm, artifact: Path) -> None:
    stream = io.BytesIO()
    picture(3).save(stream, "PNG")
    form = {"prompt": "How many?", "max_tokens": "24", "temperature": "0"}
    found = httpx2.post(f"{arm.url}/chat/vision", data=form, files={"image": ("a.png", stream.getvalue())})
    assert found.status_code == 200
    assert found.json()["choices"][0]["message"]["content"] == run(artifact, "How many?", [picture(3)])
    missing = httpx2.post(f"{arm.url}/chat/vision", data=form)
    assert (missing.status_code, missing.json()["error"]["message"][:28]) == (
        400,
        "expected multipart/form-data",
    )
    other = httpx2.post(f"{arm.url}/chat/vision", files={"picture": ("a.png", stream.getvalue())})
    assert (other.status_code, other.json()["error"]["param"]) == (400, "image")


def test_requests_have_ids_and_logs_no_content(arm: LiveArm) -> None:
    body = {"messages": [{"role": "user", "content": "Zebrafish secret"}], "max_tokens": 2}
    sent = httpx2.post(f"{arm.url}/v1/chat/completions", json=body, headers={"x-request-id": "mine-1"})
    assert sent.headers["x-request-id"] == "mine-1"
    odd = httpx2.get(f"{arm.url}/v1/models", headers={"x-request-id": "a b"})
    assert odd.headers["x-request-id"] not in ("", "a b")
    httpx2.get(f"{arm.url}/v1/models")
    lines = [json.loads(line) for line in list(arm.log) if line.startswith("{")]
    (line,) = [line for line in lines if line["request_id"] == "mine-1"]
    assert line["gen_ai.usage.output_tokens"] <= 2
    assert line["http.response.status_code"] == 200
    assert not any("Zebrafish" in line for line in arm.log)


def test_metrics_count(arm: LiveArm) -> None:
    names = (
        "arm_requests_total arm_ttft_seconds_count arm_itl_seconds_count arm_batch_size_count "
        "arm_waiting_sequences arm_cached_tokens_total arm_output_tokens_total process_resident_memory_bytes"
    )
    text = httpx2.get(f"{arm.url}/metrics").text
    found = {line.split("{")[0].split(" ")[0]: line.split(" ")[-1] for line in text.splitlines()}
    assert set(names.split()) <= found.keys()
    assert float(found["arm_output_tokens_total"]) > 0


def test_the_document_is_served(arm: LiveArm) -> None:
    document = httpx2.get(f"{arm.url}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    text = json.dumps(document)
    names = set(document["components"]["schemas"])
    assert {reference.split('"')[0] for reference in text.split("#/components/schemas/")[1:]} <= names
    assert {"/v1/chat/completions", "/chat/vision", "/health", "/ready"} <= document["paths"].keys()
