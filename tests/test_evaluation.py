"""Evaluation in shards: answers and figures are those of the whole, in whatever order shards are done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import evaluation
from bench.accuracy import evaluate
from bench.evaluation import evaluate_shard, merged, merged_fidelity, merged_observations
from bench.fidelity import compare, record
from bench.tasks import Item, write_items
from tests.fakes import NumberProcessor, TableSession, chain

RNG = np.random.default_rng(0)
SUCCESSORS = RNG.permutation(12)
TABLES = {
    "baseline": chain(SUCCESSORS, 3.0),
    "candidate": chain(SUCCESSORS, 3.0) + RNG.normal(0, 1, (12, 12)),
}
ITEMS = [
    Item.make("t", [{"role": "user", "content": " ".join(map(str, RNG.integers(1, 12, length)))}], "1", 0.0)
    for length in (3, 9, 1, 5, 7, 2, 4)
]


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 9])
def test_cards_dealt_in_turn_come_back_in_order(shards: int) -> None:
    assert merged([ITEMS[shard::shards] for shard in range(shards)]) == ITEMS


@pytest.mark.parametrize("shards", [1, 2, 3, 9])
def test_shards_together_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    """More shards than items too, of which some are empty; done last to first."""
    settings: dict[str, Any] = {"max_tokens": 4, "batch_size": 2}
    monkeypatch.setattr(evaluation.Processor, "load", lambda directory: NumberProcessor())
    monkeypatch.setattr(
        evaluation, "open_session", lambda directory, device: TableSession(TABLES[directory.name])
    )
    write_items(tmp_path / "items.jsonl", ITEMS)
    for variant in TABLES:
        for shard in reversed(range(shards)):
            evaluate_shard(
                Path(variant),
                tmp_path / "items.jsonl",
                tmp_path / f"baseline-{shard}" if variant == "candidate" else None,
                tmp_path / f"{variant}-{shard}",
                shard=shard,
                shards=shards,
                fidelity_items=5,
                progress=lambda done, total: None,
                **settings,
            )
    folders = {variant: [tmp_path / f"{variant}-{shard}" for shard in range(shards)] for variant in TABLES}
    answers = {variant: merged_observations(folders[variant]) for variant in TABLES}
    processor: Any = NumberProcessor()
    sessions: dict[str, Any] = {variant: TableSession(table) for variant, table in TABLES.items()}
    whole = {variant: evaluate(sessions[variant], processor, ITEMS, **settings) for variant in TABLES}
    assert answers == whole
    assert [row.id for row in answers["candidate"]] == [item.id for item in ITEMS]
    along = {
        variant: record(sessions[variant], processor, ITEMS[:5], whole["baseline"][:5]) for variant in TABLES
    }
    assert merged_fidelity(folders["candidate"], *answers.values()) == compare(
        *along.values(), *whole.values()
    )
