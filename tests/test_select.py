"""Which published variant runs on a device: measured figures decide, and every refusal has its reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.__main__ import main
from build.select import devices
from build.select.devices import KNOWN, Device
from engines.device import Gpu
from engines.errors import UserError
from engines.memory import available_memory
from serve.router.reading import read_policy
from serve.selected import select_policy
from serve.up import arm_commands
from tests.conftest import ROOT
from tests.published import ONNX, publish_variant

ADA = {"host": "elsewhere", "processor": "?", "gpu": {"name": "NVIDIA GeForce RTX 4090 D"}}
ENGINES = {"runtime": "TensorRT for RTX", "target": "sm89"}


pytestmark = pytest.mark.usefixtures("rates")


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """Three variants measured here, one whose engines were measured on an RTX 4090 D."""
    publish_variant(tmp_path, "fp16", right=96, e2e_ms=80, memory=430 << 20, engine=None, quantization=None)
    publish_variant(tmp_path, "onnx-fp16", right=96, e2e_ms=12, memory=200 << 20, quantization=None)
    publish_variant(tmp_path, "gptq-int4-onnx", right=94, e2e_ms=10, memory=100 << 20)
    publish_variant(tmp_path, "trt-gptq-int4-sm89", right=93, e2e_ms=1, engine=ENGINES, environment=ADA)
    return tmp_path


def select(
    catalogue: Path, capsys: pytest.CaptureFixture[str], *options: str, code: int = 0
) -> dict[str, Any]:
    assert main(["select", "--catalogue", str(catalogue), "--json", *options]) == code
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def reasons(found: dict[str, Any]) -> dict[str, str]:
    return {row["variant"]: row["reason"] for row in found["reasons"]}


@pytest.mark.parametrize(
    ("options", "choice"),
    [
        ([], "gptq-int4-onnx"),
        (["--objective=throughput"], "gptq-int4-onnx"),
        (["--objective=accuracy"], "onnx-fp16"),  # as accurate as fp16, and faster
        (["--accuracy=95"], "onnx-fp16"),
        (["--device=rtx4090d"], "trt-gptq-int4-sm89"),
    ],
)
def test_the_objective_decides_among_what_fits(
    catalogue: Path, capsys: pytest.CaptureFixture[str], options: list[str], choice: str
) -> None:
    found = select(catalogue, capsys, "--device=cpu", *options)
    assert found["choice"] == choice
    assert Path(found["path"]) == catalogue / "qwen3-vl-micro" / choice
    assert {row["variant"] for row in found["reasons"] if row["accepted"]} >= {choice}
    assert all(row["reason"] for row in found["reasons"])


def test_figures_say_how_they_are_known(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of(variant: str, *options: str) -> dict[str, Any]:
        found = select(catalogue, capsys, *options)
        return next(row for row in found["reasons"] if row["variant"] == variant)

    here = of("gptq-int4-onnx", "--device=cpu")
    assert {here[name]["provenance"] for name in ("latency", "throughput", "accuracy", "memory")} == {
        "measured here"
    }
    assert (here["latency"]["e2e_latency_ms"], here["memory"]["bytes"]) == (10, 100 << 20)
    longer = of("gptq-int4-onnx", "--device=cpu", "--context=4096", "--batch=4")
    # Keys and values of the embedded model: 2 x 4 layers x 2 heads x 32 x 4 bytes a token.
    assert longer["memory"]["bytes"] - here["memory"]["bytes"] >= (4 * 4096 - 2048) * 2048
    assert {longer[name]["provenance"] for name in ("memory", "throughput")} == {"forecast"}
    assert longer["latency"]["provenance"] == "measured here"
    other = of("gptq-int4-onnx", "--device=cpu-avx512")
    assert other["latency"]["provenance"] == "forecast"
    assert other["accuracy"]["provenance"] == other["memory"]["provenance"] == "measured on another device"
    ada = of("trt-gptq-int4-sm89", "--device=rtx4090d")
    assert ada["latency"] == {
        "e2e_latency_ms": 1, "ttft_ms": 0.25, "provenance": "measured on the same device"
    }  # fmt: skip
    assert of("trt-gptq-int4-sm89", "--device=l4")["latency"]["provenance"] == "forecast"


def test_nothing_falls_back_to_another_device(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = select(catalogue, capsys, "--device=orin-nano", "--memory=50MB", code=3)
    assert found["choice"] is None
    told = reasons(found)
    assert told["trt-gptq-int4-sm89"] == "its engines are for sm89, Jetson Orin Nano 8GB is sm87"
    assert told["gptq-int4-onnx"] == "its graphs are for a CPU, not for Jetson Orin Nano 8GB"
    assert "needs" in told["fp16"]


def test_the_nearest_miss_says_what_would_fit(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = select(catalogue, capsys, "--device=cpu", "--memory=104MB", code=3)
    assert found["nearest"]["variant"] == "gptq-int4-onnx"
    remedy = found["nearest"]["remedy"].split(" or ")
    for option in remedy:  # either does what it says
        again = select(catalogue, capsys, "--device=cpu", "--memory=104MB", *option.split())
        assert again["choice"] == "gptq-int4-onnx"
    assert len(remedy) == 2
    inaccurate = select(catalogue, capsys, "--device=cpu", "--accuracy=99", code=3)
    assert inaccurate["nearest"] == {"variant": "onnx-fp16", "remedy": "--accuracy 96.0"}
    assert main(["select", "--catalogue", str(catalogue), "--memory=1MB", "--device=cpu"]) == 3
    printed = capsys.readouterr().out
    assert "choice: none fits" in printed
    assert "would fit: " in printed


@pytest.mark.parametrize(
    ("variant", "engine", "device", "remedy", "then"),
    [
        ("gptq-int4-onnx", ONNX, "h100", "--device cpu", "--device=cpu"),
        ("trt-gptq-int4-sm89", ENGINES, "orin-nano", "engines built for sm87", "--device=l4"),
        ("trt-gptq-int4-sm89", ENGINES, "cpu", "a CPU variant", "--device=l4"),
    ],
)
def test_a_device_that_can_run_nothing_is_told_what_would(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    variant: str,
    engine: dict[str, Any],
    device: str,
    remedy: str,
    then: str,
) -> None:
    publish_variant(tmp_path, variant, engine=engine)
    found = select(tmp_path, capsys, f"--device={device}", code=3)
    assert found["nearest"] == {"variant": variant, "remedy": remedy}
    assert select(tmp_path, capsys, then)["choice"] == variant


def test_what_is_not_fit_to_leave_is_not_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiver = {"check": "accuracy", "reason": "a demo", "expires": "2999-01-01"}
    publish_variant(tmp_path, "gptq-int4-onnx", verdict="FAIL")
    publish_variant(tmp_path, "awq-int4-onnx", waivers=[waiver])
    publish_variant(tmp_path, "onnx-fp16", waivers=[waiver | {"expires": "2020-01-01"}])
    publish_variant(tmp_path, "awq-int4-onnx-kv8")
    (tmp_path / "qwen3-vl-micro" / "awq-int4-onnx-kv8" / "decoder.onnx.data").write_bytes(b"short")
    publish_variant(tmp_path, "int3-onnx")
    found = select(tmp_path, capsys, "--device=cpu")
    assert found["choice"] == "awq-int4-onnx"
    told = reasons(found)
    assert told["gptq-int4-onnx"].startswith("gate FAIL: accuracy")
    assert told["onnx-fp16"].startswith("its waiver of accuracy has expired")
    assert told["awq-int4-onnx-kv8"].startswith("damaged: decoder.onnx.data")
    assert told["int3-onnx"].startswith("this version knows no variant int3-onnx")


def test_a_checkpoint_without_timings_does_not_outrank_a_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_variant(tmp_path, "gptq-int4", e2e_ms=None, engine=None)
    publish_variant(tmp_path, "gptq-int4-onnx", e2e_ms=1e9)
    found = select(tmp_path, capsys, "--device=cpu")
    assert found["choice"] == "gptq-int4-onnx"
    assert "measured goes first" in reasons(found)["gptq-int4"]


def test_this_machine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (cpu,) = devices.find_devices("cpu")
    assert cpu.here
    assert not cpu.gpu
    assert cpu.memory == pytest.approx(available_memory(), rel=0.5)
    flags = Path("/proc/cpuinfo").read_text().split()
    assert {feature: feature in flags for feature in ("avx2", "avx512f")} == {
        feature: feature in cpu.features for feature in ("avx2", "avx512f")
    }
    gh200 = Gpu("NVIDIA GH200 144G HBM3e", "sm90", 140 << 30, "570.10", "12.8")
    monkeypatch.setattr(devices, "find_gpu", lambda: gh200)
    gpu, *_ = devices.find_devices("auto")
    assert gpu.gpu
    assert (gpu.architecture, gpu.memory, gpu.driver, gpu.cuda) == ("sm90", 140 << 30, "570.10", "12.8")
    assert gpu.rates == KNOWN["h100"].rates
    assert "this GPU is not in the table" in gpu.source
    h200 = Gpu("NVIDIA H200", "sm90", 139 << 30, "580.10", "13.0")
    monkeypatch.setattr(devices, "find_gpu", lambda: h200)
    assert devices.find_devices("auto")[0].rates == KNOWN["h200"].rates


def test_engines_need_their_driver_and_runtime(
    catalogue: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(architecture: str, **facts: Any) -> list[Device]:
        return [Device("a GPU", architecture, 24 << 30, (3e11, 1e14), "", here=True, **facts)]

    publish_variant(catalogue, "trt-gptq-int4-sm90", engine={"runtime": "TensorRT", "target": "sm90"})
    for architecture, facts, told in (
        ("sm89", {"driver": "570.1", "tensorrt": "1"}, "driver 570.1: TensorRT for RTX needs 580 or newer"),
        ("sm89", {"driver": "580.1"}, "rtx-cu13 is not installed; pip install -r requirements/gpu.txt"),
        ("sm90", {"driver": "570.1", "tensorrt": "1"}, "driver 570.1: TensorRT needs 580 or newer"),
        ("sm90", {"driver": "580.1"}, "tensorrt-cu13 is not installed; pip install tensorrt-cu13==10.16"),
    ):
        devices_here = here(architecture, **facts)
        monkeypatch.setattr("build.select.commands.find_devices", lambda name, found=devices_here: found)
        found = select(catalogue, capsys, "--context=128")["reasons"]
        (row,) = (row for row in found if row["variant"] == f"trt-gptq-int4-{architecture}")
        assert told in f"{row['reason']}; {row['remedy']}"


def test_a_gpu_that_is_left_idle_is_told(
    catalogue: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Gpu("NVIDIA T400", "sm75", 400 << 20, "580.1", "13.0")  # too small for the checkpoint
    monkeypatch.setattr(devices, "find_gpu", lambda: small)
    found = select(catalogue, capsys)
    assert (found["choice"], found["unused"]) == ("gptq-int4-onnx", ["NVIDIA T400"])
    checkpoint = next(row for row in found["reasons"] if row["variant"] == "fp16")
    assert not checkpoint["device"]["gpu"]
    assert checkpoint["accepted"]
    assert select(catalogue, capsys, "--device=cpu")["unused"] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--device=tpu"], "--device tpu: not known; expected auto, cpu or one of rtx4090d"),
        (["--catalogue=/nonexistent"], "nothing is published below /nonexistent"),
        (["--model=llama"], "has no model llama; it has qwen3-vl-micro"),
    ],
)
def test_bad_input_is_one_clear_line(
    catalogue: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    assert main(["select", "--catalogue", str(catalogue), *options]) == 1
    assert told in capsys.readouterr().err


def test_several_models_are_not_mixed(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_variant(catalogue / "more", "fp16")
    (catalogue / "more" / "qwen3-vl-micro").rename(catalogue / "other")
    assert main(["select", "--catalogue", str(catalogue)]) == 1
    assert "several models: name one with --model, of other, qwen3-vl-micro" in capsys.readouterr().err
    assert select(catalogue, capsys, "--model=other", "--device=cpu")["choice"] == "fp16"


def test_a_machine_that_only_serves_can_select(catalogue: Path) -> None:
    """What a build needs beyond the serving set is hidden from it."""
    script = (
        "import sys\nfor name in ('torch', 'transformers', 'rich', 'onnx', 'scipy', 'statsmodels',"
        " 'compressed_tensors'): sys.modules[name] = None\n"
        "from build.__main__ import main\n"
        f"sys.exit(main(['select', '--catalogue', {str(catalogue)!r}, '--device', 'cpu', '--explain']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "choice: gptq-int4-onnx at" in done.stdout
    assert "latency 10.0 ms, first token 2.5 ms (measured here)" in done.stdout


def test_serve_up_takes_what_was_selected(catalogue: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    policy = read_policy(select_policy(["--catalogue", str(catalogue), "--device", "cpu"], state))
    assert list(policy.arms) == ["gptq-int4-onnx"]
    command = arm_commands(policy)["gptq-int4-onnx"]
    assert command[2:5] == ["serve", "arm", str(catalogue / "qwen3-vl-micro" / "gptq-int4-onnx")]
    digest = yaml.safe_load((state / "selected.yaml").read_text())["arms"]["gptq-int4-onnx"]["digest"]
    assert digest.startswith("sha256:")
    with pytest.raises(UserError, match="nothing fits; nearest gptq-int4-onnx, would fit: --memory"):
        select_policy(["--catalogue", str(catalogue), "--device", "cpu", "--memory", "50MB"], state)
    with pytest.raises(UserError, match="`build select` failed"):
        select_policy(["--catalogue", "/nonexistent"], state)
    with pytest.raises(UserError, match=r"serve arm .*fp16 --device cuda"):
        select_policy(["--catalogue", str(catalogue), "--device", "h100"], state)


def test_serve_up_wants_a_policy_or_a_selection(capsys: pytest.CaptureFixture[str]) -> None:
    from serve.__main__ import main as serve

    assert serve(["up"]) == 1
    assert serve(["up", "policy.yaml", "--select", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.count("exactly one of the two") == 2
