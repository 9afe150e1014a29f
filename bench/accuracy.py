"""Answers to evaluation items, kept one by one, and their summary per task."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.context import check_context
from bench.records import read_records, write_records
from bench.scoring import is_correct, score
from bench.statistics import wilson_interval
from bench.tasks import Item
from engines.thoughts import answer, thinking

if TYPE_CHECKING:  # reading and judging answers needs no model
    from engines.generate import Completion
    from engines.processor import Processor
    from engines.session import Session

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Observation:
    """One answer: the item's id, what the model said after its thoughts, its score between 0 and 1, whether
    that counts as right, and the score to be had without looking. The tokens are those of the thoughts too.
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

    What is said to an item of several rotations is a JSON list, and its tokens are those of the first. What
    a model thinks before it answers is not scored; one that comes to no end with it has said nothing.
    Prompts of similar length are answered together, so that little of a batch is padding. They are prepared
    twice, as the pixels of all of them together may not fit in memory. Raises UserError, before anything is
    asked, for an item that the session's context does not hold with its answer.
    """
    from engines.generate import generate_batch

    asked = [(item, conversation) for item in items for conversation in item.conversations]
    lengths = [len(processor(conversation).input_ids) for _, conversation in asked]
    built_for = getattr(session, "context", None)  # of engines, which may be less than the model's
    context = built_for or session.config.text.max_position_embeddings
    check_context([item for item, _ in asked], lengths, max_tokens, context)
    order = sorted(range(len(asked)), key=lengths.__getitem__)
    said: dict[int, Completion] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        prompts = [processor(asked[i][1]) for i in batch]
        completions = generate_batch(session, processor, prompts, max_tokens)
        for i, prompt, one in zip(batch, prompts, completions, strict=True):
            said[i] = replace(one, text=answer(one.text, thinking(processor, prompt)))
        if progress:
            progress(len(said), len(asked))
    in_order = (said[i] for i in range(len(asked)))
    return [_observed(item, [next(in_order) for _ in item.conversations]) for item in items]


def _observed(item: Item, said: Sequence[Completion]) -> Observation:
    texts = [completion.text for completion in said]
    text = json.dumps(texts, ensure_ascii=False) if item.rotations else texts[0]
    found = score(item.metric, text, item.answer)
    return Observation(
        id=item.id,
        task=item.task,
        answer=item.answer,
        text=text,
        correct=is_correct(item.metric, found),
        guess=item.guess,
        token_ids=tuple(int(token) for token in said[0].token_ids),
        score=found,
    )


def write_observations(path: Path, observations: Sequence[Observation]) -> None:
    """One JSON line per answer."""
    write_records(path, observations)


def read_observations(path: Path) -> list[Observation]:
    """Raises UserError naming file and line."""
    return read_records(path, Observation)


def summarize(observations: Sequence[Observation]) -> list[Score]:
    """A score for every slice, then one for all items."""
    slices = by_slice(observations)
    return [*(_score(name, rows) for name, rows in slices.items()), _score("all", list(observations))]


def by_slice(observations: Sequence[Observation]) -> dict[str, list[Observation]]:
    """Observations of each task in order of appearance, and of a task in parts (`task/part`) also part by
    part: its items are in two slices.
    """
    groups: dict[str, list[Observation]] = {}
    for part, rows in sorted(by_task(observations).items()):
        groups.setdefault(part.partition("/")[0], []).extend(rows)
        if "/" in part:
            groups[part] = rows
    seen = list(dict.fromkeys(x.task.partition("/")[0] for x in observations))
    return dict(sorted(groups.items(), key=lambda group: seen.index(group[0].partition("/")[0])))


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
