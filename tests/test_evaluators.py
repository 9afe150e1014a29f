"""Public evaluators ask an arm, and it answers as the model does.

Neither is installed here: they bring hundreds of megabytes, and one a torchvision of its own. Sent are the
requests that their sources make: lmms-eval 0.7.3 (models/chat/openai.py, build_payload_for_index, by
OpenAI's own client) and VLMEvalKit at e8e78f0 (vlmeval/api/openai_sdk.py and lmdeploy.py, which run.py
--base-url uses). docs/suites.md tells how to run them.
"""

from __future__ import annotations

import base64
import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from PIL import Image

from bench.suites.catalogue import load_suite
from bench.tasks import Item
from engines.checkpoint import Checkpoint
from engines.export import export
from tests.conftest import ROOT
from tests.live_arm import LiveArm, live_arm
from tests.test_arm_api import run

MODEL = "qwen3-vl-micro"
TASKS = ("count", "image_color", "atlas")  # one picture, several, none


def parts(item: Item) -> tuple[str, list[Image.Image]]:
    content = item.messages[0]["content"]
    listed = [{"type": "text", "text": content}] if isinstance(content, str) else content
    pictures = [part["image"] for part in listed if part["type"] == "image"]
    return "".join(part.get("text", "") for part in listed), pictures


def encoded(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def items() -> dict[str, Item]:
    return {item.task: item for item in load_suite("micro", 200, 0) if item.task in TASKS}


@pytest.fixture(scope="module")
def artifact(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluators") / "onnx"
    export(Checkpoint.open(micro_checkpoint), out)
    return out


@pytest.fixture(scope="module")
def arm(artifact: Path) -> Iterator[LiveArm]:
    with live_arm(artifact, "--context=1024", f"--model-name={MODEL}") as running:
        yield running


@pytest.mark.parametrize("task", TASKS)
def test_lmms_eval(arm: LiveArm, artifact: Path, items: dict[str, Item], task: str) -> None:
    """Pictures as PNG, text last, through OpenAI's client; it reads the content and the usage."""
    question, pictures = parts(items[task])
    content: Any = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(picture, 'PNG')}"}}
        for picture in pictures
    ]
    content.append({"type": "text", "text": question})
    payload: Any = {"messages": [{"role": "user", "content": content}], "model": MODEL}
    payload |= {"max_tokens": 16, "temperature": 0}
    with OpenAI(api_key="none", base_url=f"{arm.url}/v1") as client:
        response = client.chat.completions.create(**payload)
    assert response.choices[0].message.content == run(artifact, question, pictures, 16)
    assert response.usage is not None
    assert response.usage.prompt_tokens > 5
    assert response.usage.completion_tokens > 0


def vlmevalkit(arm: LiveArm, content: list[dict[str, Any]], max_tokens: int) -> tuple[int, Any]:
    """Status and body of `OpenAISDKWrapper.generate_inner`."""
    payload = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "n": 1,
        "max_tokens": max_tokens,
        "temperature": 0.0,
    }
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    url, data = f"{arm.url}/v1/chat/completions", json.dumps(payload).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)


@pytest.mark.parametrize("task", TASKS)
def test_vlmevalkit(arm: LiveArm, artifact: Path, items: dict[str, Item], task: str) -> None:
    """Pictures as JPEG, enlarged to a shorter side of 100; text alone is a list of one part."""
    question, pictures = parts(items[task])
    content: list[dict[str, Any]] = []
    shown = []
    for picture in pictures:
        factor = 100 / min(picture.size)
        larger = picture.resize((int(picture.width * factor), int(picture.height * factor)))
        data = encoded(larger, "JPEG")
        content.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
        shown.append(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    status, body = vlmevalkit(arm, [*content, {"type": "text", "text": question}], 16)
    assert status == 200
    assert body["choices"][0]["message"]["content"].strip() == run(artifact, question, shown, 16).strip()


def test_vlmevalkit_must_be_told_how_long_answers_may_be(arm: LiveArm) -> None:
    """Its own default is more than most arms hold, which say so; it would keep that as an answer."""
    status, body = vlmevalkit(arm, [{"type": "text", "text": "Code of Zafolo?"}], 2**15)
    assert status == 400
    assert "max_tokens is 32768" in body["error"]["message"]


def test_the_documented_commands_name_what_the_sources_take() -> None:
    told = (ROOT / "docs" / "suites.md").read_text().split("## Public evaluators", 1)[1].split("\n## ", 1)[0]
    lmms, kit = re.findall(r"```sh\n(.*?)```", told, re.DOTALL)
    assert "--model openai --model_args" in lmms
    arguments = lmms.split("--model_args ", 1)[1].split()[0]
    named = dict(one.split("=", 1) for one in arguments.split(","))
    assert named["model"] == MODEL
    assert named["base_url"].endswith("/v1")
    assert {"api_key", "num_concurrent"} <= named.keys()
    assert re.search(r"run\.py .*--base-url \S+/v1 .*--max-tokens \d+", kit.replace("\\\n", ""))
