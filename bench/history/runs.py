"""What every build measured, one JSON line for each of its variants, appended and never rewritten.

A line stands on its own: it says on what hardware, with which versions and of which commit its figures were
made, and keeps the score of every item, so that two builds can be compared item by item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.accuracy import Observation, by_task
from bench.records import append_records, read_records
from bench.verdict import Gate

FILE = "history.jsonl"
PACKAGES = ("onnxruntime", "torch", "transformers", "tokenizers", "numpy", "pillow")


@dataclass(frozen=True)
class Run:
    """One variant of one build, whose lines share `time` (UTC).

    `published`: it passed and was put in place. `scores` of the items by task, in their order; `items` tells
    which they were. `figures`: metric -> value and the ends of its interval: accuracy in percent, latencies
    as ratios to the baseline of the same build, from which the machine cancels.
    """

    time: str
    model: str
    variant: str
    digest: str
    verdict: str
    published: bool
    hardware: dict[str, Any]
    commit: str | None
    dirty: bool
    versions: dict[str, str]
    items: str
    scores: dict[str, list[float]]
    figures: dict[str, tuple[float, float, float]]
    bytes: int
    peak_memory_bytes: int | None

    @property
    def machine(self) -> tuple[Any, Any]:
        """Runs of different ones are not compared."""
        return self.hardware.get("processor"), (self.hardware.get("gpu") or {}).get("name")


def append_build(
    path: Path,
    summary: Mapping[str, Any],
    gates: Mapping[str, Gate],
    answers: Mapping[str, Sequence[Observation]],
    time: str,
) -> None:
    """Adds a line for each variant of a build. `summary` is what `build all --json` prints."""
    append_records(path, _runs(summary, gates, answers, time))


def read_history(paths: Sequence[Path]) -> list[Run]:
    """All lines of several files, oldest first. Raises UserError naming file and line."""
    found = (run for path in paths for run in read_records(path, Run, appended=True))
    return sorted(found, key=lambda run: run.time)


def _runs(
    summary: Mapping[str, Any],
    gates: Mapping[str, Gate],
    answers: Mapping[str, Sequence[Observation]],
    time: str,
) -> Iterator[Run]:
    known = summary["environment"]
    packages = known.get("packages", {})
    for row in summary["variants"]:
        observations = answers[row["name"]]
        yield Run(
            time=time,
            model=summary["model"],
            variant=row["name"],
            digest=row["digest"],
            verdict=str(row["verdict"]),
            published=row["path"] is not None,
            hardware={name: known.get(name) for name in ("processor", "gpu", "memory_bytes")},
            commit=known.get("commit"),
            dirty=bool(known.get("dirty")),
            versions={name: packages[name] for name in PACKAGES if name in packages},
            items=_digest([x.id for x in observations]),
            scores={task: [round(x.score, 4) for x in rows] for task, rows in by_task(observations).items()},
            figures=_figures(gates[row["name"]], observations),
            bytes=row["bytes"],
            peak_memory_bytes=row["peak_memory_bytes"],
        )


def _figures(judged: Gate, observations: Sequence[Observation]) -> dict[str, tuple[float, float, float]]:
    found = {}
    if observations:
        scored = 100 * sum(x.score for x in observations) / len(observations)
        found["accuracy"] = (scored, scored, scored)  # the baseline's: nothing it could differ from
    for check in judged.checks:
        if check.delta is None or check.ci_low is None or check.ci_high is None or check.slice != "all":
            continue
        ends = (check.delta, check.ci_low, check.ci_high)
        if check.relative:
            found[check.metric] = ends
        elif check.metric == "accuracy" and check.baseline is not None:
            first, low, high = (check.baseline + end for end in ends)
            found[check.metric] = (first, low, high)
    return found


def _digest(ids: Sequence[str]) -> str:
    return f"sha256:{hashlib.sha256(' '.join(ids).encode()).hexdigest()}"
