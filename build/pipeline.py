"""``build all``: one checkpoint in, gated and published variants out. Reads top to bottom."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from bench.breakdown import breakdown
from bench.history.runs import FILE, append_build
from bench.resources import largest_process
from bench.sentences import sentence, whole
from bench.verdict import Verdict
from build import measuring, stages
from build.console import Console
from build.evidence import Built, differing, documents, judge, report, time_requests
from build.markdown import markdown
from build.place import Place
from build.publish import publish
from build.recipe import BASELINES, KINDS, Recipe
from build.release.verdict import refusal
from build.source import Source
from build.store import Entry
from engines.artifact import write_json, write_whole
from engines.errors import UserError


def make(recipe: Recipe, source: Source, place: Place, console: Console) -> Built:
    """All the work that is cached: conversions first, then what is measured once."""
    for target in dict.fromkeys(KINDS[variant].target for variant in recipe.variants):
        if target:
            variants = [variant for variant in recipe.variants if KINDS[variant].target == target]
            place.call(stages.check_targets, variants, target=target)
    artifacts = {"fp16": place.do(stages.checkpoint, source)}
    items = place.do(measuring.items, recipe.evaluate, recipe.quantize, artifacts["fp16"])
    for variant in map(str, recipe.variants):
        kind = KINDS[variant]
        if kind.made_from is None:
            continue
        base = artifacts[kind.made_from]
        if kind.target:
            network = place.do(stages.standard, base, source)
            artifacts[variant] = place.do(
                stages.engines, variant, network, source, recipe.gate, target=kind.target
            )
        elif kind.onnx:
            artifacts[variant] = place.do(
                stages.exported, variant, base, source, recipe.export, recipe.quantize
            )
        else:
            artifacts[variant] = place.do(stages.quantized, variant, base, source, recipe.quantize, console)

    answers: dict[str, list[Entry]] = {}
    memory: dict[str, Entry] = {}
    for device, target in measured_on(recipe, place).items():
        baseline = BASELINES[device]
        arms = {baseline: artifacts["fp16"]}
        arms |= {name: artifacts[name] for name in recipe.variants if KINDS[name].target == target}
        for name, artifact in arms.items():
            given = (name, artifact, items, recipe.evaluate, device, console)
            answers[name] = [
                place.do(measuring.evaluated, *given, shard, beside, target=target)
                for shard, beside in enumerate(answers.get(baseline) or [None] * recipe.evaluate.shards)
            ]
            memory[name] = place.do(measuring.memory, name, artifact, recipe.gate, device, target=target)
    return Built(
        {name: place.wait(artifact) for name, artifact in artifacts.items()},
        items,
        {name: [place.wait(shard) for shard in shards] for name, shards in answers.items()},
        {name: place.wait(peak) for name, peak in memory.items()},
    )


def measured_on(recipe: Recipe, place: Place) -> dict[str, str | None]:
    """The devices that variants are measured on, with the target of those that run on a GPU."""
    targets = {target for variant in recipe.variants if (target := KINDS[variant].target)} & place.targets
    if len(targets) > 1:
        raise UserError(
            f"variants for {' and '.join(sorted(targets))} in one build have no common baseline; "
            "name those of one GPU with --only, and then the others: what is done stays done"
        )
    return {"cpu": None, **({"cuda": targets.pop()} if targets else {})}


def build_all(recipe: Recipe, source: Source, out: Path, place: Place, console: Console) -> dict[str, Any]:
    """Builds, measures, gates and publishes; returns the summary that is also written to summary.json."""
    began = time.monotonic()
    built = make(recipe, source, place, console)
    timings, environments = [], {}
    for device, target in measured_on(recipe, place).items():
        timed = place.call(time_requests, recipe, built, device, console, target=target)
        timings += timed.timings
        environments[device] = timed.environment
    gates = {variant: judge(variant, recipe, built, timings) for variant in built.artifacts}
    folder = out / source.name
    folder.mkdir(exist_ok=True)
    rows = []
    for variant, artifact in built.artifacts.items():
        judged, peak = gates[variant], built.peak_memory(variant)
        leaves = peak is not None and refusal(judged.model_dump(mode="json")) is None
        if leaves and peak:
            needs = {
                "device": KINDS[variant].target or "cpu",
                "memory_bytes": peak.peak_memory_bytes,
                "context": peak.context,
                "batch": peak.batch,
                "image_tokens": peak.image_tokens,
            }
            found = documents(variant, recipe, built, judged, timings, environments)
            publish(artifact, found, needs, folder / variant)
        console.say(f"gate {variant}: {judged.verdict}{'' if leaves else ', not published'}")
        for waiver in judged.waivers:
            console.say(
                f"gate {variant}: waiver {waiver['status']}: {waiver['check']}, until {waiver['expires']}"
            )
        rows.append(
            {
                "name": variant,
                "path": str(folder / variant) if leaves else None,
                "digest": artifact.digest,
                "verdict": str(judged.verdict),
                "sentence": sentence(variant, judged),
                "waivers": judged.waivers,
                "bytes": artifact.manifest.bytes,
                "peak_memory_bytes": peak.peak_memory_bytes if peak else None,
                "latency": breakdown([timing for timing in timings if timing.arm == variant]),
                "observed": [row.model_dump(mode="json") for row in judged.observed],
                "cached": artifact.cached,
                "checks": [check.model_dump(mode="json") for check in judged.checks],
                "slices": [row.model_dump(mode="json") for row in judged.slices] if variant != "fp16" else [],
            }
        )
    summary: dict[str, Any] = {
        "model": source.name,
        "out": str(out),
        "verdict": _worst({judged.verdict for judged in gates.values()}),
        "sentence": whole(gates),
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": largest_process(),
        "recipe": recipe.model_dump(mode="json"),
        "environment": environments["cpu"],
        "variants": rows,
    }
    examples = differing(built)
    answers = {variant: built.observations(variant) for variant in built.artifacts}
    with FileLock(folder / ".summary.lock"):  # two builds at once take turns
        write_json(folder / "summary.json", summary)
        write_whole(folder / "summary.md", markdown(summary, examples))
        report(summary, built, gates, timings, examples, folder / "report.html")
        append_build(folder / FILE, summary, gates, answers, datetime.now(UTC).isoformat(timespec="seconds"))
    return summary


def _worst(verdicts: set[Verdict]) -> str:
    """The whole build's verdict; what has no device here takes no part in it."""
    return next(str(verdict) for verdict in Verdict if verdict in verdicts - {Verdict.UNMEASURED})
