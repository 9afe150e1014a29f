"""Is the candidate as accurate as the baseline, to a margin: over all items, and slice by slice.

Every slice with a margin must pass, so a good mean hides nothing. Two errors are possible, and they are
kept small in two ways. A wrong PASS of the whole needs every test that is asked for to pass, the one of the
bad slice too, so each at its own confidence is enough whatever their number (intersection-union test: R.
Berger, Technometrics 24 (1982) 295-300). A wrong FAIL needs only one of many slices to look bad by chance,
which grows likelier with each: so a slice fails only if it is shown to be worse after Holm's correction
over all slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bench.accuracy import Observation, by_slice, guess_rate
from bench.statistics import below_p, holm, items_needed, mcnemar_p, tango_interval
from bench.verdict import Check, Fields, Limits, Measurements, Row, Verdict, missing

Answers = Sequence[Observation]


def overall(m: Measurements, limits: Limits) -> Iterator[Check]:
    """The check over all items, by the one-sided Tango bound of the paired difference.

    PASS: shown to be less than the margin below the baseline. FAIL: shown to be below the baseline, and the
    best estimate is beyond the margin. Asking for the whole interval to be beyond it would often send a model
    that is off by twice the margin to more measuring.
    """
    if limits.accuracy_margin is None:
        return
    row: Fields = {"metric": "accuracy", "unit": "points", "limit": -limits.accuracy_margin}
    if absent := no_answers(m):
        yield Check(**row, **absent)
        return
    row |= difference(m.baseline_answers, m.candidate_answers, limits)
    if excuse := _nothing_to_lose(m.baseline_answers, row["baseline"], limits):
        yield Check(**row, verdict=Verdict.INCONCLUSIVE, reason=excuse)
    else:
        yield _judged(row, m.baseline_answers, m.candidate_answers, row["ci_high"] < 0, limits)


def slices(m: Measurements, limits: Limits) -> tuple[list[Check], list[Row]]:
    """A row for every slice, and a check of the same figures for each that has a margin.

    A slice on which the baseline is at guessing level cannot lose and is not judged; its row says so. One
    that has a margin of its own and no items fails. A part of a task (`task/part`) has the margin that is
    named for it or none, as its items are among the task's already.
    """
    if absent := no_answers(m):
        row: Fields = {"metric": "accuracy", "slice": "every slice", "unit": "points"}
        return [Check(**row, **absent)] if limits.slice_margin or limits.slice_margins else [], []
    answers = {x.id: x for x in m.candidate_answers}
    parts = {
        name: (rows, [answers[x.id] for x in rows]) for name, rows in by_slice(m.baseline_answers).items()
    }
    margins = dict.fromkeys((name for name in parts if "/" not in name), limits.slice_margin)
    margins |= limits.slice_margins
    rows, asked = [], []
    for name, (before, after) in parts.items():
        margin = margins.get(name)
        row = {"metric": "accuracy", "slice": name, "unit": "points", **difference(before, after, limits)}
        excuse = _nothing_to_lose(before, row["baseline"], limits) if margin else ""
        rows.append(Row(**row, reason=f"not judged: {excuse}" if excuse else ""))
        if margin and not excuse:
            asked.append((row | {"limit": -margin}, before, after))
    worse = holm([below_p(*_changes(before, after)) for _, before, after in asked], 1 - limits.confidence)
    checks = [_judged(*one, shown, limits) for one, shown in zip(asked, worse, strict=True)]
    for name in sorted(limits.slice_margins.keys() - parts.keys()):
        row = {"metric": "accuracy", "slice": name, "unit": "points", "limit": -limits.slice_margins[name]}
        checks.append(Check(**row, **missing(m, "accuracy", "no item is of this slice")))
    return checks, rows


def difference(baseline: Answers, candidate: Answers, limits: Limits) -> Fields:
    """The fields of a paired comparison of scores, in points."""
    n, (won, lost) = len(baseline), _changes(baseline, candidate)
    found = tango_interval(won, lost, n, 2 * limits.confidence - 1)
    scores = {x.id: x.score for x in candidate}
    up, down = sum(scores[x.id] > x.score for x in baseline), sum(scores[x.id] < x.score for x in baseline)
    return {
        "baseline": 100 * math.fsum(x.score for x in baseline) / n,
        "candidate": 100 * math.fsum(scores.values()) / n,
        "delta": 100 * found.estimate,
        "ci_low": 100 * found.low,
        "ci_high": 100 * found.high,
        "n": n,
        "p_value": mcnemar_p(up, down),
    }


def no_answers(m: Measurements) -> Fields | None:
    """Why accuracy cannot be compared, if so: both must have answered the same items, each once."""
    baseline, candidate = [x.id for x in m.baseline_answers], [x.id for x in m.candidate_answers]
    if not baseline or not candidate:
        return missing(m, "accuracy", "no answers of " + ("the candidate" if baseline else "the baseline"))
    if sorted(baseline) != sorted(set(candidate)) or len(candidate) != len(baseline):
        unpaired = len(set(baseline) ^ set(candidate))
        twice = len(baseline) - len(set(baseline)) + len(candidate) - len(set(candidate))
        return missing(
            m, "accuracy", f"{unpaired} items lack one of the two answers, {twice} are answered twice"
        )
    return None


def _changes(baseline: Answers, candidate: Answers) -> tuple[float, float]:
    """What was won and lost in all, in answers: a graded score counts for its part."""
    scores = {x.id: x.score for x in candidate}
    changes = [scores[x.id] - x.score for x in baseline]
    return math.fsum(d for d in changes if d > 0), math.fsum(-d for d in changes if d < 0)


def _nothing_to_lose(baseline: Answers, scored: float, limits: Limits) -> str:
    guess = 100 * guess_rate(baseline)
    if scored - guess >= limits.min_headroom:
        return ""
    return (
        f"the baseline scores {scored:.1f} where guessing scores {guess:.1f}: "
        f"less than {limits.min_headroom:g} points above it there is too little to lose"
    )


def _judged(row: Fields, baseline: Answers, candidate: Answers, shown_worse: bool, limits: Limits) -> Check:
    margin, delta, low, high = -row["limit"], row["delta"], row["ci_low"], row["ci_high"]
    sure = f"with {limits.confidence:.0%} confidence"
    if low > -margin:
        return Check(**row, verdict=Verdict.PASS, reason=f"{low:+.1f} points or better {sure}")
    if delta < -margin and shown_worse:
        reason = f"{delta:+.1f} points, and below the baseline {sure} ({high:+.1f} at best)"
        return Check(**row, verdict=Verdict.FAIL, reason=reason)
    needed, hope = _needed_items(baseline, candidate, margin / 100, delta / 100, 1 - limits.confidence)
    reason = f"may be {low:+.1f} points: {row['n']:,} items cannot settle a margin of {margin:g}; {hope}"
    return Check(**row, verdict=Verdict.INCONCLUSIVE, reason=reason, needed_n=needed)


def _needed_items(
    baseline: Answers, candidate: Answers, margin: float, delta: float, alpha: float
) -> tuple[int | None, str]:
    """How many items would settle an open comparison, and under which assumption."""
    n, flips = len(baseline), math.fsum(_changes(baseline, candidate))
    discordance = (flips + 1) / (n + 2)  # never zero, however few the items
    equal = items_needed(discordance, margin, alpha=alpha)
    if equal > n:
        return equal, f"about {equal:,} would if the two are equally good"
    if delta > -margin:
        as_measured = items_needed(discordance, margin, alpha=alpha, delta=delta)
        return as_measured, f"about {as_measured:,} would if the difference is as measured"
    return None, "more are unlikely to help"
