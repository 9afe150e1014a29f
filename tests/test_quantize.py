"""A checkpoint quantised end to end: what it loses, what stays untouched, and how a killed run goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from bench.micro.tasks import generate
from bench.tasks import write_items
from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.int4 import Int4
from engines.processor import Inputs, Processor
from engines.reference import ReferenceSession
from quantize.__main__ import main, plain_lines
from quantize.calibration import prepare, read_samples
from quantize.capture import capture
from quantize.layers import LINEARS, Decoder, Group, Statistics, load_layer
from quantize.methods import Quantized
from quantize.pipeline import METHODS, quantize_checkpoint
from tests.checkpoints import write_checkpoint
from tests.conftest import ROOT


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "set.jsonl"
    write_items(path, generate("calibration", 96, seed=0))
    return path


@pytest.fixture(scope="module")
def quantized(
    micro_checkpoint: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The micro checkpoint by each method, in groups of 128."""
    folder = tmp_path_factory.mktemp("quantized")
    for method in METHODS:
        run(micro_checkpoint, folder / method, calibration, method=method)
    return {method: folder / method for method in METHODS}


def run(checkpoint: Path, out: Path, calibration: Path, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"method": "gptq", "group_size": 128, "work_dir": out.with_suffix(".work")}
    return quantize_checkpoint(checkpoint, out, calibration=calibration, **settings | options)


def summary(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "quantization.json").read_text())
    return document


def log_probabilities(folder: Path, prompts: list[Inputs], keep: list[int]) -> torch.Tensor:
    """Of the next token at the last `keep` positions of every prompt."""
    capacity = max(len(prompt.input_ids) for prompt in prompts)
    session = ReferenceSession(folder, dtype="float32")
    logits, _ = session.prefill(prompts, capacity=capacity, keep=max(keep))
    kept = np.concatenate([row[-count:] for row, count in zip(logits, keep, strict=True)])
    return torch.from_numpy(kept).double().log_softmax(-1)


def test_gptq_and_awq_lose_less_than_rounding(quantized: dict[str, Path]) -> None:
    gptq, awq, rtn = (summary(quantized[method]) for method in ("gptq", "awq", "rtn"))
    assert rtn["error"] == rtn["rtn_error"]
    assert max(gptq["error"], awq["error"]) < 0.65 * rtn["error"]
    for layer in gptq["layers"]:
        assert list(layer) == list(LINEARS)
        assert all(linear["error"] < linear["rtn_error"] for linear in layer.values())


def test_distributions_on_unseen_items_stay_closer_than_with_rounding(
    micro_checkpoint: Path, quantized: dict[str, Path]
) -> None:
    processor, prompts, keep = Processor.load(micro_checkpoint), [], []
    for item in generate("test", 120, seed=5):
        answer = processor.tokenizer.encode(item.answer, add_special_tokens=False).ids
        prompts.append(processor(item.messages).extend(answer))
        keep.append(len(answer) + 1)
    baseline = log_probabilities(micro_checkpoint, prompts, keep)
    divergence = {}
    for method, path in quantized.items():
        found = log_probabilities(path, prompts, keep)
        divergence[method] = float((baseline.exp() * (baseline - found)).sum(-1).mean())
    assert 0 < max(divergence["gptq"], divergence["awq"]) < 0.75 * divergence["rtn"]


@pytest.mark.parametrize("method", METHODS)
def test_only_the_decoders_linears_change(
    micro_checkpoint: Path, quantized: dict[str, Path], method: str
) -> None:
    source, result = Checkpoint.open(micro_checkpoint), Checkpoint.open(quantized[method])
    for name in source.names():
        prefix = name.removesuffix(".weight")
        weight = result.weight(prefix) if name == f"{prefix}.weight" else result.tensor(name)
        if prefix.endswith(LINEARS):
            assert isinstance(weight, Int4), name
            assert weight.group_size == 128
        else:
            assert not isinstance(weight, Int4), name
            assert weight.dtype == source.tensor(name).dtype
            # AWQ's scales went into the norms before the linears.
            if method != "awq" or not name.endswith("layernorm.weight"):
                assert np.array_equal(weight, source.tensor(name)), name


def test_receipt_and_side_files(
    micro_checkpoint: Path, quantized: dict[str, Path], calibration: Path
) -> None:
    files = contents(quantized["gptq"])
    receipt = json.loads(files["calibration.json"])
    items = read_samples(calibration)
    assert receipt["items"] == [item.id for item in items]
    assert receipt["samples"] == len(items)
    assert receipt["images"] > 0 < receipt["videos"]
    assert summary(quantized["gptq"])["calibration"]["sha256"] == receipt["sha256"]
    for name in (
        "tokenizer.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "generation_config.json",
    ):
        assert files[name] == (micro_checkpoint / name).read_bytes()


def test_awqs_folding_leaves_the_layers_function_alone(
    calibration: Path, micro_checkpoint: Path, tmp_path: Path
) -> None:
    """The folded tensors compute what the original norms do with the scales taken out of the weights."""
    folder = write_checkpoint(tmp_path / "mha", micro_checkpoint, kv_heads=4, dtype=torch.float16)
    checkpoint = Checkpoint.open(folder)
    samples = read_samples(calibration)[:8]
    activations = capture(checkpoint, prepare(samples, Processor.load(folder)))
    decoder, tensors = Decoder(checkpoint), load_layer(checkpoint, 0)
    result, unfolded = Quantized(tensors, "awq", 32, 0.01), dict(tensors)

    def replace(group: Group, found: Statistics) -> dict[str, torch.Tensor]:
        weights = result.replace(group, found)
        unfolded.update(weights)
        return weights

    expected = decoder.run(tensors, activations, replace)
    assert set(result.changed) == {"input_layernorm.weight", "post_attention_layernorm.weight"}
    stored = tensors | result.changed
    for name in LINEARS:
        stored[f"{name}.weight"] = torch.from_numpy(result.linears[name].dequantize())
    # Query heads and value heads pair up here, so o_proj's scales went into v_proj.
    assert not torch.allclose(stored["self_attn.o_proj.weight"], unfolded["self_attn.o_proj.weight"])
    torch.testing.assert_close(decoder.run(stored, activations), expected, rtol=1e-2, atol=1e-2)


class StopError(Exception):
    """Stands for whatever ends a run in the middle."""


@pytest.mark.parametrize(
    ("method", "moment"),
    [
        ("rtn", ("calibrate", 3)),
        ("rtn", ("quantize", 0)),
        ("awq", ("quantize", 3)),
        ("rtn", ("write", 0)),
        ("rtn", ("write", 1)),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bytes(
    micro_checkpoint: Path,
    quantized: dict[str, Path],
    calibration: Path,
    tmp_path: Path,
    method: str,
    moment: tuple[str, int],
) -> None:
    steps: list[tuple[str, int]] = []

    def stop(step: str, done: int, total: int) -> None:
        if (step, done) == moment:
            raise StopError

    with pytest.raises(StopError):
        run(micro_checkpoint, tmp_path / "out", calibration, method=method, progress=stop)
    shutil.rmtree(tmp_path / "out", ignore_errors=moment != ("write", 1))
    run(
        micro_checkpoint,
        tmp_path / "out",
        calibration,
        method=method,
        progress=lambda step, done, total: steps.append((step, done)),
    )
    assert contents(tmp_path / "out") == contents(quantized[method])
    if moment != ("calibrate", 3):  # finished layers are not done again
        assert steps[0] == ("quantize", moment[1] if moment[0] == "quantize" else 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.work"]
    assert [path.name for path in (tmp_path / "out.work").iterdir() if path.is_dir()] == []


def test_kill_9_then_again(
    micro_checkpoint: Path, quantized: dict[str, Path], calibration: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "quantize", str(micro_checkpoint), "-o", str(tmp_path / "out")]
    command += ["--method", "gptq", "--calibration", str(calibration), "--json"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("quantize 2/4"):
                os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not any(line.startswith("quantize 1/4") for line in again.stderr.splitlines())
    assert "quantize 4/4" in again.stderr.splitlines()
    assert contents(tmp_path / "out") == contents(quantized["gptq"])
    result = json.loads(again.stdout.splitlines()[-1])
    assert result == {"path": str(tmp_path / "out"), **summary(quantized["gptq"])}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_time_remaining_goes_by_the_pace_of_recent_layers(capsys: pytest.CaptureFixture[str]) -> None:
    # Ten layers of 100 s, before them three samples of 1 s; the last six layers take 30 s each.
    times = [0, 1, 2, 3, *range(3, 1004, 100), *range(1033, 1184, 30)]
    clock = iter(times)
    report = plain_lines(lambda: float(next(clock)))
    for done in range(4):
        report("calibrate", done, 3)
    for done in range(17):
        report("quantize", done, 20)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "calibrate 1/3, about 2 s to go"
    assert lines[1] == "calibrate 3/3"
    assert lines[2] == "quantize 1/20, about 32 min to go"
    assert lines[-1] == "quantize 16/20, about 2 min to go"
    assert len(lines) == 2 + 16


def test_unfinished_work_of_other_settings_is_left_alone(
    micro_checkpoint: Path, quantized: dict[str, Path], calibration: Path, tmp_path: Path
) -> None:
    def stop(step: str, done: int, total: int) -> None:
        if (step, done) == ("quantize", 2):
            raise StopError

    with pytest.raises(StopError):
        run(micro_checkpoint, tmp_path / "out", calibration, method="rtn", group_size=32, progress=stop)
    run(micro_checkpoint, tmp_path / "out", calibration, method="rtn")
    assert contents(tmp_path / "out") == contents(quantized["rtn"])


@pytest.mark.parametrize("method", METHODS)
def test_another_shape_and_type(
    micro_checkpoint: Path, calibration: Path, tmp_path: Path, method: str
) -> None:
    source = write_checkpoint(
        tmp_path / "source", micro_checkpoint, kv_heads=4, tied=False, shards=2, dtype=torch.bfloat16
    )
    result = run(source, tmp_path / "out", calibration, method=method, group_size=32)
    assert result["error"] <= result["rtn_error"]
    session = ReferenceSession(tmp_path / "out", dtype="bfloat16")
    assert np.isfinite(
        session.prefill([Processor.load(source)([{"role": "user", "content": "Hi"}])], capacity=64)[0]
    ).all()
    dense = Checkpoint.open(tmp_path / "out").tensor("lm_head.weight")
    assert (dense == Checkpoint.open(source).tensor("lm_head.weight")).all()


def test_a_group_size_that_does_not_divide_names_the_layer(
    micro_checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "source", micro_checkpoint, hidden_size=64, intermediate_size=160)
    message = (
        "q_proj has 64 input columns, which do not divide into groups of 128: group sizes that fit: 32, 64"
    )
    with pytest.raises(UserError, match=message):
        run(source, tmp_path / "out", calibration)
    with pytest.raises(UserError, match=r"mlp.down_proj has 160 input columns.*groups of 64.*fit: 32$"):
        run(source, tmp_path / "out", calibration, group_size=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "GPTQ"}, "found 'GPTQ': expected one of rtn, gptq, awq"),
        ({"group_size": 16}, "found 16: expected one of 32, 64, 128"),
        ({"format": "gguf"}, "found 'gguf': expected one of compressed-tensors, gptq, awq"),
        ({"calibration": Path("none.jsonl")}, "cannot read the calibration set none.jsonl"),
    ],
)
def test_wrong_options_are_refused(
    micro_checkpoint: Path, calibration: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(micro_checkpoint, tmp_path / "out", **{"calibration": calibration} | options)
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_refused_and_kept(
    micro_checkpoint: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="already exists: choose another output, or remove it first"):
        run(micro_checkpoint, tmp_path, calibration)
    assert main([str(micro_checkpoint), "-o", str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path} already exists: choose another output, or remove it first\n"
    )
    assert (tmp_path / "file").read_text() == "precious"


def test_a_quantised_checkpoint_is_refused(
    quantized: dict[str, Path], calibration: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is quantised already: start from the 16-bit checkpoint"):
        run(quantized["rtn"], tmp_path / "out", calibration)


def test_two_runs_in_one_work_folder(micro_checkpoint: Path, calibration: Path, tmp_path: Path) -> None:
    (tmp_path / "out.work").mkdir()
    with FileLock(tmp_path / "out.work" / "lock"), pytest.raises(UserError, match="another run is using"):
        run(micro_checkpoint, tmp_path / "out", calibration)


@pytest.mark.parametrize(
    "arguments",
    [
        ["CHECKPOINT"],
        ["CHECKPOINT", "-o", "x", "--method", "best"],
        ["CHECKPOINT", "-o", "x", "--group-size", "100"],
    ],
)
def test_usage_errors(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2


def test_a_missing_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from quantize.__main__ import parser; parser(); assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
