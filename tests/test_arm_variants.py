"""Every kind of variant answers over HTTP what `python -m engines run` prints: text, pictures and videos."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import pytest
from PIL import Image

from engines.checkpoint import Checkpoint
from engines.export import export, export_standard
from engines.processor import Processor
from tests.conftest import ROOT
from tests.int4_checkpoints import write_int4_pair
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


def counted(arm: LiveArm, name: str) -> float:
    lines = httpx2.get(f"{arm.url}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


@pytest.mark.parametrize("kind", ["16 bits", "4 bits", "8-bit cache", "standard operators", "checkpoint"])
def test_greedy_answers_are_those_of_engines_run(
    kind: str, micro_checkpoint: Path, media: list[Path], tmp_path: Path
) -> None:
    out, checkpoint = tmp_path / "out", Checkpoint.open(micro_checkpoint)
    if kind == "checkpoint":
        out = micro_checkpoint
    elif kind == "standard operators":
        export_standard(checkpoint, out)
    elif kind == "4 bits":
        export(Checkpoint.open(write_int4_pair(micro_checkpoint, tmp_path)[0]), out)
    else:
        processor = Processor.load(micro_checkpoint)
        prompts = [processor([{"role": "user", "content": text}]) for text in ("BORA?", "Code of Zafolo?")]
        export(checkpoint, out, cache_prompts=prompts if kind == "8-bit cache" else [])
    command = [sys.executable, "-m", "engines", "run", str(out), "--prompt", "What is it?", "--json"]
    command += ["--max-tokens=24", "--threads=1", "--image", str(media[0]), "--video", str(media[1])]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    content = [*map(part, media[:2]), {"type": "text", "text": "What is it?"}]
    with live_arm(out, "--context=512") as arm:
        for _ in range(2):  # again, from what is remembered
            assert ask(arm, content)["content"] == json.loads(ran.stdout)["text"]
        assert counted(arm, "arm_media_total") == 4
        assert counted(arm, "arm_media_remembered_total") == (0 if kind == "checkpoint" else 2)


def test_thoughts_come_apart_from_the_answer(
    micro_checkpoint: Path, media: list[Path], tmp_path: Path
) -> None:
    """As of a Thinking checkpoint, whose template opens them."""
    out = tmp_path / "out"
    export(Checkpoint.open(micro_checkpoint), out)
    template = out / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\\n' }}", "assistant\\n<think>\\n' }}"))
    with live_arm(out, "--context=512") as arm:
        message = ask(arm, [part(media[2]), {"type": "text", "text": "What is it?"}], ignore_eos=True)
    assert message["content"] == ""
    assert message["reasoning_content"]
