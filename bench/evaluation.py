"""A variant's evaluation on disk: its answers, and how far its distributions are from the baseline's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.accuracy import evaluate, read_observations, write_observations
from bench.fidelity import compare, read_record, record, write_record
from bench.tasks import read_items
from engines.artifact import write_json
from engines.processor import Processor
from engines.session import open_session


def evaluate_variant(
    directory: Path,
    items: Path,
    baseline: Path | None,
    out: Path,
    *,
    device: str = "cpu",
    max_tokens: int,
    batch_size: int,
    fidelity_items: int,
    progress: Callable[[int, int], None],
) -> None:
    """Writes ``observations.jsonl``, and ``fidelity.json`` against the baseline's folder.

    The baseline itself, which has nothing to be compared with, writes its ``distributions.npz`` instead.
    """
    questions = read_items(items)
    processor, session = Processor.load(directory), open_session(directory, device=device)
    progress(0, len(questions))
    observations = evaluate(
        session, processor, questions, max_tokens=max_tokens, batch_size=batch_size, progress=progress
    )
    out.mkdir()
    write_observations(out / "observations.jsonl", observations)
    reference = read_observations(baseline / "observations.jsonl") if baseline else observations
    recorded = record(session, processor, questions[:fidelity_items], reference[:fidelity_items], batch_size)
    if baseline is None:
        write_record(out / "distributions.npz", recorded)
    else:
        fidelity = compare(read_record(baseline / "distributions.npz"), recorded, reference, observations)
        write_json(out / "fidelity.json", fidelity.model_dump())
