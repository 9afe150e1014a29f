"""What a verdict rests on: latency measured anew, the gate's judgement, the documents of an artifact."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from bench.accuracy import Observation
from bench.arms import in_a_process
from bench.arrivals import under_load
from bench.evaluation import merged_fidelity, merged_observations
from bench.examples import Example, choose, show
from bench.fidelity import Fidelity
from bench.gate import gate
from bench.latency import AGAIN, Timing, measure, of_arm, single
from bench.noise import noise_lines, steady
from bench.power import observed
from bench.records import as_lines
from bench.resources import Memory
from bench.verdict import Gate, Measurements
from build.console import Console
from build.recipe import BASELINES, KINDS, Recipe
from build.source import project_revision
from build.store import Entry, processor_name
from engines.device import find_gpu

LATENCY = ("ttft_p50_ratio", "ttft_p95_ratio", "itl_p50_ratio", "itl_p95_ratio", "e2e_ratio")
# A recipe is YAML and so is JSON: the one beside this script builds and measures the variant again.
COMMANDS = """#!/bin/sh
# Run from a checkout of the project.
python -m build all --recipe "$(dirname "$0")/recipe.json" --only {variant} "$@"
"""
QUALITY = ("accuracy_margin", "slice_margin", "max_kl", "max_flip_rate")
ON_DEVICE = ("accuracy", "fidelity", "latency", "peak_memory_bytes")  # only a variant's device can tell these


@dataclass(frozen=True)
class Built:
    """Every folder of one build, by variant; of its answers one for each shard."""

    artifacts: dict[str, Entry]
    items: Entry
    answers: dict[str, list[Entry]]
    memory: dict[str, Entry]

    def entries(self) -> list[Entry]:
        shards = [shard for shards in self.answers.values() for shard in shards]
        return [*self.artifacts.values(), self.items, *shards, *self.memory.values()]

    def peak_memory(self, variant: str) -> Memory | None:
        if variant not in self.memory:
            return None
        return Memory.model_validate_json((self.memory[variant].path / "memory.json").read_bytes())

    def observations(self, variant: str) -> Sequence[Observation]:
        return merged_observations([shard.path for shard in self.answers.get(variant, [])])

    def fidelity(self, variant: str) -> Fidelity | None:
        """Of the baseline itself, and of what was not measured, none."""
        shards = [shard.path for shard in self.answers.get(variant, [])]
        if variant in BASELINES.values() or not shards:
            return None
        baseline = self.observations(BASELINES[KINDS[variant].device])
        return merged_fidelity(shards, baseline, merged_observations(shards))


@dataclass(frozen=True)
class Timed:
    """What was timed on one device, and where that was."""

    timings: list[Timing]
    environment: dict[str, Any]


def time_requests(recipe: Recipe, built: Built, device: str, console: Console) -> Timed:
    """Latency of the baseline on a device, and of every variant with an engine of its own: same requests, in
    turn, one after the other and then as they arrive by a schedule.

    Each runs in a process of its own: this one holds none, and none inherits another's memory or threads.
    """
    from bench.tasks import read_items
    from engines.processor import Processor

    items = read_items(built.items.path / "items.jsonl")
    processor = Processor.load(built.artifacts["fp16"].path)
    requests = [processor(item.messages) for item in items[: recipe.latency.requests]]
    settings = recipe.latency.model_dump(include={"output_tokens", "repeats", "most_repeats"})
    baseline = BASELINES[device]
    mine = [name for name in built.answers if name in KINDS and KINDS[name].device == device]
    folders = dict.fromkeys((baseline, baseline + AGAIN), built.artifacts["fp16"].path)
    folders |= {name: built.artifacts[name].path for name in mine if KINDS[name].runs}
    arms = "; ".join(folders)
    console.say(f"latency: {len(requests)} requests x {recipe.latency.repeats} for each of {arms}")
    # Engines were compiled for so many sequences.
    batches = [size for size in recipe.latency.batches if device == "cpu" or size <= recipe.gate.batch]

    def is_steady(found: Sequence[Timing]) -> bool:
        return steady(single(found, baseline), single(found, baseline + AGAIN), recipe.gate)

    with ExitStack() as processes, console.progress("latency") as progress:
        opened = {
            arm: processes.enter_context(in_a_process(folder, device)) for arm, folder in folders.items()
        }
        timings = measure(
            opened,
            requests,
            **settings,
            warmup=recipe.latency.warmup,
            batches=batches,
            watch=device == "cuda",
            steady=is_steady,
            progress=progress,
        )
        rates = recipe.latency.rates
        timings += under_load(
            opened, requests, timings, rates, **settings, steady=is_steady, progress=progress
        )
    for line in noise_lines(single(timings, baseline), single(timings, baseline + AGAIN), recipe.gate):
        console.say(f"noise, {baseline} against itself: {line}")
    return Timed(timings, environment())


def judge(variant: str, recipe: Recipe, built: Built, timings: list[Timing]) -> Gate:
    """The gate on a variant's evidence. What a variant cannot have is not asked of it."""
    waivers = tuple(waiver for waiver in recipe.gate.waivers if waiver.variant in (None, variant))
    limits = recipe.gate.model_copy(update={"waivers": waivers})
    if variant == "fp16":  # nothing to compare the baseline with but the budget
        limits = limits.model_copy(update=dict.fromkeys((*QUALITY, *LATENCY)) | {"slice_margins": {}})
    elif not KINDS[variant].runs:  # a checkpoint is as fast as the engine that will run it
        limits = limits.model_copy(update=dict.fromkeys(LATENCY))
    baseline = BASELINES[KINDS[variant].device]
    absent = KINDS[variant].target is not None and variant not in built.answers
    peak, base = built.peak_memory(variant), built.peak_memory(baseline)
    measurements = Measurements(
        baseline=built.artifacts["fp16"].digest,
        candidate=built.artifacts[variant].digest,
        baseline_answers=built.observations(baseline),
        candidate_answers=built.observations(variant),
        baseline_timings=single(timings, baseline),
        again_timings=single(timings, baseline + AGAIN),
        candidate_timings=single(timings, variant),
        fidelity=built.fidelity(variant),
        bytes=built.artifacts[variant].manifest.bytes,
        baseline_bytes=built.artifacts["fp16"].manifest.bytes,
        peak_memory_bytes=peak.peak_memory_bytes if peak else None,
        baseline_peak_memory_bytes=base.peak_memory_bytes if base else None,
        memory_at=(recipe.gate.context, recipe.gate.batch),
        resident_bytes=peak.resident_bytes if peak else (),
        unmeasured=dict.fromkeys(ON_DEVICE, _elsewhere(variant, recipe)) if absent else {},
    )
    before, after = of_arm(timings, baseline), of_arm(timings, variant)
    figures = observed(before, after, recipe.price.per_hour, recipe.price.currency)
    return gate(measurements, limits).model_copy(update={"observed": figures})


def _elsewhere(variant: str, recipe: Recipe) -> str:
    """Why a variant is not measured, and what measures it where it can be."""
    model = "" if recipe.model == "embedded" else f" --model {recipe.model}"
    command = f"python -m build all --recipe {recipe.name}{model} --only {variant}"
    return f"no GPU of {KINDS[variant].target} where this was built; on a machine that has it: {command}"


def documents(
    variant: str,
    recipe: Recipe,
    built: Built,
    judged: Gate,
    timings: list[Timing],
    environments: Mapping[str, dict[str, Any]],
) -> dict[str, Path | str | dict[str, Any]]:
    """What goes into a published variant's evidence folder, by file name: files, texts and JSON.

    environments: of the machines that measured, by device.
    """
    artifact = built.artifacts[variant].path
    # What calibration saw is written beside the weights it chose, which an engine was made from.
    weights = built.artifacts[KINDS[variant].made_from or variant].path if KINDS[variant].runs else artifact
    files = [weights / name for name in ("calibration.json", "quantization.json")]
    found: dict[str, Path | str | dict[str, Any]] = {file.name: file for file in files if file.is_file()}
    found["observations.jsonl"] = as_lines(built.observations(variant))
    if fidelity := built.fidelity(variant):
        found["fidelity.json"] = fidelity.model_dump()
    baseline = BASELINES[KINDS[variant].device]
    arms = (baseline, baseline + AGAIN, variant)
    compared = [timing for timing in timings if timing.arm in arms]
    if any(timing.arm == variant for timing in compared):
        found["latency.jsonl"] = as_lines(compared)
    return found | {
        "gate.json": judged.model_dump(mode="json"),
        "memory.json": built.memory[variant].path / "memory.json",
        "environment.json": environments[KINDS[variant].device],
        "recipe.json": recipe.model_dump(mode="json"),
        "commands.sh": COMMANDS.format(variant=variant),
    }


def differing(built: Built) -> list[Example]:
    """Some items that a variant answers differently from the baseline."""
    from bench.tasks import find_items

    chosen = choose("fp16", {variant: built.observations(variant) for variant in built.artifacts})
    asked = find_items(built.items.path / "items.jsonl", [one for one, _ in chosen])
    return show(chosen, asked)


def report(
    summary: dict[str, Any],
    built: Built,
    gates: dict[str, Gate],
    timings: list[Timing],
    examples: Sequence[Example],
    path: Path,
) -> None:
    """The page for people."""
    from bench.report import VariantEvidence, write_report

    def layers(variant: str) -> list[Any]:
        described = built.artifacts[variant].path / "quantization.json"
        return list(json.loads(described.read_text())["layers"]) if described.is_file() else []

    variants = [
        VariantEvidence(
            name=variant,
            gate=judged,
            observations=built.observations(variant),
            timings=of_arm(timings, variant),
            compared=[] if variant == "fp16" else of_arm(timings, BASELINES[KINDS[variant].device]),
            layers=layers(variant),
        )
        for variant, judged in gates.items()
    ]
    write_report(summary, variants, path, examples)


def environment() -> dict[str, Any]:
    """Where a measurement was made."""
    gpu = find_gpu()
    return {
        "host": socket.gethostname(),
        "processor": processor_name(),
        "gpu": asdict(gpu) if gpu else None,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "packages": {
            item.name: item.version for item in sorted(distributions(), key=lambda item: item.name.lower())
        },
        **project_revision(),
    }
