"""``build all``: one checkpoint in, gated and published variants out. Reads top to bottom."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from bench.breakdown import breakdown
from bench.history.runs import FILE, append_build
from bench.resources import largest_process
from bench.sentences import sentence, whole
from bench.verdict import Verdict
from build import stages
from build.console import Console
from build.evidence import Built, differing, documents, environment, judge, report, runs_here, time_requests
from build.markdown import markdown
from build.publish import publish
from build.recipe import BASELINES, KINDS, Recipe
from build.release.verdict import refusal
from build.source import Source
from build.store import Entry, Run, Store, Work
from engines.artifact import write_json, write_whole


class Doer(Protocol):
    """The store, or in a plan something that only says what the store would do."""

    def do(self, work: Work, run: Run) -> Entry: ...


def make(recipe: Recipe, source: Source, store: Doer, console: Console) -> Built:
    """All the work that is cached: conversions first, then what is measured once."""
    stages.check_targets(recipe.variants)
    artifacts = {"fp16": store.do(*stages.checkpoint(source))}
    items = store.do(*stages.items(recipe.evaluate, recipe.quantize, artifacts["fp16"]))
    for variant in map(str, recipe.variants):
        kind = KINDS[variant]
        if kind.made_from is None:
            continue
        base = artifacts[kind.made_from]
        if kind.target:
            network = store.do(*stages.standard(base, source))
            step = stages.engines(variant, network, source, recipe.gate)
        elif kind.onnx:
            step = stages.exported(variant, base, source, recipe.export, recipe.quantize)
        else:
            step = stages.quantized(variant, base, source, recipe.quantize, console)
        artifacts[variant] = store.do(*step)

    answers: dict[str, Entry] = {}
    memory: dict[str, Entry] = {}
    measured = [variant for variant in artifacts if runs_here(variant)]
    for device in dict.fromkeys(KINDS[variant].device for variant in measured):
        baseline = BASELINES[device]
        arms = {baseline: artifacts["fp16"]}
        arms |= {name: artifacts[name] for name in measured if KINDS[name].device == device}
        for name, artifact in arms.items():
            step = stages.evaluated(
                name, artifact, items, answers.get(baseline), recipe.evaluate, device, console
            )
            answers[name] = store.do(*step)
            memory[name] = store.do(*stages.memory(name, artifact, recipe.gate, device))
    return Built(artifacts, items, answers, memory)


def build_all(recipe: Recipe, source: Source, out: Path, console: Console) -> dict[str, Any]:
    """Builds, measures, gates and publishes; returns the summary that is also written to summary.json."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    built = make(recipe, source, Store(out / ".store", console.say), console)
    timings = time_requests(recipe, built, console)
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
            found = documents(variant, recipe, built, judged, timings)
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
        "environment": environment(),
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
