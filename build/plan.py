"""``build plan``: the pipeline walked with nothing done; what would run, why, and what it will need."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from build import forecast
from build.console import Console
from build.pipeline import make
from build.recipe import Recipe
from build.source import Source
from build.store import Entry, Run, Store, Work
from engines.artifact import Manifest
from engines.config import ModelConfig


@dataclass
class Planner:
    """Stands where the store stands; work that is missing is written down instead of done."""

    store: Store
    planned: list[tuple[Work, str | None]] = field(default_factory=list)
    pending: dict[str, str] = field(default_factory=dict)  # digest that a result will not have -> its name

    def do(self, work: Work, run: Run) -> Entry:
        waits = [role for role, digest in work.inputs.items() if digest in self.pending]
        found = f"its {waits[0]} will be built first" if waits else self.store.find(work)
        if isinstance(found, Entry):
            self.planned.append((work, None))
            return found
        self.planned.append((work, found))
        stub = Manifest(
            name=work.name, stage=work.stage, stage_version=work.stage_version, key=work.key, files={}
        )
        entry = Entry(self.store.folder(work), stub, cached=False, reason=found)
        self.pending[entry.digest] = work.name
        return entry


def plan(recipe: Recipe, source: Source, out: Path) -> dict[str, Any]:
    """The steps of a build with the reason of each miss, and the forecast of what it needs."""
    planner = Planner(Store(out / ".store"))
    make(recipe, source, planner, Console())
    config = ModelConfig.load(source.path)
    flops = forecast.measure_flops()
    group = recipe.quantize.group_size
    steps: list[dict[str, Any]] = []
    for work, why in planner.planned:
        seconds = 0.0 if why is None else forecast.seconds(work.stage, config, work.name, recipe, flops)
        steps.append(
            {
                "stage": work.stage,
                "name": work.name,
                "runs": why is not None,
                "reason": why or "cache hit",
                "seconds": round(seconds, 1),
            }
        )
    variants: list[dict[str, Any]] = [
        {
            "name": variant,
            "disk_bytes": forecast.disk_bytes(config, variant, group),
            "memory_bytes": forecast.memory_bytes(config, variant, recipe),
        }
        for variant in recipe.variants
    ]
    return {
        "model": source.name,
        "out": str(out),
        "context": recipe.gate.context,
        "batch": recipe.gate.batch,
        "steps": steps,
        "variants": variants,
        "seconds": round(sum(step["seconds"] for step in steps), 1),
        "disk_bytes": sum(
            variant["disk_bytes"]
            for variant in variants
            if any(step["runs"] and step["name"] == variant["name"] for step in steps)
        ),
    }
