"""A baseline's run kept on disk, for candidates of another day: its questions, its answers, and its
next-token distributions along them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.accuracy import Observation, read_observations, write_observations
from bench.fidelity import Record, read_record, record, write_record
from bench.resources import disk_bytes
from bench.tasks import Item, read_items, write_items
from engines.artifact import MANIFEST, Manifest, canonical_digest, hash_folder, write_json
from engines.errors import UserError

if TYPE_CHECKING:
    from engines.session import Session

FACTS = "run.json"  # written last: a folder without it is no run
FIDELITY_ITEMS = 100
PACKAGES = ("torch", "transformers", "onnxruntime", "numpy", "pillow")


class Facts(BaseModel):
    """What was run, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = Field(description="Folder of the variant, as it was given.")
    digest: str = Field(description="Its digest.")
    bytes: int = Field(description="Its bytes on disk.")
    max_tokens: int = Field(description="Longest answer, in tokens.")
    packages: dict[str, str] = Field(description="Versions that answers depend on.")


@dataclass(frozen=True)
class Run:
    """A run as it was kept."""

    facts: Facts
    items: list[Item]
    answers: list[Observation]
    distributions: Record


def is_run(folder: Path) -> bool:
    """Whether a run was kept there."""
    return (folder / FACTS).is_file()


def write_run(
    out: Path,
    directory: Path,
    session: Session,
    items: Sequence[Item],
    answers: Sequence[Observation],
    max_tokens: int,
) -> None:
    """Makes the folder `out`, in one step."""
    from engines.processor import Processor

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_items(partial / "items.jsonl", items)
    write_observations(partial / "observations.jsonl", answers)
    found = record(session, Processor.load(directory), items[:FIDELITY_ITEMS], answers[:FIDELITY_ITEMS])
    write_record(partial / "distributions.npz", found)
    facts = Facts(
        path=str(directory),
        digest=digest(directory),
        bytes=disk_bytes(directory),
        max_tokens=max_tokens,
        packages={name: version(name) for name in PACKAGES},
    )
    write_json(partial / FACTS, facts.model_dump())
    partial.rename(out)


def read_run(folder: Path) -> Run:
    """Raises UserError where a file is missing, damaged or of another run."""
    try:
        facts = Facts.model_validate_json((folder / FACTS).read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{folder / FACTS} is no run's: {str(error).splitlines()[0]}; keep it anew") from None
    items, answers = read_items(folder / "items.jsonl"), read_observations(folder / "observations.jsonl")
    if [item.id for item in items] != [answer.id for answer in answers]:
        raise UserError(f"{folder}: {len(answers)} answers are not to its {len(items)} items; keep it anew")
    return Run(facts, items, answers, read_record(folder / "distributions.npz"))


def digest(directory: Path) -> str:
    """Of an artifact its manifest's, of a checkpoint that of all its files."""
    if (directory / MANIFEST).is_file():
        return Manifest.read(directory).digest
    return canonical_digest({name: file.sha256 for name, file in hash_folder(directory).items()})
