"""A variant's evaluation on disk, shard by shard: its answers, and how far its distributions are from the
baseline's.

Items are dealt to the shards in turn, like cards. No batch holds items of two shards, so what is answered
does not depend on where a shard is done, or on what is done beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from bench.accuracy import Observation, evaluate, read_observations, write_observations
from bench.fidelity import Distance, Fidelity, distances, read_record, record, summarize, write_record
from bench.records import read_records, write_records
from bench.tasks import read_items
from engines.processor import Processor
from engines.session import open_session

OBSERVATIONS, DISTRIBUTIONS, DISTANCES = "observations.jsonl", "distributions.npz", "distances.jsonl"
T = TypeVar("T")


def evaluate_shard(
    directory: Path,
    items: Path,
    baseline: Path | None,
    out: Path,
    *,
    shard: int,
    shards: int,
    device: str = "cpu",
    max_tokens: int,
    batch_size: int,
    fidelity_items: int,
    progress: Callable[[int, int], None],
) -> None:
    """Writes ``observations.jsonl``, and ``distances.jsonl`` from the baseline, given as the folder of the
    same shard.

    The baseline itself, which has nothing to be compared with, writes its ``distributions.npz`` instead.
    """
    questions = read_items(items)
    mine, few = questions[shard::shards], questions[:fidelity_items][shard::shards]
    processor, session = Processor.load(directory), open_session(directory, device=device)
    progress(0, len(mine))
    observations = evaluate(
        session, processor, mine, max_tokens=max_tokens, batch_size=batch_size, progress=progress
    )
    out.mkdir()
    write_observations(out / OBSERVATIONS, observations)
    reference = read_observations(baseline / OBSERVATIONS) if baseline else observations
    recorded = record(session, processor, few, reference[: len(few)], batch_size)
    if baseline is None:
        write_record(out / DISTRIBUTIONS, recorded)
    else:
        write_records(out / DISTANCES, distances(read_record(baseline / DISTRIBUTIONS), recorded))


def merged_observations(shards: Sequence[Path]) -> list[Observation]:
    """Answers to all items, in the items' order."""
    return merged([read_observations(shard / OBSERVATIONS) for shard in shards])


def merged_fidelity(
    shards: Sequence[Path], baseline: Sequence[Observation], candidate: Sequence[Observation]
) -> Fidelity:
    """Of a candidate's shards, with all answers of both."""
    return summarize(
        merged([read_records(shard / DISTANCES, Distance) for shard in shards]), baseline, candidate
    )


def merged(hands: Sequence[Sequence[T]]) -> list[T]:
    """What was dealt in turn, in its order again."""
    return [card for turn in zip_longest(*hands) for card in turn if card is not None]
