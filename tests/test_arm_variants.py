"""Every kind of variant answers over HTTP what `python -m engines run` prints: text, pictures and videos."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import pytest
from PIL import Image

from build.recipe import KINDS
from engines.__main__ import main as run
from engines.checkpoint import Checkpoint
from engines.export import export, export_standard
from engines.processor import Processor
from quantize.calibration import prepare, read_samples
from quantize.pipeline import quantize_checkpoint
from tests.conftest import ROOT
from tests.live_arm import LiveArm, live_arm


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A picture, a video, another picture."""
    folder, random = tmp_path_factory.mktemp("media"), np.random.default_rng(7)
    for name in ("a.png", "b.png"):
        Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / name)
    with av.open(str(folder / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(8):
            frame = av.VideoFrame.from_ndarray(random.integers(0, 256, (48, 64, 3), np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return [folder / name for name in ("a.png", "v.mp4", "b.png")]


def part(path: Path) -> dict[str, Any]:
    kind, mime = ("video_url", "video/mp4") if path.suffix == ".mp4" else ("image_url", "image/png")
    return {"type": kind, kind: {"url": f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"}}


def ask(arm: LiveArm, content: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 24} | fields
    found = httpx2.post(f"{arm.url}/v1/chat/completions", json=body, timeout=60)
    assert found.status_code == 200, found.text
    message: dict[str, Any] = found.json()["choices"][0]["message"]
    return message


@pytest.fixture(scope="module")
def variant(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a variant that a CPU runs, made as by a build but for its calibration."""
    folder = tmp_path_factory.mktemp("variants")
    calibration = ROOT / "tests" / "data" / "calibration.jsonl"

    @cache
    def made(name: str) -> Path:
        kind, out = KINDS[name], folder / name
        if kind.made_from is None:
            return micro_checkpoint
        base = made(kind.made_from)
        if not kind.onnx:
            work, method = folder / f"{name}.work", kind.method or ""
            quantize_checkpoint(
                base, out, method=method, group_size=32, calibration=calibration, work_dir=work
            )
            return out
        samples = read_samples(calibration) if kind.int8_cache else []
        export(Checkpoint.open(base), out, cache_prompts=prepare(samples, Processor.load(base)))
        return out

    return made


# Of the checkpoints, which transformers runs, one stands for all.
@pytest.mark.parametrize("name", ["fp16", *(name for name, kind in KINDS.items() if kind.onnx), "standard"])
def test_greedy_answers_are_those_of_engines_run(
    name: str,
    variant: Callable[[str], Path],
    media: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == "standard":  # ONNX's own operators, for other runtimes
        out = tmp_path / "out"
        export_standard(Checkpoint.open(variant("fp16")), out)
    else:
        out = variant(name)
    questions = {
        "What is it?": [media[0], media[1]],
        "Code of Zafolo?": [],
        "How many?": [media[0], media[2]],
    }
    if name == "fp16":
        del questions["How many?"]
    with live_arm(out, "--context=512") as arm:
        for question, shown in questions.items():
            command = ["run", str(out), "--prompt", question, "--json", "--max-tokens=24", "--threads=1"]
            for path in shown:
                command += ["--video" if path.suffix == ".mp4" else "--image", str(path)]
            assert run(command) == 0
            expected = json.loads(capsys.readouterr().out)
            content = [*map(part, shown), {"type": "text", "text": question}]
            for _ in range(2):  # again, from what is remembered
                assert ask(arm, content)["content"] == expected["text"]
        remembered = arm.metric("arm_media_remembered_total")
        assert remembered == (0 if name == "fp16" else 5)


def test_thoughts_come_apart_from_the_answer(
    micro_checkpoint: Path, media: list[Path], tmp_path: Path
) -> None:
    """As of a Thinking checkpoint, whose template opens them."""
    out = tmp_path / "out"
    export(Checkpoint.open(micro_checkpoint), out)
    shutil.copyfile(ROOT / "tests" / "data" / "thinking_chat_template.jinja", out / "chat_template.jinja")
    content = [part(media[2]), {"type": "text", "text": "What is it?"}]
    with live_arm(out, "--context=512") as arm:
        message = ask(arm, content, ignore_eos=True)
        body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 24}
        body |= {"ignore_eos": True, "stream": True}
        lines = httpx2.post(f"{arm.url}/v1/chat/completions", json=body, timeout=60).text.splitlines()
        said = [{"role": "user", "content": "What is it?"}, message, {"role": "user", "content": "Sure?"}]
        assert ask(arm, content, messages=said)["reasoning"]  # sent back as it came
    assert message["content"] == ""
    assert message["reasoning"] == message["reasoning_content"] != ""
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    for name in ("reasoning", "reasoning_content"):  # what vLLM calls it, and what it and others called it
        assert "".join(delta.get(name, "") for delta in deltas) == message[name]
    assert not any(delta.get("content") for delta in deltas)
