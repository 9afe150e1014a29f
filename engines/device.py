"""The NVIDIA GPU of this machine, asked through NVML."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from threading import Event, Thread
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """What a device is. architecture: as in sm89; memory in bytes; versions of its driver and of CUDA."""

    name: str
    architecture: str
    memory: int
    driver: str
    cuda: str = ""


def find_gpu(index: int = 0) -> Gpu | None:
    """The GPU of that index; None when there is none, or no driver or NVML to ask."""
    nvml = open_nvml()
    if nvml is None or index >= nvml.nvmlDeviceGetCount():
        return None
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    cuda = nvml.nvmlSystemGetCudaDriverVersion()
    return Gpu(
        name=nvml.nvmlDeviceGetName(handle),
        architecture=f"sm{major}{minor}",
        memory=nvml.nvmlDeviceGetMemoryInfo(handle).total,
        driver=nvml.nvmlSystemGetDriverVersion(),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
    )


def open_nvml() -> Any:
    """The module pynvml, ready; None where it is not installed or finds no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


@dataclass(frozen=True)
class Usage:
    """What a GPU showed while some work was done.

    memory_bytes: most that was held, less what was held before. power_w and utilization_percent: means.
    temperature_c: the highest.
    """

    memory_bytes: int
    power_w: float
    temperature_c: int
    utilization_percent: float


class Watch:
    """Asks the GPU how it is, ten milliseconds after ten milliseconds, while a `with` block runs."""

    def __init__(self, index: int = 0) -> None:
        self._nvml = open_nvml()
        self._handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        self._samples: list[tuple[int, float, int, int]] = []
        self._done = Event()

    def __enter__(self) -> Watch:
        self._before = self._sample()
        self._thread = Thread(target=self._ask, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def usage(self) -> Usage:
        """What was seen from the beginning of the block to now or its end."""
        memory, power, temperature, utilization = zip(*self._samples, strict=True)
        return Usage(
            memory_bytes=max(memory) - self._before[0],
            power_w=mean(power),
            temperature_c=max(temperature),
            utilization_percent=mean(utilization),
        )

    def _ask(self) -> None:
        while True:
            self._samples.append(self._sample())
            if self._done.wait(0.01):
                return

    def _sample(self) -> tuple[int, float, int, int]:
        nvml, handle = self._nvml, self._handle
        return (
            nvml.nvmlDeviceGetMemoryInfo(handle).used,
            nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        )
