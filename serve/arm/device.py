"""Temperature, power and energy of the machine and its GPUs, where they tell them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.device import open_nvml

SYSTEM = Path("/sys/class")


class Thermals(Collector):
    """Linux's thermal zones and energy counters of processors (whose rate is power); NVIDIA's GPUs."""

    def __init__(self, system: Path = SYSTEM) -> None:
        self._system = system

    def collect(self) -> Iterator[Metric]:
        """Read anew for every scrape; what is absent or not ours to read is left out."""
        power = GaugeMetricFamily("arm_device_power_watts", "By GPU.", labels=["gpu"])
        heat = GaugeMetricFamily("arm_device_temperature_celsius", "By thermal zone.", labels=["zone"])
        for zone in sorted(self._system.glob("thermal/thermal_zone*")):
            if (value := _number(zone / "temp")) is not None:
                heat.add_metric([_line(zone / "type") or zone.name], value / 1000)
        energy = CounterMetricFamily("arm_device_energy_joules", "By power domain.", labels=["domain"])
        for domain in sorted(self._system.glob("powercap/*:*")):
            if (value := _number(domain / "energy_uj")) is not None:
                energy.add_metric([_line(domain / "name") or domain.name], value / 1e6)
        if nvml := open_nvml():
            for index in range(nvml.nvmlDeviceGetCount()):
                gpu = nvml.nvmlDeviceGetHandleByIndex(index)
                power.add_metric([str(index)], nvml.nvmlDeviceGetPowerUsage(gpu) / 1000)
                celsius = nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
                heat.add_metric([f"gpu{index}"], celsius)
        yield from (heat, energy, power)


def _line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    line = _line(path)
    try:
        return float(line) if line else None
    except ValueError:
        return None
