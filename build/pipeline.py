"""``build all``: one checkpoint in, gated and published variants out. Reads top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from build import stages
from build.console import Console
from build.publish import publish, write_report
from build.recipe import MADE_FROM, Recipe
from build.source import Source
from build.stages import Step
from build.store import Entry, Run, Work
from engines.artifact import write_json


class Doer(Protocol):
    """The store, or in a plan something that only says what the store would do."""

    def do(self, work: Work, run: Run) -> Entry: ...


@dataclass(frozen=True)
class Built:
    """Every folder of one build, by variant."""

    artifacts: dict[str, Entry]
    items: Entry
    answers: dict[str, Entry]
    memory: dict[str, Entry]


def make(recipe: Recipe, source: Source, store: Doer, console: Console) -> Built:
    """All work that is cached: conversions first, then what is measured once."""

    def do(step: Step) -> Entry:
        return store.do(*step)

    artifacts = {"fp16": do(stages.checkpoint(source))}
    asked = do(stages.items(recipe.evaluate, recipe.quantize))
    for variant in recipe.variants:
        parent = MADE_FROM[variant]
        if parent is None:
            continue
        base = artifacts[parent]
        if variant.endswith("onnx") or variant.startswith("onnx"):
            artifacts[variant] = do(stages.exported(variant, base, source, recipe.export))
        else:
            method = variant.removesuffix("-int4")
            artifacts[variant] = do(stages.quantized(method, base, source, recipe.quantize, console))

    answers: dict[str, Entry] = {}
    for variant, artifact in artifacts.items():
        baseline = answers.get("fp16")
        answers[variant] = do(stages.evaluated(variant, artifact, asked, baseline, recipe.evaluate, console))
    memory = {variant: do(stages.memory(variant, artifact, recipe.gate)) for variant, artifact in artifacts.items()}
    return Built(artifacts, asked, answers, memory)
