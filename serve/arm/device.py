"""Temperature, power and energy of the machine and its GPUs, where they tell them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.device import open_nvml
from engines.sensors import SYSTEM, energies, temperatures


class Thermals(Collector):
    """Linux's thermal zones and energy counters of processors (whose rate is power); NVIDIA's GPUs."""

    def __init__(self, system: Path = SYSTEM) -> None:
        self._system = system

    def collect(self) -> Iterator[Metric]:
        """Read anew for every scrape; what is absent or not ours to read is left out."""
        power = GaugeMetricFamily("arm_device_power_watts", "By GPU.", labels=["gpu"])
        heat = GaugeMetricFamily("arm_device_temperature_celsius", "By thermal zone.", labels=["zone"])
        for zone, celsius in temperatures(self._system).items():
            heat.add_metric([zone], celsius)
        energy = CounterMetricFamily("arm_device_energy_joules", "By power domain.", labels=["domain"])
        for domain, joules in energies(self._system).items():
            energy.add_metric([domain], joules)
        if nvml := open_nvml():
            for index in range(nvml.nvmlDeviceGetCount()):
                gpu = nvml.nvmlDeviceGetHandleByIndex(index)
                power.add_metric([str(index)], nvml.nvmlDeviceGetPowerUsage(gpu) / 1000)
                celsius = nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
                heat.add_metric([f"gpu{index}"], celsius)
        yield from (heat, energy, power)
