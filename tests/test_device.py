"""What NVML says of a GPU becomes figures; a machine without one has none."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, repeat
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from bench.arms import here
from bench.latency import measure
from engines import device
from engines.device import Usage, Watch, find_gpu
from tests.fakes import END, NumberProcessor, TableSession
from tests.fakes import chain as successors


class Nvml:
    """A GPU that holds more memory and gets hotter at each look, as pynvml tells it."""

    NVML_TEMPERATURE_GPU = 0

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.memory = chain([1000, 1500, 4000], repeat(2000))
        self.temperature = chain([40, 55], repeat(50))
        self.looks = 0

    def third_look(self) -> None:
        """Memory and temperature have shown their highest."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - NVML's names
        return self.count

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65"

    def utilization(self, handle: object) -> SimpleNamespace:
        self.looks += 1
        if self.looks == 4:  # the samples of the third are kept
            self.third_look()
        return SimpleNamespace(gpu=80)

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlSystemGetCudaDriverVersion": lambda: 13020,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetCudaComputeCapability": lambda handle: (8, 9),
            "nvmlDeviceGetName": lambda handle: "NVIDIA GeForce RTX 4090 D",
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=24000, used=next(self.memory)),
            "nvmlDeviceGetPowerUsage": lambda handle: 250_000,
            "nvmlDeviceGetTemperature": lambda handle, sensor: next(self.temperature),
            "nvmlDeviceGetUtilizationRates": self.utilization,
        }
        if name not in answers:
            raise AttributeError(name)
        return answers[name]


@pytest.mark.parametrize("nvml", [None, Nvml(count=0)])
def test_without_driver_or_device_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, nvml: Nvml | None) -> None:
    monkeypatch.setattr(device, "open_nvml", lambda: nvml)
    assert find_gpu() is None


def test_a_gpu_is_told_by_its_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "open_nvml", Nvml)
    found = find_gpu()
    assert found
    assert replace(found, name="") == device.Gpu("", "sm89", 24000, "580.65", "13.2")


def test_usage_is_what_work_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "open_nvml", Nvml)
    hottest = Event()
    monkeypatch.setattr(Nvml, "third_look", lambda nvml: hottest.set())
    with Watch() as watch:
        assert hottest.wait(60)
    usage = watch.usage()
    assert usage == Usage(
        memory_bytes=3000, power_w=250.0, temperature_c=55, utilization_percent=80.0
    )  # 1000 bytes were held before


def test_timings_tell_what_the_gpu_showed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "open_nvml", Nvml)
    arms = {"a": here(TableSession(successors([END] * 4)))}
    requests: list[Any] = [NumberProcessor()([{"content": "1 2 3"}])]
    watched = measure(arms, requests, repeats=2, watch=True)
    assert [row.device.power_w for row in watched if row.device] == [250.0, 250.0]
    assert [row.device for row in measure(arms, requests, repeats=2)] == [None, None]
