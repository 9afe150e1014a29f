"""The gate on planted models: equal, worse, slower, too few items, no evidence, wrong evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from bench.accuracy import Observation
from bench.fidelity import Fidelity
from bench.gate import Check, Gate, Limits, Measurements, Row, Verdict, gate
from bench.latency import Timing

NOTHING = Limits(
    accuracy_margin=None, ttft_p50_ratio=None, e2e_ratio=None, max_bytes=None, max_peak_memory_bytes=None
)
ANSWERS = ("red", "green", "blue", "black", "white")


def observations(right: Sequence[bool], tasks: int = 2) -> list[Observation]:
    """Answers spread over five constants, so that guessing earns about 20 %."""
    return [
        Observation(str(i), f"task{i % tasks}", ANSWERS[i % 5], "?", bool(ok), 0.2, (1, 2), float(ok))
        for i, ok in enumerate(right)
    ]


def answers(n: int, gain: float, loss: float, seed: int = 0) -> Measurements:
    """A baseline at 85 % and a candidate that wins `gain` and loses `loss` of all items, drawn at random."""
    rng = np.random.default_rng(seed)
    both, win, lose = 0.85 - loss, gain, loss
    kind = rng.choice(4, n, p=[both, lose, win, 1 - both - lose - win])
    return Measurements(
        "base",
        "cand",
        baseline_answers=observations(kind <= 1),
        candidate_answers=observations((kind == 0) | (kind == 2)),
    )


def timings(
    ratio: float, requests: int = 24, repeats: int = 2, seed: int = 0, tokens: int = 16
) -> list[Timing]:
    """Requests whose size differs by half a log unit, the same ones for every seed, and 3 % of noise."""
    sizes = np.random.default_rng(99).lognormal(0, 0.5, requests)
    rng = np.random.default_rng(seed)
    rows = []
    for i, size in enumerate(sizes):
        for j in range(repeats):
            ttft, itl = size * ratio * rng.lognormal(0, 0.03, 2) * (20, 5)
            e2e = ttft + itl * (tokens - 1)
            rows.append(Timing("arm", i, j, 10, tokens, ttft, itl, e2e, tokens / e2e * 1e3))
    return rows


def only(result: Gate) -> Check:
    assert len(result.checks) == 1
    assert result.verdict == result.checks[0].verdict
    return result.checks[0]


def accuracy(measurements: Measurements, margin: float = 2.0, **limits: Any) -> Check:
    return only(gate(measurements, NOTHING.model_copy(update={"accuracy_margin": margin, **limits})))


def test_an_equal_model_passes() -> None:
    verdicts = [accuracy(answers(1000, 0.015, 0.015, seed)).verdict for seed in range(40)]
    assert verdicts.count(Verdict.PASS) > 28
    assert Verdict.FAIL not in verdicts


@pytest.mark.parametrize("margin", [2.0, 3.0])
def test_a_model_five_points_worse_fails(margin: float) -> None:
    verdicts = [accuracy(answers(1000, 0.015, 0.065, seed), margin).verdict for seed in range(40)]
    assert verdicts.count(Verdict.FAIL) >= 37
    assert Verdict.PASS not in verdicts


def test_a_model_at_the_margin_passes_at_most_as_often_as_promised() -> None:
    verdicts = [accuracy(answers(600, 0.02, 0.04, seed)).verdict for seed in range(120)]
    assert verdicts.count(Verdict.PASS) <= 12  # 5 % of 120, and room for chance


def test_fifty_items_at_a_margin_of_one_point_are_inconclusive() -> None:
    for seed in range(20):
        check = accuracy(answers(50, 0.02, 0.02, seed), 1.0)
        assert check.verdict == Verdict.INCONCLUSIVE
        assert check.needed_n is not None
        assert check.needed_n > 250
        assert f"{check.needed_n:,}" in check.reason


def test_the_check_shows_its_working() -> None:
    """By hand: 1,000 items, 850 right before; 10 won, 30 lost: -2 points, exact McNemar of 10 in 40."""
    right = np.arange(1000) < 850
    after = right.copy()
    after[:30], after[900:910] = False, True
    check = accuracy(Measurements("a", "b", observations(right), observations(after)))
    assert (check.baseline, check.candidate, check.delta, check.n) == (85.0, 83.0, -2.0, 1000)
    assert check.p_value == pytest.approx(0.00222147, rel=1e-4)
    assert (check.limit, check.unit, check.relative) == (-2.0, "points", False)
    assert (check.ci_low, check.ci_high) == pytest.approx((-3.12, -1.00), abs=0.01)


@pytest.mark.parametrize(
    ("n", "lost", "won", "confidence", "needed", "says"),
    [
        (60, 1, 1, 0.95, 748, "about 748 would if the two are equally good"),
        (60, 1, 1, 0.9, 546, "about 546 would if the two are equally good"),
        (1000, 30, 15, 0.95, 11_298, "about 11,298 would if the difference is as measured"),
        (1000, 30, 15, 0.93, 9_814, "about 9,814 would if the difference is as measured"),
        (1000, 30, 10, 0.95, None, "more are unlikely to help"),
        (100, 4, 1, 0.95, 910, "about 910 would if the two are equally good"),
    ],
)
def test_an_open_check_says_what_would_close_it(
    n: int, lost: int, won: int, confidence: float, needed: int | None, says: str
) -> None:
    """Equality, while so few items could not show it; then the measured difference; on the margin nothing.
    A loss beyond the margin that is not shown to be one is open, too.

    By hand: (z(confidence) + z(0.8))^2 (d - delta^2) / (0.02 + delta)^2 with d = (lost + won + 1) / (n + 2).
    """
    right = np.arange(n) < 0.85 * n
    after = right.copy()
    after[:lost], after[n - won :] = False, True
    measured = Measurements("a", "b", observations(right), observations(after))
    check = accuracy(measured, confidence=confidence)
    assert (check.verdict, check.needed_n) == (Verdict.INCONCLUSIVE, needed)
    assert check.reason.endswith(f"{n:,} items cannot settle a margin of 2; {says}")


EVERYTHING = Limits(
    accuracy_margin=2.0,
    max_flip_rate=0.2,
    max_kl=0.1,
    ttft_p50_ratio=1.1,
    e2e_ratio=1.2,
    max_bytes=10,
    max_peak_memory_bytes=20,
)


def test_missing_evidence_fails() -> None:
    no_timings = "0 timings of 0 requests x 0 repeats; expected one of each"
    result = gate(Measurements("base", "cand"), EVERYTHING)
    assert (result.baseline, result.candidate, result.verdict) == ("base", "cand", Verdict.FAIL)
    assert {check.verdict for check in result.checks} == {Verdict.FAIL}
    assert [(check.name, check.unit, check.limit, check.reason) for check in result.checks] == [
        (name, unit, limit, f"missing evidence: {reason}")
        for name, unit, limit, reason in [
            ("accuracy", "points", -2, "no answers of the baseline"),
            ("answer_flip_rate", "fraction", 0.2, "no answers of the baseline"),
            ("kl_mean", "nats", 0.1, "no next-token distributions were compared"),
            ("ttft_ms p50", "ms", 1.1, no_timings),
            ("e2e_latency_ms", "ms", 1.2, no_timings),
            ("bytes", "bytes", 10, "not measured"),
            (
                "peak_memory_bytes, context 2048 x batch 1",
                "bytes",
                20,
                "not measured at context 2048 x batch 1",
            ),
        ]
    ]


def test_every_kind_of_evidence_may_be_excused() -> None:
    kinds = ("accuracy", "fidelity", "latency", "bytes", "peak_memory_bytes")
    result = gate(Measurements("a", "b", unmeasured={kind: f"no {kind} here" for kind in kinds}), EVERYTHING)
    assert {check.verdict for check in result.checks} == {result.verdict} == {Verdict.UNMEASURED}
    assert [check.reason.split()[1] for check in result.checks] == [
        *("accuracy", "accuracy", "fidelity", "latency", "latency", "bytes", "peak_memory_bytes")
    ]


def test_a_gate_that_checks_nothing_fails() -> None:
    assert gate(answers(1000, 0, 0), NOTHING).verdict == Verdict.FAIL


def test_unpaired_items_fail_and_are_counted() -> None:
    equal = answers(1000, 0.0, 0.0)
    short = replace(equal, candidate_answers=equal.candidate_answers[:-3])
    twice = replace(equal, candidate_answers=[*equal.candidate_answers[:-1], equal.candidate_answers[0]])
    assert accuracy(equal).verdict == Verdict.PASS
    assert "3 items lack one" in accuracy(short).reason
    assert "1 items lack one of the two answers, 1 are answered twice" in accuracy(twice).reason
    assert {accuracy(short).verdict, accuracy(twice).verdict} == {Verdict.FAIL}


def test_the_order_of_answers_does_not_matter() -> None:
    pair = answers(300, 0.05, 0.05)
    turned = replace(pair, candidate_answers=list(reversed(pair.candidate_answers)))
    assert accuracy(pair) == accuracy(turned)


def test_a_baseline_that_guesses_shows_nothing() -> None:
    right = np.random.default_rng(0).random(1000) < 0.22
    check = accuracy(Measurements("a", "b", observations(right), observations(right)))
    assert check.verdict == Verdict.INCONCLUSIVE
    assert "guessing" in check.reason


def test_a_baseline_that_always_says_the_same_shows_nothing() -> None:
    """95 % right, on items of which 95 % have one answer."""
    rows = [
        Observation(str(i), "t", "no" if i % 20 else "yes", "no", bool(i % 20), 0.0, (), float(i % 20 > 0))
        for i in range(400)
    ]
    assert accuracy(Measurements("a", "b", rows, rows)).verdict == Verdict.INCONCLUSIVE


LATENCY = {
    "ttft_p50_ratio": "ttft_ms p50",
    "ttft_p95_ratio": "ttft_ms p95",
    "itl_p50_ratio": "itl_ms p50",
    "itl_p95_ratio": "itl_ms p95",
    "e2e_ratio": "e2e_latency_ms",
}


def latency(ratio: float, limit: str, value: float = 1.1, **changes: Any) -> Check:
    measured = Measurements(
        "a",
        "b",
        baseline_timings=timings(1.0),
        again_timings=timings(1.0, seed=2),
        candidate_timings=timings(ratio, seed=1, **changes),
    )
    if few := changes.get("requests"):
        first, second = timings(1.0, requests=few), timings(1.0, requests=few, seed=2)
        measured = replace(measured, baseline_timings=first, again_timings=second)
    return only(gate(measured, NOTHING.model_copy(update={limit: value})))


@pytest.mark.parametrize("limit", LATENCY)
def test_thirty_percent_slower_fails_and_equal_passes(limit: str) -> None:
    slow, equal = latency(1.3, limit), latency(1.0, limit)
    assert (slow.verdict, equal.verdict) == (Verdict.FAIL, Verdict.PASS)
    assert (slow.metric, slow.relative, slow.n) == (LATENCY[limit], True, 24)
    assert slow.delta == pytest.approx(1.3, abs=0.07)
    assert slow.ci_low < slow.delta < slow.ci_high


def test_a_latency_on_its_limit_is_inconclusive() -> None:
    check = latency(1.1, "e2e_ratio", value=latency(1.1, "e2e_ratio").ci_high - 0.002)
    assert check.verdict == Verdict.INCONCLUSIVE
    assert 24 < check.needed_n < 240


@pytest.mark.parametrize(("limit", "requests", "least"), [("itl_p50_ratio", 5, 8), ("itl_p95_ratio", 19, 20)])
def test_too_few_requests_are_inconclusive(limit: str, requests: int, least: int) -> None:
    check = latency(1.0, limit, requests=requests)
    assert (check.verdict, check.needed_n) == (Verdict.INCONCLUSIVE, least)


@pytest.mark.parametrize("changes", [{"tokens": 8}, {"repeats": 3}])
def test_unequal_work_is_no_evidence(changes: dict[str, Any]) -> None:
    assert "missing evidence" in latency(1.0, "e2e_ratio", **changes).reason


def test_holes_in_the_timings_are_no_evidence() -> None:
    whole = timings(1.0)
    measured = Measurements(
        "a", "b", baseline_timings=whole, again_timings=whole, candidate_timings=whole[:-1]
    )
    check = only(gate(measured, NOTHING.model_copy(update={"e2e_ratio": 1.1})))
    assert (check.verdict, "47 timings" in check.reason) == (Verdict.FAIL, True)


@pytest.mark.parametrize(("size", "verdict"), [(6_000_000_000, Verdict.PASS), (6_000_000_001, Verdict.FAIL)])
def test_budgets_are_hard(size: int, verdict: Verdict) -> None:
    measured = Measurements(
        "a", "b", bytes=size, peak_memory_bytes=size, memory_at=(2048, 1), baseline_bytes=7
    )
    result = gate(measured, Limits(accuracy_margin=None, ttft_p50_ratio=None, e2e_ratio=None))
    disk, memory = result.checks
    assert (disk.verdict, memory.verdict, memory.slice) == (verdict, verdict, "context 2048 x batch 1")
    assert (disk.candidate, disk.baseline, disk.delta, disk.n) == (size, 7, size - 7, 1)
    assert (memory.candidate, memory.baseline, memory.delta, memory.n) == (size, None, None, 1)
    assert disk.reason == memory.reason == "6 GB where 6 GB is the limit"


def test_memory_measured_under_other_conditions_is_no_evidence() -> None:
    measured = Measurements("a", "b", peak_memory_bytes=1, memory_at=(512, 1))
    check = only(gate(measured, NOTHING.model_copy(update={"max_peak_memory_bytes": 6_000_000_000})))
    assert (check.verdict, "not measured at context 2048" in check.reason) == (Verdict.FAIL, True)


def test_what_has_no_device_here_is_unmeasured() -> None:
    absent = {"latency": "no SM89 GPU here", "accuracy": "no SM89 GPU here"}
    measured = Measurements("a", "b", bytes=1, unmeasured=absent)
    limits = NOTHING.model_copy(update={"accuracy_margin": 2.0, "e2e_ratio": 1.1, "max_bytes": 2})
    result = gate(measured, limits)
    assert [check.verdict for check in result.checks] == [
        Verdict.UNMEASURED,
        Verdict.UNMEASURED,
        Verdict.PASS,
    ]
    assert result.verdict == Verdict.UNMEASURED
    assert result.checks[0].reason == "no SM89 GPU here"


def test_the_worst_verdict_wins() -> None:
    """Planted one by one from the best; each is worse than all before it."""
    limits = NOTHING.model_copy(update={"max_bytes": 2, "max_kl": 0.1})
    measured = Measurements("a", "b", bytes=1, fidelity=fidelity(0.01))
    assert gate(measured, limits).verdict == Verdict.PASS
    measured = replace(measured, unmeasured={"latency": "no device"})
    limits = limits.model_copy(update={"e2e_ratio": 1.1})
    assert gate(measured, limits).verdict == Verdict.UNMEASURED
    measured = replace(measured, fidelity=fidelity(0.1))
    assert gate(measured, limits).verdict == Verdict.INCONCLUSIVE
    assert gate(replace(measured, bytes=3), limits).verdict == Verdict.FAIL


def fidelity(kl: float) -> Fidelity:
    return Fidelity(
        items=10,
        positions=50,
        kl_mean=kl,
        kl_low=0.8 * kl,
        kl_high=1.2 * kl,
        kl_p99=3 * kl,
        top1_agreement=0.9,
        answers=10,
        answer_flip_rate=0.0,
    )


@pytest.mark.parametrize(("kl", "verdict"), [(0.05, "PASS"), (0.1, "INCONCLUSIVE"), (0.2, "FAIL")])
def test_divergence_is_held_by_its_bounds(kl: float, verdict: str) -> None:
    measured = Measurements("a", "b", fidelity=fidelity(kl))
    check = only(gate(measured, NOTHING.model_copy(update={"max_kl": 0.1})))
    assert (check.verdict, check.candidate, check.n) == (verdict, kl, 50)
    assert (check.ci_low, check.ci_high) == (0.8 * kl, 1.2 * kl)
    assert check.reason == f"{0.8 * kl:.3g} to {1.2 * kl:.3g}, limit 0.1"


@pytest.mark.parametrize(("flips", "verdict"), [(0.02, "PASS"), (0.05, "INCONCLUSIVE"), (0.12, "FAIL")])
def test_flips_are_counted_in_both_directions(flips: float, verdict: str) -> None:
    check = only(
        gate(answers(1000, flips / 2, flips / 2), NOTHING.model_copy(update={"max_flip_rate": 0.05}))
    )
    assert check.verdict == verdict
    assert check.candidate == pytest.approx(flips, abs=0.02)


def test_flips_have_wilsons_one_sided_bounds() -> None:
    """20 won, 10 lost; by hand, with a = z^2 / 1000, z = 1.6449:
    (0.03 + a / 2 +- sqrt(a * 0.03 * 0.97 + a^2 / 4)) / (1 + a).
    """
    right = np.arange(1000) < 850
    after = right.copy()
    after[:10], after[900:920] = False, True
    measured = Measurements("a", "b", observations(right), observations(after))
    check = only(gate(measured, NOTHING.model_copy(update={"max_flip_rate": 0.05})))
    assert (check.candidate, check.n, check.verdict) == (0.03, 1000, Verdict.PASS)
    assert (check.ci_low, check.ci_high) == pytest.approx((0.02231, 0.04022), abs=1e-5)


def test_waivers_are_looked_at_today_unless_another_day_is_named() -> None:
    known = {"check": "bytes", "reason": "waits for the smaller head", "expires": date.today() + timedelta(1)}
    limits = Limits.model_validate(NOTHING.model_dump() | {"max_bytes": 10, "waivers": [known]})
    measured = Measurements("a", "b", bytes=11)
    assert gate(measured, limits).checks[0].waived
    assert not gate(measured, limits, date.max).checks[0].waived


def test_tasks_are_shown_without_a_verdict() -> None:
    result = gate(answers(400, 0.02, 0.02), NOTHING.model_copy(update={"accuracy_margin": 5.0}))
    assert [row.slice for row in result.slices] == ["task0", "task1"]
    assert sum(row.n or 0 for row in result.slices) == 400
    assert "verdict" not in result.slices[0].model_dump()


def test_a_gate_survives_json() -> None:
    result = gate(
        replace(
            answers(400, 0.02, 0.02),
            baseline_timings=timings(1),
            again_timings=timings(1),
            candidate_timings=timings(1),
        ),
        Limits(),
    )
    assert Gate.model_validate_json(result.model_dump_json()) == result
    assert result.model_dump()["waivers"] == []


def test_what_a_gate_does_not_know_is_refused_and_nothing_in_it_changes() -> None:
    result = gate(answers(400, 0.02, 0.02), EVERYTHING)
    told = result.model_dump(mode="json")
    row, check = told["slices"][0], told["checks"][0]
    for place, kind in ((told, Gate), (row, Row), (check, Check), (told["limits"], Limits)):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            kind.model_validate(place | {"more": 1})
    for thing in (result, result.slices[0], result.checks[0], result.limits):
        with pytest.raises(ValidationError, match="frozen"):
            thing.unit = "x"


@pytest.mark.parametrize(
    "bad", [{"acuracy": 1}, {"accuracy_margin": 0}, {"confidence": 95}, {"max_bytes": -1}]
)
def test_limits_refuse_nonsense(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Limits(**bad)


def test_every_limit_is_documented() -> None:
    assert all(field.description for field in Limits.model_fields.values())
