"""`python -m engines`: what it prints, what it imports, how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from engines.__main__ import main
from tests.conftest import ROOT

HEAVY = ("torch", "transformers", "onnx", "scipy", "matplotlib")
RUNTIME = ("numpy", "onnxruntime", "tokenizers", "PIL", "av", "pydantic", "jinja2")


@pytest.fixture(scope="module")
def artifact(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "artifact"
    assert main(["export", str(micro_checkpoint), "-o", str(out)]) == 0
    return out


def imported(code: str, names: tuple[str, ...]) -> tuple[str, list[str]]:
    """What `code` prints in a fresh interpreter, and which modules of `names` it has imported then."""
    script = f"import sys\n{code}\nprint(*[name for name in {names} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    *lines, last = run.stdout.split("\n")[:-1]
    return "\n".join(lines), last.split()


def test_running_an_artifact_needs_no_torch(artifact: Path) -> None:
    arguments = ["run", str(artifact), "--prompt", "BORA?", "--max-tokens", "4", "--threads", "1", "--json"]
    printed, modules = imported(f"from engines.__main__ import main\nassert main({arguments}) == 0", HEAVY)
    assert modules == []
    assert len(json.loads(printed)["token_ids"]) <= 4


@pytest.mark.parametrize("command", [[], ["run"], ["export"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = f"from engines.__main__ import main\ntry: main({[*command, '--help']})\nexcept SystemExit: pass"
    printed, modules = imported(code, HEAVY + RUNTIME)
    assert modules == []
    assert printed.startswith("usage: python -m engines")


def write_media(directory: Path) -> tuple[Path, Path]:
    """An image file and a video file of one second."""
    image, video = directory / "image.png", directory / "video.mp4"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(image)
    with av.open(str(video), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade * 30, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return image, video


def test_json_tells_everything(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, video = write_media(tmp_path)
    command = ["run", str(artifact), "--prompt", "what?", "--max-tokens", "5", "--threads", "1"]
    media = ["--image", str(image), "--image", str(image), "--video", str(video)]
    assert main([*command, "--json"]) == 0
    without = json.loads(capsys.readouterr().out)
    assert main([*command, *media, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) >= {
        "text", "token_ids", "prompt_tokens", "output_tokens", "tokens_per_pass", "finish_reason",
        "ttft_ms", "itl_ms", "e2e_latency_ms", "peak_memory_bytes",
    }  # fmt: skip
    assert found["output_tokens"] == len(found["token_ids"]) <= 5
    assert found["prompt_tokens"] > without["prompt_tokens"] + 2 * 12  # 64 x 48 pixels are 4 x 3 tokens
    assert 0 < found["ttft_ms"] <= found["e2e_latency_ms"]
    assert isinstance(found["peak_memory_bytes"], int)
    assert found["peak_memory_bytes"] > 30e6

    assert main([*command, *media]) == 0
    assert capsys.readouterr().out == found["text"] + "\n"


def test_sampling_flags_reach_the_sampler(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*flags: str) -> str:
        arguments = ["run", str(artifact), "--prompt", "BORA?", "--max-tokens", "8", "--threads", "1", *flags]
        assert main(arguments) == 0
        return capsys.readouterr().out

    greedy = run()
    hot = ["--temperature", "9"]
    assert len({run(*hot, "--seed", str(seed)) for seed in range(3)}) > 1
    assert run(*hot, "--seed", "1") == run(*hot, "--seed", "1")
    assert run(*hot, "--top-k", "1") == greedy
    assert run(*hot, "--top-p", "0.000001") == greedy


def test_failures_are_one_line_and_exit_1(
    artifact: Path, micro_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    assert main(["export", str(micro_checkpoint), "-o", str(broken)]) == 0
    assert capsys.readouterr().out == f"{broken}: 4.36 MB, ONNX graphs and what they need to run\n"
    (broken / "decoder.onnx").write_bytes(b"not a graph")
    (tmp_path / "file").write_text("in the way")
    prompt = ["--prompt", "a"]
    for command, message in [
        (["run", str(tmp_path / "nowhere"), *prompt], "nowhere is not a folder"),
        (["run", str(broken), *prompt], "decoder.onnx cannot be loaded, export the checkpoint again"),
        (["run", str(artifact), *prompt, "--image", str(tmp_path / "none.png")], "none.png"),
        (["run", str(artifact), *prompt, "--temperature", "-1"], "temperature is -1.0: expected at least 0"),
        (["run", str(artifact), *prompt, "--max-tokens", "0"], "max_tokens is 0: expected at least 1"),
        (["export", str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")], "nowhere is not a folder"),
        (["export", str(micro_checkpoint), "-o", str(artifact)], "exists and is not an empty folder"),
        (["export", str(micro_checkpoint), "-o", str(tmp_path / "file" / "out")], "Not a directory"),
    ]:
        assert main(command) == 1
        output = capsys.readouterr()
        assert output.err.startswith("error: ")
        assert output.err.count("\n") == 1
        assert message in output.err
        assert output.out == ""


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["run", "x"], ["export", "x"], ["run", "x", "--prompt", "a", "--nonsense"], ["fly"]],
)
def test_usage_errors_exit_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    assert "usage: python -m engines" in capsys.readouterr().err
