"""Devices to select for: this machine as it is found, and a table of others."""

from __future__ import annotations

import functools
import importlib.util
import platform
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from build import rates
from build.rates import Machine
from build.store import processor_name
from engines.device import find_gpu
from engines.engine_files import RTX, TENSORRT, Runtime
from engines.errors import UserError
from engines.memory import available_memory
from engines.tensorrt.targets import TARGETS

# What brings the library that loads engines; of TensorRT for RTX its plug-in for onnxruntime has it.
LOADERS = {RTX: "onnxruntime-ep-nv-tensorrt-rtx-cu13", TENSORRT: "tensorrt-cu13"}
# Instruction sets that decide how fast 4-bit products are, as the kernel names them.
FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


@dataclass(frozen=True)
class Device:
    """What is known of a device. architecture: sm89 of a GPU, x86_64 of a CPU; memory in bytes.

    rates: bytes a second read, operations a second of 16-bit products (on a CPU fp32); None: not known yet.
    runtimes: what can run variants here, None where it cannot be known. source: where the rates are from.
    """

    name: str
    architecture: str
    memory: int
    rates: tuple[float, float] | None
    source: str
    features: tuple[str, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    runtimes: frozenset[str] | None = None
    here: bool = False

    @property
    def gpu(self) -> bool:
        return self.architecture.startswith("sm")

    @property
    def engines_by(self) -> Runtime:
        """The TensorRT that engines for it are of."""
        return TARGETS[self.architecture].runtime if self.architecture in TARGETS else RTX

    def machine(self) -> Machine:
        """Its rates for a forecast; those of this machine are measured when first asked for."""
        if self.rates is None:
            return _measured()
        return Machine(flops=self.rates[1], read=self.rates[0], hashed=1e9)

    def __str__(self) -> str:
        facts = [self.architecture, *self.features]
        facts += [f"{self.memory / 1e9:.1f} GB {'free' if self.here and not self.gpu else 'memory'}"]
        facts += [f"driver {self.driver}"] if self.driver else []
        facts += [f"CUDA {self.cuda}"] if self.cuda else []
        if self.here and self.gpu:
            facts.append(f"{self.engines_by.name} {self.tensorrt or 'not installed'}")
        return f"{self.name} ({', '.join(facts)})"


# Dense products of tensor cores, without sparsity, accumulated in fp32. What a vendor states is a peak.
KNOWN = {
    "rtx4090d": Device(
        "NVIDIA GeForce RTX 4090 D",
        "sm89",
        24 << 30,
        (1008e9, 147e12),
        "GDDR6X 384 bit at 21 Gbit/s; 14,592 cores at 2.52 GHz (NVIDIA Ada architecture white paper's rates)",
    ),
    "l4": Device("NVIDIA L4", "sm89", 24 << 30, (300e9, 121e12), "NVIDIA L4 data sheet"),
    "h100": Device(
        "NVIDIA H100 80GB HBM3", "sm90", 80 << 30, (3350e9, 989e12), "NVIDIA H100 data sheet, SXM"
    ),
    "h200": Device("NVIDIA H200", "sm90", 139 << 30, (4800e9, 989e12), "NVIDIA H200 data sheet, SXM"),
    "orin-nano": Device(
        "Jetson Orin Nano 8GB",
        "sm87",
        8 << 30,
        (102e9, 17e12),
        "NVIDIA Jetson Orin Nano Super data sheet; memory is the CPU's too",
    ),
    "cpu-avx512": Device(
        "CPU with AVX512-VNNI, 2 cores",
        "x86_64",
        24_000_000_000,
        (25e9, 105e9),
        "measured on a rented server: reads by 2 threads, fp32 products",
        features=("avx2", "avx512f", "avx512_vnni"),
    ),
    "cpu-avx2": Device(
        "CPU with AVX2, 2 cores",
        "x86_64",
        24_000_000_000,
        (27e9, 114e9),
        "measured on a rented server (docs/log.md)",
        features=("avx2",),
    ),
}


def find_devices(name: str) -> list[Device]:
    """Those to select for: `auto` is this machine's CPU and GPU, `cpu` its CPU, else one of the table.

    Raises UserError for any other name.
    """
    if name == "auto":
        return [*_gpu(), _cpu()]
    if name == "cpu":
        return [_cpu()]
    if name in KNOWN:
        return [KNOWN[name]]
    raise UserError(f"--device {name}: not known; expected auto, cpu or one of {', '.join(KNOWN)}")


def _cpu() -> Device:
    return Device(
        processor_name(),
        platform.machine(),
        available_memory(),
        None,
        "measured now",
        features=_features(),
        runtimes=_runtimes(),
        here=True,
    )


def _gpu() -> list[Device]:
    found = find_gpu()
    if found is None:
        return []
    known = next((device for device in KNOWN.values() if device.name == found.name), None)
    # Without the table's rates a forecast takes those of the slowest GPU of its architecture, or an L4's.
    base = known or min(
        (device for device in KNOWN.values() if device.architecture == found.architecture),
        key=lambda device: device.machine().read,
        default=KNOWN["l4"],
    )
    here = replace(base, architecture=found.architecture)
    return [
        replace(
            here,
            name=found.name,
            memory=found.memory,
            source=base.source if known else f"rates of {base.name}: this GPU is not in the table",
            driver=found.driver,
            cuda=found.cuda or None,
            tensorrt=_version(LOADERS[here.engines_by]),
            runtimes=_runtimes(),
            here=True,
        )
    ]


def _features() -> tuple[str, ...]:
    """Of FEATURES, what the kernel says this processor has; nothing where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ()
    flags = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return tuple(feature for feature in FEATURES if feature in flags)


def _runtimes() -> frozenset[str]:
    """Runtimes of variants that are installed, by the name manifests have for them."""
    packages = {"onnxruntime": "onnxruntime", "transformers": "transformers", "torch": "torch"}
    return frozenset(name for name, module in packages.items() if importlib.util.find_spec(module))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


_measured = functools.cache(rates.measure)
