"""Published variants as a selection sees them: their manifest, their gate, and what was measured of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

from bench.accuracy import Observation, read_observations
from bench.latency import Timing, of_arm
from bench.records import read_records
from build.publish import published
from build.release.verdict import refusal
from engines.artifact import MANIFEST, Manifest
from engines.config import ModelConfig
from engines.errors import UserError


@dataclass(frozen=True)
class Published:
    """One published folder. Reading its evidence raises UserError where that is broken.

    reference: where all of it is, if only what a selection reads is in the folder.
    """

    path: Path
    manifest: Manifest
    reference: str | None = None

    @property
    def model(self) -> str:
        return self.path.resolve().parent.name

    @property
    def variant(self) -> str:
        return self.manifest.variant or self.manifest.name

    @property
    def runtime(self) -> str:
        """What runs it; a checkpoint without an engine of its own is run by transformers here."""
        return str((self.manifest.engine or {}).get("runtime", "transformers"))

    @property
    def target(self) -> str | None:
        """Compute capability its engines are for."""
        return (self.manifest.engine or {}).get("target")

    @cached_property
    def config(self) -> ModelConfig:
        return ModelConfig.load(self.path)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Where it was measured."""
        return self._json("environment.json")

    @cached_property
    def gate(self) -> dict[str, Any]:
        return self._json("gate.json")

    @cached_property
    def answers(self) -> list[Observation]:
        path = self._evidence("observations.jsonl")
        return read_observations(path) if path.is_file() else []

    @cached_property
    def timings(self) -> list[Timing]:
        """Its own requests, answered one at a time; none of a checkpoint, which other engines run."""
        path = self._evidence("latency.jsonl")
        found = read_records(path, Timing) if path.is_file() else []
        return of_arm(found, self.variant)

    @property
    def measured_on(self) -> str:
        """Name of the device of the measurements."""
        gpu = self.environment.get("gpu") or {}
        where = gpu.get("name") if self.target else self.environment.get("processor")
        return str(where or "an unnamed device")

    @property
    def accuracy(self) -> tuple[float, float] | None:
        """Mean score in percent, and half the width of its 95 % interval (normal)."""
        if not self.answers:
            return None
        n = len(self.answers)
        share = sum(answer.score for answer in self.answers) / n
        return 100 * share, 196 * sqrt(share * (1 - share) / n)

    def latency(self) -> dict[str, float] | None:
        """Medians over the requests, None where nothing was timed."""
        names = (
            "prompt_tokens",
            "output_tokens",
            "ttft_ms",
            "itl_ms",
            "e2e_latency_ms",
            "output_tokens_per_s",
        )
        if not self.timings:
            return None
        return {name: median(float(getattr(timing, name)) for timing in self.timings) for name in names}

    def problem(self) -> str | None:
        """Why it is not fit to be chosen, whatever the device: files that are missing, a gate not passed."""
        listed = {**self.manifest.files, **self.manifest.evidence}
        for name, file in listed.items() if self.reference is None else ():
            path = self.path / name
            if not path.is_file() or path.stat().st_size != file.bytes:
                return f"damaged: {name} is missing or cut short; pull or build it again"
        return refusal(self.gate)

    def _evidence(self, name: str) -> Path:
        return self.path / "evidence" / name

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self._evidence(name).read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            raise UserError(f"{self._evidence(name)} is not JSON; pull or build the variant again") from None
        return dict(found)


def read_catalogue(
    root: Path, model: str | None = None, references: Mapping[Path, str] | None = None
) -> list[Published]:
    """Every published variant of one model below `root`; UserError when there is none, or several models.

    references: where those are whose folders are not all of them.
    """
    found = [
        Published(folder, Manifest.read(folder), (references or {}).get(folder)) for folder in published(root)
    ]
    models = sorted({one.model for one in found})
    if model is not None:
        if model not in models:
            where = "the catalogue" if references else root
            raise UserError(f"{where} has no model {model}; it has {', '.join(models) or 'none'}")
        return [one for one in found if one.model == model]
    if not found:
        raise UserError(
            f"nothing is published below {root}: expected <model>/<variant>/{MANIFEST}, "
            "as `python -m build all` makes and `build pull` fetches it"
        )
    if len(models) > 1:
        where = "the catalogue" if references else root
        raise UserError(f"{where} has several models: name one with --model, of {', '.join(models)}")
    return found
