"""`python -m bench gpu`: everything but the GPU itself, whose place this machine's CPU takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from bench import gpu
from bench.__main__ import main
from bench.gpu import COLUMNS, cells, compare_on_gpu, device_speed
from bench.peers.measure import Arm, Results
from engines import device
from engines.device import Gpu
from engines.errors import UserError
from tests.int4_checkpoints import write_int4_pair

RTX = Gpu("NVIDIA GeForce RTX 4090 D", "sm89", 24 << 30, "580.65")


def test_arms_are_made_and_measured_beside_the_baseline(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "find_gpu", lambda: RTX)
    monkeypatch.setattr(gpu, "device_speed", lambda device: device_speed(device, 1 << 20, 64, 1))
    packed, _ = write_int4_pair(micro_checkpoint, tmp_path)
    told: list[str] = []
    found = compare_on_gpu(
        [micro_checkpoint, packed], folder=tmp_path / "work", rounds=1, tell=told.append, device="cpu"
    )
    names = [row.name for row in found.rows]
    assert names == ["transformers", "checkpoint, onnxruntime", "packed, onnxruntime"]
    assert found.rows[0].decode_ratio.median == 1.0
    dense, int4 = (found.results.visits[name][0].about["read_bytes"] for name in names[1:])
    assert int4 < dense
    for row in found.rows:
        line = cells(row, found.results)
        assert len(line) == len(COLUMNS)
        assert line[-4:] == ["-"] * 4  # nothing is asked of a GPU that only stands for one
    # Engines are compiled for the GPU, and refuse a machine that has none.
    for name in ("checkpoint, TensorRT", "packed, TensorRT"):
        assert "holds engines for sm89: this machine has no NVIDIA GPU" in found.results.problems[name]
    assert (tmp_path / "work" / "packed-standard-sm89" / "step.engine").is_file()
    written, _ = found.write(tmp_path / "results")
    page = written.read_text()
    assert page.startswith("# On one NVIDIA GeForce RTX 4090 D\n")
    assert page.count("not measured") == 2


def test_a_gpu_that_engines_cannot_be_built_for_says_so(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h100 = Gpu("NVIDIA H100", "sm90", 80 << 30, "580.65")
    monkeypatch.setattr(gpu, "find_gpu", lambda: h100)
    monkeypatch.setattr("engines.tensorrt.engines.find_gpu", lambda: h100)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    measured: list[str] = []

    def measure(arms: list[Arm], **_: Any) -> Results:
        measured.extend(arm.name for arm in arms)
        return Results({arm.name: [] for arm in arms}, {"transformers": "stop here"})

    monkeypatch.setattr(gpu, "measure", measure)
    told: list[str] = []
    with pytest.raises(UserError, match="transformers: stop here"):
        compare_on_gpu([micro_checkpoint], folder=tmp_path, rounds=1, tell=told.append)
    assert measured == ["transformers", "checkpoint, onnxruntime"]
    assert "checkpoint, TensorRT: TensorRT is not installed" in told[-1]
    assert not list(tmp_path.glob("*sm90*"))


def test_without_a_gpu_it_is_one_clear_line(
    micro_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "open_nvml", lambda: None)
    assert main(["gpu", str(micro_checkpoint)]) == 1
    assert capsys.readouterr().err == (
        "error: found no NVIDIA GPU, or no driver or nvidia-ml-py to see it; expected one\n"
    )
