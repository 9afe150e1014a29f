"""Answers to evaluation items, kept one by one, and their summary per task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.context import check_context
from bench.records import read_records, write_records
from bench.scoring import is_correct, score
from bench.statistics import wilson_interval
from bench.tasks import Item

if TYPE_CHECKING:  # reading and judging answers needs no model
    from engines.processor import Processor
    from engines.session import Session

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Observation:
    """One answer: the item's id, what the model said, its score between 0 and 1, whether that counts as
    right, and the score to be had without looking.
    """

    id: str
    task: str
    answer: str
    text: str
    correct: bool
    guess: float
    token_ids: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class Score:
    """Mean score on one task, or on all. Fractions; low and high are the 95 % Wilson interval, which is
    wider than it need be where scores are graded; `correct` is the share of answers that count as right.
    """

    task: str
    n: int
    accuracy: float
    correct: float
    low: float
    high: float
    standard_error: float
    guess: float


def evaluate(
    session: Session,
    processor: Processor,
    items: Sequence[Item],
    *,
    max_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[Observation]:
    """Greedy answers in the order of `items`, each scored by its item's metric.

    Prompts of similar length are answered together, so that little of a batch is padding. They are prepared
    twice, as the pixels of all of them together may not fit in memory. Raises UserError, before anything is
    asked, for an item that the session's context does not hold with its answer.
    """
    from engines.generate import generate_batch

    lengths = [len(processor(item.messages).input_ids) for item in items]
    built_for = getattr(session, "context", None)  # of engines, which may be less than the model's
    check_context(items, lengths, max_tokens, built_for or session.config.text.max_position_embeddings)
    order = sorted(range(len(items)), key=lengths.__getitem__)
    answered: dict[int, Observation] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        prompts = [processor(items[i].messages) for i in batch]
        for i, completion in zip(batch, generate_batch(session, processor, prompts, max_tokens), strict=True):
            item = items[i]
            found = score(item.metric, completion.text, item.answer)
            answered[i] = Observation(
                id=item.id,
                task=item.task,
                answer=item.answer,
                text=completion.text,
                correct=is_correct(item.metric, found),
                guess=item.guess,
                token_ids=tuple(int(token) for token in completion.token_ids),
                score=found,
            )
        if progress:
            progress(len(answered), len(items))
    return [answered[i] for i in range(len(items))]


def write_observations(path: Path, observations: Sequence[Observation]) -> None:
    """One JSON line per answer."""
    write_records(path, observations)


def read_observations(path: Path) -> list[Observation]:
    """Raises UserError naming file and line."""
    return read_records(path, Observation)


def summarize(observations: Sequence[Observation]) -> list[Score]:
    """A score per task in order of appearance, then one for all items."""
    tasks = by_task(observations)
    return [*(_score(task, rows) for task, rows in tasks.items()), _score("all", list(observations))]


def by_task(observations: Sequence[Observation]) -> dict[str, list[Observation]]:
    """Observations grouped by task, in order of appearance."""
    groups: dict[str, list[Observation]] = {}
    for observation in observations:
        groups.setdefault(observation.task, []).append(observation)
    return groups


def guess_rate(observations: Sequence[Observation]) -> float:
    """Accuracy to be had without looking, as a fraction.

    Per task the better of the items' own chance and of always giving the most common answer. An item does not
    vote for its own answer, (k - 1) / (n - 1), so that a handful of different answers is not read as luck.
    """
    hits = 0.0
    for rows in by_task(observations).values():
        n, most = len(rows), Counter(row.answer for row in rows).most_common(1)[0][1]
        hits += n * max((most - 1) / max(n - 1, 1), sum(row.guess for row in rows) / n)
    return hits / len(observations)


def _score(task: str, rows: list[Observation]) -> Score:
    n, total = len(rows), sum(row.score for row in rows)
    wilson = wilson_interval(total, n)
    correct = sum(row.correct for row in rows) / n
    error = (wilson.estimate * (1 - wilson.estimate) / n) ** 0.5
    return Score(task, n, wilson.estimate, correct, wilson.low, wilson.high, error, guess_rate(rows))
