"""An arm's life: what it refuses to start with, when it is ready, who is turned away, and how it ends."""

from __future__ import annotations

import base64
import io
import json
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from engines.artifact import Manifest
from engines.self_test import FILE, Reference
from serve.__main__ import main
from serve.arm import model
from serve.arm.arm import SEEING
from tests.live_arm import LiveArm, built, live_arm

NEVER_END = {"ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def artifact(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(micro_checkpoint, tmp_path_factory.mktemp("built") / "a-model" / "a-variant")


@pytest.fixture(scope="module")
def arm(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveArm]:
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text("sesame\n")
    with live_arm(artifact, "--slots=1", "--queue=1", f"--api-key-file={key}") as running:
        yield running


def chat(arm: LiveArm, *, key: str = "sesame", timeout: float = 30, **fields: Any) -> httpx2.Response:
    body = {"messages": [{"role": "user", "content": "BORA?"}], "max_tokens": 4} | fields
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(f"{arm.url}/v1/chat/completions", json=body, headers=headers, timeout=timeout)


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def test_start_up_says_what_it_does(arm: LiveArm, artifact: Path) -> None:
    assert arm.log[0].startswith(f"loading {artifact} on the CPU, at most ")
    assert "keys and values (1 slots of 4096 tokens)" in arm.log[0]
    reference = Reference.read(artifact)
    assert reference
    assert arm.log[1] == f"self-test passed: {reference.tokens} tokens of digest {reference.digest[:19]}"
    assert reference.tokens > 0
    assert arm.log[2].startswith("ready: a-model at http://127.0.0.1:")
    assert httpx2.get(f"{arm.url}/health").json() == {"status": "ok"}
    assert httpx2.get(f"{arm.url}/ready").status_code == 200


def test_only_who_has_the_key_comes_in(arm: LiveArm, artifact: Path) -> None:
    for key in ("wrong", "sesam", "sesame2"):
        refused = chat(arm, key=key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx2.get(f"{arm.url}/v1/models").status_code == 401
    assert chat(arm).status_code == 200
    card = httpx2.get(f"{arm.url}/v1/models", headers={"authorization": "Bearer sesame"}).json()["data"][0]
    assert (card["id"], card["variant"]) == ("a-model", "a-variant")
    assert card["digest"] == Manifest.read(artifact).digest


def test_memory_is_within_the_forecast(arm: LiveArm) -> None:
    chat(arm, max_tokens=200, **NEVER_END)
    number, unit = arm.log[0].split("at most ")[1].split(":")[0].split()
    forecast = float(number) * {"MB": 1e6, "GB": 1e9}[unit]
    assert 0.4 * forecast < arm.metric("process_resident_memory_bytes") < forecast


def test_a_full_queue_turns_away(arm: LiveArm) -> None:
    body = {"messages": [{"role": "user", "content": "BORA?"}], "max_tokens": 4000, "stream": True}
    headers = {"authorization": "Bearer sesame"}
    with ExitStack() as held:
        for _ in range(2):
            url = f"{arm.url}/v1/chat/completions"
            held.enter_context(httpx2.stream("POST", url, json=body | NEVER_END, headers=headers, timeout=30))
        refused = chat(arm)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    eventually(lambda: chat(arm).status_code == 200)


def test_another_client_gets_into_a_full_queue(arm: LiveArm) -> None:
    body = {"messages": [{"role": "user", "content": "BORA?"}], "max_tokens": 4000, "stream": True}
    headers, url = {"authorization": "Bearer sesame"}, f"{arm.url}/v1/chat/completions"
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(httpx2.stream("POST", url, json=body | NEVER_END, headers=headers, timeout=30))
        for name in ("user", "safety_identifier"):
            other = body | NEVER_END | {name: "bob"}
            with httpx2.stream("POST", url, json=other, headers=headers, timeout=30) as entered:
                assert entered.status_code == 200
                assert chat(arm, user="bob").status_code == 429  # his second
                assert chat(arm, user="eve").status_code == 429  # twice as many, and no more
            eventually(lambda: arm.metric("arm_waiting_sequences") == 1)
    eventually(lambda: chat(arm).status_code == 200)


def test_what_can_never_fit_is_not_to_be_tried_again(arm: LiveArm) -> None:
    refused = chat(arm, n=3)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
    assert "at most 2" in refused.json()["error"]["message"]


def test_pictures_are_not_seen_long_before_their_turn(artifact: Path) -> None:
    """Pixels and features of all who wait would fill the memory."""
    body = {"messages": [{"role": "user", "content": "BORA?"}], "max_tokens": 4000, "stream": True}
    with live_arm(artifact, "--slots=1") as arm, ExitStack() as held:
        url = f"{arm.url}/v1/chat/completions"
        first = held.enter_context(httpx2.stream("POST", url, json=body | NEVER_END, timeout=30))
        lines = first.iter_lines()
        next(lines)
        with ThreadPoolExecutor(9) as pool:
            asked = [pool.submit(chat, arm, messages=[show(shade)]) for shade in range(9)]
            eventually(lambda: arm.metric("arm_waiting_sequences") == 9)
            eventually(lambda: arm.metric("arm_vision_seconds_count") == SEEING)
            assert chat(arm, messages=[{"role": "user", "content": "?"}], n=9).status_code == 400
            assert arm.metric("arm_vision_seconds_count") == SEEING
            held.close()  # the slot is free
            assert [answer.result().status_code for answer in asked] == [200] * 9
        assert arm.metric("arm_vision_seconds_count") == 9


def show(shade: int) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (shade, 0, 0)).save(stream, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_frees_the_slot(arm: LiveArm, stream: bool) -> None:
    host, port = arm.url.removeprefix("http://").split(":")
    body = {"messages": [{"role": "user", "content": "BORA?"}], "stream": stream, "max_tokens": 4000}
    data = json.dumps(body | NEVER_END).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sesame\r\n"
    head += f"content-length: {len(data)}"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + data)
        eventually(lambda: arm.metric("arm_running_sequences") == 1)
    left = time.monotonic()
    eventually(lambda: arm.metric("arm_running_sequences") == 0)
    assert time.monotonic() - left < 2  # 4,000 tokens would take longer


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_an_answer(artifact: Path, stream: bool) -> None:
    with live_arm(artifact, "--timeout=1") as arm:
        answer = chat(arm, max_tokens=4000, stream=stream, **NEVER_END)
    if stream:
        *_, last, done, _ = answer.text.split("\n\n")
        assert json.loads(last[6:])["error"]["type"] == "timeout_error"
        assert done == "data: [DONE]"
    else:
        assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout_error")


def test_sigterm_lets_streams_finish(artifact: Path) -> None:
    with live_arm(artifact, MODEL_NAME="other", PORT="1", MAX_FILE_SIZE="1000") as arm:
        assert "ready: other at" in arm.log[-1]  # --port wins over $PORT
        large = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 2000}"}}
        refused = chat(arm, messages=[{"role": "user", "content": [large]}])
        assert "at most 1000" in refused.json()["error"]["message"]
        body = {"messages": [{"role": "user", "content": "BORA?"}], "max_tokens": 1500, "stream": True}
        with httpx2.stream(
            "POST", f"{arm.url}/v1/chat/completions", json=body | NEVER_END, timeout=30
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            arm.process.send_signal(signal.SIGTERM)
            eventually(lambda: httpx2.get(f"{arm.url}/ready").status_code == 503)
            turned_away = chat(arm)
            assert turned_away.status_code == 503
            assert "draining" in turned_away.json()["error"]["message"]
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        assert arm.process.wait(timeout=10) == 0


def test_killing_one_arm_leaves_another(artifact: Path, arm: LiveArm) -> None:
    with live_arm(artifact) as other:
        other.process.kill()
        assert chat(arm).status_code == 200


def fails(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main(["arm", *command, "--port=0"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_what_cannot_be_served_is_one_line(
    artifact: Path,
    micro_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "config.json" in fails(capsys, str(tmp_path))
    monkeypatch.setitem(sys.modules, "engines.reference", None)
    assert "not installed: serve an ONNX variant" in fails(capsys, str(micro_checkpoint))
    assert "device cuda: expected cpu; engines" in fails(capsys, str(artifact), "--device=cuda")
    assert "dtype float16" in fails(capsys, str(artifact), "--dtype=float16")
    assert "context of 5000 tokens: expected 256 to 4096" in fails(capsys, str(artifact), "--context=5000")
    for name, value in (("DEVICE", "cuda"), ("DTYPE", "float16"), ("MAX_FILE_SIZE", "0")):
        monkeypatch.setenv(name, value)
        said = fails(capsys, str(artifact))
        assert name.lower().replace("_", "-") in said
        assert f"{value}: " in said
        monkeypatch.delenv(name)
    assert "--slots is 0" in fails(capsys, str(artifact), "--slots=0")
    assert "cannot be read" in fails(capsys, str(artifact), f"--api-key-file={tmp_path / 'none'}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))
        assert main(["arm", str(artifact)]) == 1
        assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "config.json"])
def test_a_file_of_another_checkpoint_is_refused(
    artifact: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(artifact, changed)
    (changed / name).write_text((changed / name).read_text().replace("assistant", "assistent") + "\n")
    assert f"{name} is not the file these weights were built with" in fails(capsys, str(changed))


@pytest.mark.parametrize("damaged", ["template", "weights"])
def test_an_artifact_that_answers_otherwise_is_not_served(
    artifact: Path, tmp_path: Path, damaged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an export that no manifest describes."""
    changed = tmp_path / "changed"
    shutil.copytree(artifact, changed)
    (changed / "manifest.json").unlink()
    if damaged == "template":
        template = changed / "chat_template.jinja"
        template.write_text(template.read_text().replace("assistant", "assistent"))
    else:
        data = bytearray((changed / "embedding.bin").read_bytes())
        data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
        (changed / "embedding.bin").write_bytes(data)
    assert "the self-test failed: an answer of digest sha256:" in fails(capsys, str(changed))
    (changed / FILE).write_text("{}")
    assert "holds no prompt, tokens and digest" in fails(capsys, str(changed))


def test_too_little_memory_names_what_fits(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model, "available_memory", lambda: 190_000_000)
    said = fails(capsys, str(artifact), "--context=4096")
    assert "190 MB are available: --context " in said
    fitting = int(said.split("--context ")[1].split()[0])
    assert 256 <= fitting < 4096
    monkeypatch.setattr(model, "available_memory", lambda: 100_000_000)
    assert "use fewer --slots or a smaller variant" in fails(capsys, str(artifact))
    shutil.copytree(artifact, tmp_path / "large")
    with (tmp_path / "large" / "decoder.onnx.data").open("r+b") as file:
        file.truncate(10**9)
    shutil.copytree(artifact, tmp_path / "small")
    monkeypatch.setattr(model, "available_memory", lambda: 10**9)
    said = fails(capsys, str(tmp_path / "large"))
    assert said.endswith("smaller variant; small, beside it, fits as it is")
