"""``build plan``: the pipeline walked with nothing done; what would run, why, and what it will need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.suites.catalogue import load_suite
from build import forecast, rates, shared, stages
from build.console import Console
from build.measuring import SHARD
from build.pipeline import make
from build.place import Here
from build.recipe import KINDS, Recipe
from build.source import Source
from build.stages import Step
from build.store import Entry, Store, Work
from engines.artifact import Manifest
from engines.config import ModelConfig
from engines.errors import UserError
from engines.processor import Inputs, Processor
from engines.units import human_size
from quantize.calibration import prepare, read_samples

SAMPLE = 64  # items whose mean stands for all


class Planner(Here):
    """This machine, but work that is missing is written down instead of done."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.planned: list[tuple[Work, Entry]] = []
        self._pending: dict[str, str] = {}  # digest that a result will not have -> its name

    def do(self, stage: Callable[..., Step], *arguments: Any, target: str | None = None) -> Entry:
        work, _ = stage(*arguments)
        waits = [role for role, digest in work.inputs.items() if digest in self._pending]
        found = f"its {waits[0]} will be built first" if waits else self.store.find(work)
        if isinstance(found, str) and not waits:
            found = self._shared(work) or found
        if isinstance(found, str):
            stub = Manifest(
                name=work.name, stage=work.stage, stage_version=work.stage_version, key=work.key, files={}
            )
            found = Entry(self.store.folder(work), stub, cached=False, reason=found)
            self._pending[found.digest] = work.name
        self.planned.append((work, found))
        return found

    def _shared(self, work: Work) -> Entry | None:
        """What would be fetched."""
        folder, url = self.store.folder(work), self.store.url
        manifest = shared.read_manifest(url, folder) if url else None
        return Entry(folder, manifest, cached=True, reason=f"is at {url}") if manifest else None


def plan(recipe: Recipe, source: Source, store: Store, out: Path, memory: int) -> dict[str, Any]:
    """The steps of a build with the reason of each miss, and the forecast of what it needs.

    memory: bytes for which every variant's longest context is told.
    """
    planner = Planner(store)
    built = make(recipe, source, planner, Console())
    config, group = ModelConfig.load(source.path), recipe.quantize.group_size
    machine = rates.measure()
    asked, seen = _loads(recipe, source)
    steps: list[dict[str, Any]] = []
    for work, entry in planner.planned:
        needed = 0.0
        if not entry.cached:
            variant = work.name.partition(SHARD)[0]
            needed = forecast.seconds(work.stage, config, variant, recipe, machine, asked, seen)
        steps.append(
            {
                "stage": work.stage,
                "name": work.name,
                "runs": not entry.cached,
                "reason": entry.reason,
                "seconds": round(needed, 1),
            }
        )
    runs = [name for name in recipe.variants if KINDS[name].runs and name in built.answers]
    arms = ["fp16", "fp16", *runs]
    needed = forecast.latency_seconds(config, recipe, machine, asked, arms)
    steps.append(
        {
            "stage": "latency",
            "name": "all",
            "runs": True,
            "reason": "measured anew each time",
            "seconds": round(needed, 1),
        }
    )
    gate = recipe.gate
    variants: list[dict[str, Any]] = [
        {
            "name": variant,
            "disk_bytes": forecast.disk_bytes(config, variant, group),
            "memory_bytes": forecast.memory_bytes(config, variant, group, gate.context, gate.batch),
            "longest_context": forecast.longest_context(config, variant, group, gate.batch, memory),
        }
        for variant in recipe.variants
    ]
    return {
        "model": source.name,
        "out": str(out),
        "context": gate.context,
        "batch": gate.batch,
        "memory": memory,
        "steps": steps,
        "variants": variants,
        "seconds": round(sum(step["seconds"] for step in steps), 1),
        "disk_bytes": sum(
            forecast.disk_bytes(config, step["name"].removesuffix(stages.STANDARD), group)
            for step in steps
            if step["runs"] and step["stage"] in ("checkpoint", "quantize", "export", "tensorrt")
        ),
    }


def check_memory(recipe: Recipe, source: Source, memory: int) -> None:
    """UserError unless every variant with an engine of its own fits the recipe's context into `memory` bytes.

    The baseline and the INT4 checkpoints are not held to it: other engines will run them.
    """
    config, gate, group = ModelConfig.load(source.path), recipe.gate, recipe.quantize.group_size
    for variant in recipe.variants:
        needed = forecast.memory_bytes(config, variant, group, gate.context, gate.batch)
        if KINDS[variant].runs and needed > memory:
            longest = forecast.longest_context(config, variant, group, gate.batch, memory)
            remedy = f"set gate.context to {longest} or less" if longest else "no context fits"
            raise UserError(
                f"{variant} at context {gate.context} x {gate.batch} needs about {human_size(needed)}, "
                f"--memory is {human_size(memory)}: {remedy}"
            )


def _loads(recipe: Recipe, source: Source) -> tuple[forecast.Load, forecast.Load]:
    """The evaluation items and the calibration set, both from a sample."""
    processor = Processor.load(source.path)
    items = load_suite(recipe.evaluate.suite, min(recipe.evaluate.items, SAMPLE), recipe.evaluate.seed)
    samples = read_samples(stages.calibration_file(recipe.quantize))
    lengths = [len(processor.tokenizer.encode(item.answer).ids) + 1 for item in items]  # and an end token
    size = recipe.evaluate.batch_size
    batches = [max(lengths[i : i + size]) for i in range(0, len(lengths), size)]
    asked = replace(_mean([processor(item.messages) for item in items]), steps=sum(batches) / len(batches))
    seen = _mean(prepare(samples[:SAMPLE], processor))
    return asked, replace(seen, prompts=len(samples))


def _mean(prompts: Sequence[Inputs]) -> forecast.Load:
    patches = sum(len(media.pixels) for prompt in prompts for media in prompt.media)
    return forecast.Load(
        sum(len(prompt.input_ids) for prompt in prompts) / len(prompts), patches / len(prompts)
    )
