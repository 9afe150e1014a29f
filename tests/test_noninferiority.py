"""Slices: a good mean hides none, equal ones fail no more often than promised, waivers stay in sight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from bench.accuracy import Observation
from bench.gate import Gate, Limits, Measurements, Verdict, gate
from bench.noninferiority import slices
from bench.planning import items_planned
from bench.statistics import below_p, holm, tango_interval
from bench.tables import gate_table
from bench.verdict import Check, Waiver
from bench.waivers import waive

NOTHING = Limits(
    accuracy_margin=None, ttft_p50_ratio=None, e2e_ratio=None, max_bytes=None, max_peak_memory_bytes=None
)


def limits(**changes: Any) -> Limits:
    return Limits.model_validate(NOTHING.model_dump() | changes)


def answers(scores: Sequence[float], task: Callable[[int], str]) -> list[Observation]:
    return [Observation(str(i), task(i), str(i), "", s == 1, 0.0, (), float(s)) for i, s in enumerate(scores)]


def measured(before: Sequence[float], after: Sequence[float], tasks: int) -> Measurements:
    """Item i is of task i % tasks."""
    rows = [answers(scores, lambda i: f"task{i % tasks}") for scores in (before, after)]
    return Measurements("a", "b", baseline_answers=rows[0], candidate_answers=rows[1])


def flipped(rng: np.random.Generator, n: int, rate: float, loss: float) -> tuple[Any, Any]:
    """A baseline at 80 % and a candidate that differs on a share `rate` of items and is worse by `loss`."""
    kind = rng.choice(3, n, p=[1 - rate, (rate - loss) / 2, (rate + loss) / 2])
    before = np.where(kind == 1, 0, np.where(kind == 2, 1, rng.random(n) < 0.8))
    return before, np.where(kind == 0, before, 1 - before)


def test_a_good_mean_hides_no_bad_slice() -> None:
    """Twenty slices of 100; one loses 40 points, the mean loses 2."""
    before = np.ones(2000)
    after = np.where((np.arange(2000) % 20 == 7) & (np.arange(2000) < 800), 0, before)
    pair = measured(before, after, 20)
    assert gate(pair, limits(accuracy_margin=3.0)).verdict == Verdict.PASS
    judged = gate(pair, limits(accuracy_margin=3.0, slice_margin=10.0))
    assert judged.verdict == Verdict.FAIL
    assert {check.slice: str(check.verdict) for check in judged.checks} == {
        "all": "PASS",
        **{f"task{i}": "FAIL" if i == 7 else "PASS" for i in range(20)},
    }
    assert len(judged.slices) == 20


def test_a_slice_may_have_a_margin_of_its_own() -> None:
    before, after = np.ones(400), np.ones(400)
    after[1:80:2] = 0  # 40 of the 200 of task1: 20 points
    pair = measured(before, after, 2)
    assert gate(pair, limits(slice_margin=10.0)).verdict == Verdict.FAIL
    assert gate(pair, limits(slice_margin=10.0, slice_margins={"task1": 30.0})).verdict == Verdict.PASS
    alone = gate(pair, limits(slice_margins={"task0": 10.0}))
    assert [(check.slice, check.verdict) for check in alone.checks] == [("task0", Verdict.PASS)]


def test_a_part_of_a_task_is_a_slice_with_a_limit_only_of_its_own() -> None:
    """A third of `ocr` is of each level; the third level loses half of its answers, a sixth of the task's."""
    before, after = np.ones(360), np.ones(360)
    after[2::6] = 0  # every other item of level 3
    sides = [answers(scores, lambda i: f"ocr/{i % 3 + 1}") for scores in (before, after)]
    pair = Measurements("a", "b", baseline_answers=sides[0], candidate_answers=sides[1])
    told = gate(pair, limits(slice_margin=25.0))
    assert [(row.slice, row.n, round(row.delta or 0)) for row in told.slices] == [
        ("ocr", 360, -17),
        ("ocr/1", 120, 0),
        ("ocr/2", 120, 0),
        ("ocr/3", 120, -50),
    ]
    assert [(check.slice, check.verdict) for check in told.checks] == [("ocr", Verdict.PASS)]
    held = gate(pair, limits(slice_margin=25.0, slice_margins={"ocr/1": 10.0, "ocr/3": 40.0}))
    assert {check.slice: str(check.verdict) for check in held.checks} == {
        "ocr": "PASS",
        "ocr/1": "PASS",
        "ocr/3": "FAIL",
    }


def test_a_slice_without_items_is_missing_evidence() -> None:
    judged = gate(
        measured(np.ones(200), np.ones(200), 2), limits(slice_margin=10.0, slice_margins={"ocr": 5.0})
    )
    assert judged.verdict == Verdict.FAIL
    assert judged.checks[-1].name == "accuracy, ocr"
    assert "missing evidence: no item is of this slice" in judged.checks[-1].reason


def test_slices_without_answers_are_missing_evidence() -> None:
    judged = gate(Measurements("a", "b"), limits(slice_margin=10.0))
    (check,) = judged.checks
    assert (check.verdict, check.name, check.unit) == (Verdict.FAIL, "accuracy, every slice", "points")
    assert check.reason == "missing evidence: no answers of the baseline"
    one = Measurements("a", "b", baseline_answers=answers([1.0], str))
    (check,) = gate(one, limits(slice_margins={"0": 10.0})).checks
    assert check.reason == "missing evidence: no answers of the candidate"
    assert gate(one, limits(max_bytes=1)).checks[0].metric == "bytes"


def test_a_slice_at_guessing_level_is_told_and_not_judged() -> None:
    scores = np.ones(400)
    scores[1::2] = 0
    judged = gate(measured(scores, scores, 2), limits(slice_margin=10.0))
    assert [check.slice for check in judged.checks] == ["task0"]
    assert "not judged: the baseline scores 0.0 where guessing scores 0.0" in judged.slices[1].reason


@pytest.mark.parametrize(
    ("p_values", "held"),
    [
        (
            (0.01, 0.04, 0.03, 0.005),
            (True, False, False, True),
        ),  # Holm's: .005 <= .0125, .01 <= .0167, .03 > .025
        ((0.04,), (True,)),
        ((0.026, 0.024), (True, True)),
        ((0.026, 0.026), (False, False)),
        ((), ()),
    ],
)
def test_holm_by_hand(p_values: tuple[float, ...], held: tuple[bool, ...]) -> None:
    assert holm(p_values, 0.05) == list(held)


def test_holm_is_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(3)
    for _ in range(50):
        p_values = list(rng.random(12) ** 3)
        assert holm(p_values, 0.05) == list(multipletests(p_values, 0.05, "holm")[0])


def test_the_one_sided_p_is_tangos_bound_at_zero() -> None:
    """The upper bound is below zero exactly where p is below one minus the confidence."""
    for won, lost in ((3, 9), (3, 10), (2, 11), (0.4, 4.9), (5, 5), (0, 0)):
        assert (tango_interval(won, lost, 60, 0.9).high < 0) == (below_p(won, lost) < 0.05)


def test_equal_models_fail_a_slice_no_more_often_than_promised() -> None:
    """Thirty slices of 33 with a flip rate of 20 %, a margin so small that only Holm holds a FAIL back."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(200):
        checks, _ = slices(measured(*flipped(rng, 990, 0.2, 0.0), 30), limits(slice_margin=0.1))
        wrong += any(check.verdict == Verdict.FAIL for check in checks)
    assert wrong <= 20  # 5 % of 200, and room for chance; without the correction about 150


def test_a_bad_slice_passes_no_more_often_for_being_one_of_many() -> None:
    """Ten slices, one truly worse by its margin: the whole passes at most 5 % of the time, uncorrected."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(200):
        before, after = flipped(rng, 2000, 0.04, 0.0)
        bad = flipped(rng, 200, 0.14, 0.1)
        before[::10], after[::10] = bad
        checks, _ = slices(measured(before, after, 10), limits(slice_margin=10.0))
        wrong += all(check.verdict == Verdict.PASS for check in checks)
    assert wrong <= 18


@pytest.mark.parametrize(("parts", "flips", "margin"), [(1, 0.05, 0.03), (8, 0.06, 0.1), (20, 0.04, 0.15)])
def test_planned_items_pass_as_often_as_planned(parts: int, flips: float, margin: float) -> None:
    """Equal models at the planned size: all slices pass at once with the planned chance or a little more."""
    rng, power = np.random.default_rng(2), 0.8
    n = items_planned(parts, flips, margin, power)
    counts = rng.multinomial(n, [flips / 2, flips / 2, 1 - flips], (1000, parts))[..., :2].reshape(-1, 2)
    tables, which = np.unique(counts, axis=0, return_inverse=True)
    passes = np.array([tango_interval(int(won), int(lost), n, 0.9).low > -margin for won, lost in tables])
    assert 0.76 <= passes[which].reshape(1000, parts).all(axis=1).mean() <= 0.9


def test_graded_scores_are_covered() -> None:
    """The one-sided bound of partial losses misses the true difference no more often than 5 % of the time."""
    rng, missed = np.random.default_rng(5), 0
    for _ in range(1000):
        change = np.where(rng.random(200) < 0.2, rng.uniform(-0.6, 0.4, 200), 0)
        found = tango_interval(change[change > 0].sum(), -change[change < 0].sum(), 200, 0.9)
        missed += found.low > -0.02  # 0.2 * (-0.1)
    assert missed <= 60


def judged(**changes: Any) -> Gate:
    before, after = np.ones(400), np.ones(400)
    after[1:160:2] = 0
    return gate(measured(before, after, 2), limits(slice_margin=10.0, **changes), date(2026, 11, 23))


WAIVER = {"check": "accuracy, task1", "reason": "known: fixed in the next release", "expires": "2026-11-23"}


def test_a_waived_check_does_not_decide_and_stays() -> None:
    assert judged().verdict == Verdict.FAIL
    found = judged(waivers=[WAIVER])
    assert found.verdict == Verdict.PASS
    assert [(check.name, str(check.verdict), check.waived) for check in found.checks] == [
        ("accuracy, task0", "PASS", False),
        ("accuracy, task1", "FAIL", True),
    ]
    assert found.waivers == [{**WAIVER, "status": "in force"}]
    assert Gate.model_validate_json(found.model_dump_json()) == found
    cells = [list(column.cells) for column in gate_table(found).columns]
    assert cells[0] == ["PASS", "FAIL, waived", "waiver"]
    assert "in force: known: fixed in the next release (until 2026-11-23)" in cells[-1]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"expires": "2026-11-22"}, "expired"),
        ({"check": "accuracy, task9"}, "unused: there is no such check"),
    ],
)
def test_waivers_that_do_nothing_are_told(change: dict[str, str], status: str) -> None:
    found = judged(waivers=[WAIVER | change])
    assert found.verdict == Verdict.FAIL
    assert found.waivers[0]["status"] == status
    assert not any(check.waived for check in found.checks)


def test_waiving_all_passes_nothing() -> None:
    check = Check(metric="bytes", unit="bytes", verdict=Verdict.FAIL, reason="too large")
    waiver = Waiver.model_validate(
        {"check": "bytes", "reason": "waits for the smaller head", "expires": "2027-01-01"}
    )
    made, _ = waive([check], [waiver], date(2026, 11, 23))
    assert made[0].waived
    everything = limits(accuracy_margin=2.0, waivers=[{**WAIVER, "check": "accuracy"}])
    assert gate(Measurements("a", "b"), everything, date(2026, 1, 1)).verdict == Verdict.FAIL


@pytest.mark.parametrize(
    "change", [{"reason": "because"}, {"expires": "soon"}, {"check": ""}, {"until": "2027-01-01"}]
)
def test_a_waiver_needs_a_reason_and_a_date(change: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        limits(waivers=[WAIVER | change])
