"""Accuracy: answers really given, once; then drawn again and again to make candidates whose truth is known.

A draw takes items with replacement, so that the items at hand are the population and its accuracy the truth.
To be worse by just so much, the candidate takes the damaged model's answer to an item by a coin of known
chance, else the baseline's. To be exactly as good while differing, the two swap places by a fair coin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.accuracy import Observation
from bench.gate import gate
from bench.verdict import Check, Limits, Measurements, Verdict

Answers = Sequence[Observation]
ALL = "all"
UNLIMITED = Limits(
    accuracy_margin=None, ttft_p50_ratio=None, e2e_ratio=None, max_bytes=None, max_peak_memory_bytes=None
)


@dataclass(frozen=True)
class Loss:
    """What a damaged model loses, in points, where that goes furthest beyond its margin: in `slice` or over
    all. Such a `share` of its answers makes the loss there twice the margin; above 1, all of them do not.
    """

    slice: str
    points: float
    share: float

    @property
    def where(self) -> str:
        """To follow the points."""
        return "" if self.slice == ALL else f" in {self.slice}"


def limits(margin: float, slice_margin: float | None) -> Limits:
    """Of accuracy alone, in points."""
    return UNLIMITED.model_copy(update={"accuracy_margin": margin, "slice_margin": slice_margin})


def furthest_loss(baseline: Answers, damaged: Answers, asked: Limits) -> Loss:
    """The overall loss, or a slice's where that is more of its margin; of slices only those that the gate
    judges."""
    whole = gate(Measurements("baseline", "damaged", baseline, damaged), asked)
    return min((_loss(check) for check in whole.checks), key=lambda loss: loss.share)


def _loss(check: Check) -> Loss:
    assert check.delta is not None
    assert check.limit is not None
    share = 2 * check.limit / check.delta if check.delta < 0 else math.inf
    return Loss(check.slice, -check.delta, share)


def verdicts(
    baseline: Answers,
    candidate: Answers,
    asked: Limits,
    *,
    draws: int,
    items: int,
    seed: int,
    share: float = 1.0,
    swap: bool = False,
) -> Iterator[Verdict]:
    """The gate's on `draws` draws of `items` items each.

    share: chance of an answer to be the candidate's own and not the baseline's; swap: by a fair coin.
    """
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        rows = rng.integers(len(baseline), size=items)
        own, swapped = rng.random(items) < share, swap & (rng.random(items) < 0.5)
        before, after = [], []
        for number, (row, is_own, is_swapped) in enumerate(zip(rows, own, swapped, strict=True)):
            pair = baseline[row], candidate[row] if is_own else baseline[row]
            first, second = reversed(pair) if is_swapped else pair
            before.append(_numbered(first, number))
            after.append(_numbered(second, number))
        yield gate(Measurements("baseline", "candidate", before, after), asked).verdict


def _numbered(answer: Observation, number: int) -> Observation:
    """The same answer, to an item of its own: one that is drawn twice counts twice."""
    return Observation(
        str(number),
        answer.task,
        answer.answer,
        answer.text,
        answer.correct,
        answer.guess,
        answer.token_ids,
        answer.score,
    )
