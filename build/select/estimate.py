"""What a variant would need and how fast it would be on a device, and how each figure is known.

A figure is measured (here, on the same device, on another) or a forecast. Only memory and accuracy are taken
over from another device: a process needs what it needs, and an answer does not depend on the clock; latency
does, so elsewhere it is a forecast from the device's rates.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil

from build import forecast
from build.recipe import KINDS
from build.select.catalogue import Published
from build.select.devices import Device

PROMPT, ANSWER = 256, 32  # tokens of the request that is forecast where the catalogue timed none
CUDA_START = 500_000_000  # of a process's context on a GPU, with the libraries' workspaces


class Provenance(StrEnum):
    """How a figure is known; the surest first."""

    HERE = "measured here"
    SAME_DEVICE = "measured on the same device"
    OTHER_DEVICE = "measured on another device"
    FORECAST = "forecast"


@dataclass(frozen=True)
class Workload:
    """What is asked: sequences of `context` tokens in memory, `batch` at once; requests of a typical size."""

    context: int
    batch: int
    prompt: float = PROMPT
    answer: float = ANSWER


@dataclass(frozen=True)
class Estimate:
    """Of one variant on one device. None: nothing is known, and nothing can be forecast.

    e2e_ms: one request alone; tokens_per_s: `batch` sequences together, their prompts included.
    accuracy: percent, and half of its 95 % interval.
    """

    memory_bytes: int
    memory_from: Provenance
    e2e_ms: float
    ttft_ms: float
    latency_from: Provenance
    tokens_per_s: float
    throughput_from: Provenance
    accuracy: tuple[float, float] | None
    accuracy_from: Provenance | None


def estimate(published: Published, device: Device, load: Workload) -> Estimate:
    """Figures for a variant that this version knows to run. Raises UserError when its evidence is broken."""
    measured = _provenance(published, device)
    memory, memory_from = _memory(published, device, load, measured)
    accuracy = published.accuracy
    timed = published.latency() if measured is not Provenance.OTHER_DEVICE else None
    if timed:
        e2e, ttft, latency_from = timed["e2e_latency_ms"], timed["ttft_ms"], measured
    else:
        e2e = 1e3 * _seconds(published, device, load, load.answer - 1, 1)
        ttft, latency_from = 1e3 * _seconds(published, device, load, 0, 1), Provenance.FORECAST
    if timed and load.batch == 1:
        speed, speed_from = timed["output_tokens_per_s"], measured
    else:
        seconds = _seconds(published, device, load, load.answer - 1, load.batch)
        if timed:  # forecast how batching helps, from what one request took
            seconds *= e2e / (1e3 * _seconds(published, device, load, load.answer - 1, 1))
        speed, speed_from = load.batch * load.answer / seconds, Provenance.FORECAST
    return Estimate(
        memory_bytes=memory,
        memory_from=memory_from,
        e2e_ms=e2e,
        ttft_ms=ttft,
        latency_from=latency_from,
        tokens_per_s=speed,
        throughput_from=speed_from,
        accuracy=accuracy,
        accuracy_from=measured if accuracy else None,
    )


def longest_context(published: Published, device: Device, load: Workload, memory: int) -> int:
    """Tokens for which the variant would fit `memory` at the load's batch; 0 when none do."""

    def fits(tokens: int) -> bool:
        asked = replace(load, context=tokens)
        return _memory(published, device, asked, Provenance.FORECAST)[0] <= memory

    return forecast.longest(published.config.text.max_position_embeddings, fits)


def _provenance(published: Published, device: Device) -> Provenance:
    """Of what was measured of a variant, asked about on a device."""
    if published.measured_on != device.name or (device.gpu and not published.target):
        return Provenance.OTHER_DEVICE
    if device.here and published.environment.get("host") == socket.gethostname():
        return Provenance.HERE
    return Provenance.SAME_DEVICE


def _memory(
    published: Published, device: Device, load: Workload, measured: Provenance
) -> tuple[int, Provenance]:
    """What was measured, plus what a forecast says that another context and batch take."""
    needs = published.manifest.requires
    asked = _forecast_memory(published, device, load.context, load.batch)
    if not needs.get("memory_bytes") or (device.gpu and not published.target):
        return asked, Provenance.FORECAST
    then = _forecast_memory(published, device, needs["context"], needs["batch"])
    same = (needs["context"], needs["batch"]) == (load.context, load.batch)
    return needs["memory_bytes"] + asked - then, measured if same else Provenance.FORECAST


def _forecast_memory(published: Published, device: Device, context: int, batch: int) -> int:
    config, group = published.config, _group_size(published)
    if device.gpu and not published.target:  # a checkpoint by transformers on a GPU: 16-bit keys and values
        cache = forecast.kv_bytes_per_token(config, published.variant) // 2 * context * batch
        working = 2 * context * batch * (2 * config.text.intermediate_size + 6 * config.text.hidden_size)
        return CUDA_START + published.manifest.bytes + working + cache
    return forecast.memory_bytes(config, published.variant, group, context, batch)


def _seconds(published: Published, device: Device, load: Workload, steps: float, batch: int) -> float:
    """For `batch` requests together: their prompts, then `steps` tokens each."""
    asked = forecast.Load(load.prompt, 0)
    machine = device.machine()
    return forecast.answer_seconds(
        published.config, published.variant, machine, asked, batch, ceil(steps), batch
    )


def known(published: Published) -> bool:
    """Whether this version can say anything of the variant."""
    return published.variant in KINDS


def _group_size(published: Published) -> int:
    return int((published.manifest.quantization or {}).get("group_size", 128))
