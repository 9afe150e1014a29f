"""What a machine tells of its temperature and power, and nothing where it tells nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from serve.arm import device
from serve.arm.device import Thermals


def samples(system: Path) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in Thermals(system).collect()
        for sample in metric.samples
    }


def test_zones_and_energy_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "open_nvml", lambda: None)
    files = {
        "thermal/thermal_zone0/temp": "48500\n",
        "thermal/thermal_zone0/type": "cpu\n",
        "thermal/thermal_zone1/temp": "not now\n",
        "powercap/intel-rapl:0/energy_uj": "2500000\n",
        "powercap/intel-rapl:0/name": "package-0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert samples(tmp_path) == {
        ("arm_device_temperature_celsius", "cpu"): 48.5,
        ("arm_device_energy_joules_total", "package-0"): 2.5,
    }
    assert samples(tmp_path / "none") == {}


def test_gpus_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = SimpleNamespace(
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetPowerUsage=lambda handle: 70_000 + handle,
        nvmlDeviceGetTemperature=lambda handle, sensor: 40 + handle,
    )
    monkeypatch.setattr(device, "open_nvml", lambda: nvml)
    assert samples(tmp_path) == {
        ("arm_device_power_watts", "0"): 70.0,
        ("arm_device_power_watts", "1"): 70.001,
        ("arm_device_temperature_celsius", "gpu0"): 40,
        ("arm_device_temperature_celsius", "gpu1"): 41,
    }
