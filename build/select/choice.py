"""Which published variant to run on a device, and for every other one why not. Never a silent fallback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log
from statistics import median
from typing import Literal

from build.select.catalogue import Published
from build.select.devices import LOADERS, Device
from build.select.estimate import Estimate, Provenance, Workload, estimate, known, longest_context
from engines.engine_files import DRIVER, ENGINE_FACTS, RTX, EngineFacts
from engines.units import human_size

Objective = Literal["latency", "throughput", "accuracy"]
TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Wanted:
    """What is asked of a choice. memory: bytes, None for all the device has; accuracy: percent at least."""

    context: int
    batch: int
    memory: int | None
    objective: Objective
    accuracy: float | None


@dataclass(frozen=True)
class Candidate:
    """A variant on a device. miss: by which factor a limit is missed, infinite where the device cannot run
    it; remedy: what would make it fit."""

    published: Published
    device: Device
    estimate: Estimate | None
    reason: str
    accepted: bool = False
    miss: float | None = None
    remedy: str = ""


@dataclass(frozen=True)
class Choice:
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]

    @property
    def nearest(self) -> Candidate | None:
        """Where nothing fits: the candidate that misses its limits by least."""
        missed = [candidate for candidate in self.candidates if candidate.miss is not None]
        return min(missed, key=_nearness, default=None) if not self.chosen else None


def _nearness(candidate: Candidate) -> tuple[float, int]:
    found = candidate.estimate
    return candidate.miss or 0.0, found.memory_bytes if found else candidate.published.manifest.bytes


def choose(catalogue: Sequence[Published], devices: Sequence[Device], wanted: Wanted) -> Choice:
    """Judges every variant on the devices it is for, then ranks those that fit."""
    load = _workload(catalogue, wanted)
    judged = [_judge(published, devices, wanted, load) for published in catalogue]
    fitting = sorted((c for c in judged if c.accepted), key=lambda c: _rank(_figures(c), wanted.objective))
    if not fitting:
        return Choice(None, tuple(judged))
    best = fitting[0]
    told = {id(best): f"chosen: best {wanted.objective} of {len(fitting)} that fit"}
    for candidate in fitting[1:]:
        told[id(candidate)] = _beaten(_figures(candidate), _figures(best), wanted.objective)
    candidates = [_with_reason(c, told[id(c)]) if id(c) in told else c for c in judged]
    chosen = next(c for c in candidates if c.published is best.published)
    return Choice(chosen, tuple(candidates))


def _judge(published: Published, devices: Sequence[Device], wanted: Wanted, load: Workload) -> Candidate:
    """On the first device where it fits, or else on the first that can run it."""
    problem = published.problem()
    if problem is None and not known(published):
        problem = f"this version knows no variant {published.variant}: select with the version that built it"
    if problem:
        return Candidate(published, devices[0], None, problem)
    refusals = {device: _cannot_run(published, device) for device in devices}
    able = [_hold(published, device, wanted, load) for device in devices if refusals[device] is None]
    if not able:
        reasons, remedies = zip(*filter(None, refusals.values()), strict=True)
        remedy = " or ".join(dict.fromkeys(remedies))
        return Candidate(published, devices[0], None, "; ".join(reasons), miss=inf, remedy=remedy)
    return next((candidate for candidate in able if candidate.accepted), able[0])


def _hold(published: Published, device: Device, wanted: Wanted, load: Workload) -> Candidate:
    """A variant's figures on a device that can run it, held against what is wanted."""
    found = estimate(published, device, load)
    misses = [*_too_large(published, device, found, wanted, load), *_too_inaccurate(found, wanted)]
    if not misses:
        return Candidate(published, device, found, "fits", accepted=True)
    reasons, ratios, remedies = zip(*misses, strict=True)
    return Candidate(
        published, device, found, "; ".join(reasons), miss=max(ratios), remedy=" and ".join(remedies)
    )


def _cannot_run(published: Published, device: Device) -> tuple[str, str] | None:
    """Why a device cannot run a variant, whatever its memory, and what would change that."""
    if published.target:
        return _cannot_load_engines(published, device)
    if published.runtime == "onnxruntime":
        if device.gpu:
            return f"its graphs are for a CPU, not for {device.name}", "--device cpu"
        if device.runtimes is not None and "onnxruntime" not in device.runtimes:
            return "onnxruntime is not installed", "pip install -r requirements/serve.txt"
        return None
    if device.runtimes is not None and not {"torch", TRANSFORMERS} <= device.runtimes:
        reason = "a checkpoint, run by transformers, which is not installed"
        return reason, "pip install -r requirements/dev.txt"
    return None


def _cannot_load_engines(published: Published, device: Device) -> tuple[str, str] | None:
    if device.architecture != published.target:
        reason = f"its engines are for {published.target}, {device.name} is {device.architecture}"
        return reason, f"engines built for {device.architecture}" if device.gpu else "a CPU variant"
    if not device.here:
        return None
    if int((device.driver or "0").split(".")[0]) < DRIVER:
        reason = f"driver {device.driver}: {device.engines_by.name} needs {DRIVER} or newer"
        return reason, f"driver {DRIVER} or newer"
    if device.tensorrt is None:
        package, runtime = LOADERS[device.engines_by], device.engines_by
        remedy = "-r requirements/gpu.txt" if runtime is RTX else f"{package}=={runtime.version}"
        return f"{package} is not installed", f"pip install {remedy}"
    return None


def _too_large(
    published: Published, device: Device, found: Estimate, wanted: Wanted, load: Workload
) -> list[tuple[str, float, str]]:
    limit = published.config.text.max_position_embeddings
    batch = wanted.batch
    if (published.path / ENGINE_FACTS).is_file():
        facts = EngineFacts.read(published.path)
        limit, batch = facts.context, facts.batch
    misses = []
    if wanted.context > limit:
        reason = f"takes contexts of up to {limit:,} tokens"
        misses.append((reason, wanted.context / limit, f"--context {limit}"))
    if wanted.batch > batch:
        reason = f"takes {batch} sequences at once"
        misses.append((reason, wanted.batch / batch, f"--batch {batch}"))
    memory = device.memory if wanted.memory is None else wanted.memory
    if found.memory_bytes > memory:
        longest = longest_context(published, device, load, memory)
        remedy = f"--context {longest}" if longest else "no context fits there"
        if wanted.memory is not None and found.memory_bytes <= device.memory:
            remedy = f"--memory {found.memory_bytes / 1e6:.0f}MB" + (f" or {remedy}" if longest else "")
        reason = f"needs {human_size(found.memory_bytes)} ({found.memory_from}) of {human_size(memory)}"
        misses.append((reason, found.memory_bytes / memory, remedy))
    return misses


def _too_inaccurate(found: Estimate, wanted: Wanted) -> list[tuple[str, float, str]]:
    if wanted.accuracy is None:
        return []
    if found.accuracy is None:
        return [("its accuracy was not measured", float("inf"), "its answers: evaluate it first")]
    percent = found.accuracy[0]
    if percent >= wanted.accuracy:
        return []
    reason = f"accuracy {percent:.1f} % is below {wanted.accuracy:g} %"
    return [(reason, wanted.accuracy / max(percent, 0.1), f"--accuracy {percent:.1f}")]


def _workload(catalogue: Sequence[Published], wanted: Wanted) -> Workload:
    """Requests of the size that the catalogue was timed with, where it was."""
    timed = [found for published in catalogue if (found := published.latency())]
    if not timed:
        return Workload(wanted.context, wanted.batch)
    prompt, answer = (median(found[name] for found in timed) for name in ("prompt_tokens", "output_tokens"))
    return Workload(wanted.context, wanted.batch, prompt, answer)


def _rank(found: Estimate, objective: Objective) -> tuple[bool, float, float]:
    """Smaller is better. A forecast never outranks a measurement: it has not been shown.

    Forecasts that differ by less than a tenth or so are one: the more accurate variant goes first.
    """
    percent = found.accuracy[0] if found.accuracy else -1.0
    if objective == "accuracy":
        return found.accuracy is None, -percent, found.e2e_ms
    slowness = found.e2e_ms if objective == "latency" else 1e3 / found.tokens_per_s
    if found.latency_from is Provenance.FORECAST:
        return True, round(log(slowness, 1.1)), -percent
    return False, slowness, found.memory_bytes


def _beaten(found: Estimate, best: Estimate, objective: Objective) -> str:
    forecast_only = found.latency_from is Provenance.FORECAST is not best.latency_from
    match objective:
        case "latency" | "throughput" if forecast_only:
            return "fits, but its speed is a forecast: what was measured goes first"
        case "latency":
            return f"fits, but takes {found.e2e_ms / best.e2e_ms:.2f} times as long"
        case "throughput":
            return f"fits, but reaches {found.tokens_per_s / best.tokens_per_s:.2f} of the throughput"
        case "accuracy":
            if not found.accuracy or not best.accuracy:
                return "fits, but its accuracy was not measured"
            behind = best.accuracy[0] - found.accuracy[0]
            return f"fits, but is {behind:.1f} points less accurate" if behind else "fits, but is slower"


def _figures(candidate: Candidate) -> Estimate:
    assert candidate.estimate is not None  # whoever is accepted was estimated
    return candidate.estimate


def _with_reason(candidate: Candidate, reason: str) -> Candidate:
    return Candidate(candidate.published, candidate.device, candidate.estimate, reason, accepted=True)
