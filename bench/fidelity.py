"""How far a candidate's next-token distributions are from the baseline's, along the baseline's own answers.

Finer than accuracy: a damaged layer moves distributions long before it turns right answers into wrong ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from bench.accuracy import Observation
from bench.tasks import Item
from engines.errors import UserError

if TYPE_CHECKING:
    from engines.processor import Processor
    from engines.session import Session

# Item id -> log-probabilities [answer tokens, vocabulary] from which each token was chosen, the end included.
Record = Mapping[str, NDArray[np.floating]]

# float16 keeps a log-probability to 1 part in 2,048: enough for a KL, and half the size where size matters.
LARGE_VOCABULARY = 32_768


@dataclass(frozen=True)
class Distance:
    """Along one answer, token by token: KL(baseline || candidate) in nats, and whether both think the same
    token the most probable.
    """

    id: str
    kl: tuple[float, ...]
    agree: tuple[bool, ...]


class Fidelity(BaseModel):
    """Distance of a candidate from the baseline."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    items: int = Field(description="Answers along which distributions were compared.")
    positions: int = Field(description="Token positions compared.")
    kl_mean: float = Field(description="KL(baseline || candidate), mean over positions, nats.")
    kl_low: float = Field(description="One-sided 95 % lower bound of kl_mean, bootstrap over items.")
    kl_high: float = Field(description="One-sided 95 % upper bound of kl_mean, bootstrap over items.")
    kl_p99: float = Field(description="99th percentile of the KL over positions, nats.")
    top1_agreement: float = Field(description="Share of positions whose most probable token is the same.")
    answers: int = Field(description="Answers compared as right or wrong.")
    answer_flip_rate: float = Field(description="Share of answers that turned from right to wrong or back.")


def record(
    session: Session,
    processor: Processor,
    items: Sequence[Item],
    answers: Sequence[Observation],
    batch_size: int = 16,
) -> dict[str, NDArray[np.floating]]:
    """Distributions along the baseline's answers (teacher-forced), which come in the order of `items`.

    Answers of one length go together, so that a batch keeps the same positions of every prompt. float32, or
    float16 for a large vocabulary.
    """
    found: dict[str, NDArray[np.floating]] = {}
    lengths: dict[int, list[int]] = {}
    for i, answer in enumerate(answers):
        lengths.setdefault(len(answer.token_ids), []).append(i)
    for length, group in lengths.items():
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            prompts = [processor(items[i].messages).extend(answers[i].token_ids[:-1]) for i in batch]
            capacity = max(len(prompt.input_ids) for prompt in prompts)
            logits, _ = session.prefill(prompts, capacity=capacity, keep=length)
            kept = np.float16 if logits.shape[-1] > LARGE_VOCABULARY else np.float32
            found |= {items[i].id: log_softmax(x).astype(kept) for i, x in zip(batch, logits, strict=True)}
    return {item.id: found[item.id] for item in items}


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Along the last axis, in float32."""
    x = logits.astype(np.float32)
    x -= x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)), np.float32)


def write_record(path: Path, recorded: Record) -> None:
    """As .npz."""
    np.savez(path, allow_pickle=False, **recorded)


def read_record(path: Path) -> dict[str, NDArray[np.floating]]:
    """Raises UserError if the file is missing or damaged."""
    try:
        with np.load(path) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:
        raise UserError(f"cannot read distributions from {path}: {error}; expected an .npz archive") from None


def compare(
    baseline: Record,
    candidate: Record,
    baseline_answers: Sequence[Observation],
    candidate_answers: Sequence[Observation],
) -> Fidelity:
    """Both records must be taken along the same answers, and both lists of answers be of the same items."""
    return summarize(distances(baseline, candidate), baseline_answers, candidate_answers)


def distances(baseline: Record, candidate: Record) -> list[Distance]:
    """Of every answer, in the baseline's order."""
    if baseline.keys() != candidate.keys():
        raise UserError(f"recorded {len(baseline)} and {len(candidate)} answers; expected the same items")
    found = []
    for key, rows in baseline.items():
        if rows.shape != candidate[key].shape:
            raise UserError(
                f"item {key[:12]}: recorded {rows.shape}, {candidate[key].shape}; expected equal shapes"
            )
        p, q = rows.astype(np.float32), candidate[key].astype(np.float32)
        # Rounding may leave a tiny negative sum where both are equal.
        kl = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
        agree = p.argmax(axis=-1) == q.argmax(axis=-1)
        found.append(Distance(key, tuple(kl.tolist()), tuple(agree.tolist())))
    return found


def summarize(
    rows: Sequence[Distance],
    baseline_answers: Sequence[Observation],
    candidate_answers: Sequence[Observation],
) -> Fidelity:
    """All distances of a candidate, and its answers to the same items as the baseline's."""
    if not rows:
        raise UserError("no distributions were recorded; expected those of one answer at least")
    kl = [np.array(row.kl) for row in rows]
    low, high = _bootstrap_mean(kl)
    right = {answer.id: answer.correct for answer in candidate_answers}
    if {answer.id for answer in baseline_answers} != right.keys():
        raise UserError("the two sets of answers are of different items; expected the same")
    flips = [answer.correct != right[answer.id] for answer in baseline_answers]
    positions = np.concatenate(kl)
    return Fidelity(
        items=len(rows),
        positions=len(positions),
        kl_mean=float(positions.mean()),
        kl_low=low,
        kl_high=high,
        kl_p99=float(np.quantile(positions, 0.99)),
        top1_agreement=float(np.concatenate([row.agree for row in rows]).mean()),
        answers=len(flips),
        answer_flip_rate=float(np.mean(flips)),
    )


def _bootstrap_mean(groups: list[NDArray[np.float64]], resamples: int = 2000) -> tuple[float, float]:
    """90 % interval of the mean over positions, resampling whole answers as their positions are alike."""
    rng = np.random.default_rng(0)
    sums, counts = np.array([g.sum() for g in groups], np.float64), np.array([len(g) for g in groups])
    drawn = rng.integers(0, len(groups), (resamples, len(groups)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.05, 0.95])
    return float(low), float(high)
