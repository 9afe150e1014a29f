"""The NVIDIA GPU of this machine, asked through NVML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """What a device is. architecture: as in sm89; memory in bytes; driver: its version."""

    name: str
    architecture: str
    memory: int
    driver: str


def find_gpu(index: int = 0) -> Gpu | None:
    """The GPU of that index; None when there is none, or no driver or NVML to ask."""
    nvml = open_nvml()
    if nvml is None or index >= nvml.nvmlDeviceGetCount():
        return None
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        name=nvml.nvmlDeviceGetName(handle),
        architecture=f"sm{major}{minor}",
        memory=nvml.nvmlDeviceGetMemoryInfo(handle).total,
        driver=nvml.nvmlSystemGetDriverVersion(),
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
