"""`bench trust`: candidates of known truth are what they are said to be, and their verdicts are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

from bench.accuracy import Observation
from bench.gate import Measurements, Verdict
from bench.latency import Timing
from bench.trust import answers, leak, slow
from bench.trust.plant import FAULTS
from bench.trust.questions import questions
from bench.trust.rates import PROMISE, Rate, draws_needed, tally
from bench.trust.run import GROWTH, Planted, Settings, Trust, run
from bench.trust.table import fault_table, problems, rate_table
from engines.checkpoint import Checkpoint
from engines.export import export

FEW = Settings(draws=3, items=200, requests=8, pool=48, processes=1, threads=1)
WORDS = ("red", "green", "blue", "black", "white")


def observations(right: np.ndarray) -> list[Observation]:
    return [
        Observation(str(i), f"task{i % 2}", WORDS[i % 5], "?", bool(ok), 0.2, (1,), float(ok))
        for i, ok in enumerate(right)
    ]


@pytest.fixture(scope="module")
def baseline() -> list[Observation]:
    return observations(np.arange(1000) % 10 != 0)


@pytest.fixture(scope="module")
def damaged(baseline: list[Observation]) -> list[Observation]:
    """Loses a tenth of all answers, every one of task1."""
    return [replace(x, correct=False, score=0.0) if int(x.id) % 10 == 1 else x for x in baseline]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Measurements]:
    """What the gate is given, in place of its verdicts."""
    seen: list[Measurements] = []
    gate = answers.gate

    def note(measurements: Measurements, limits: object) -> object:
        seen.append(measurements)
        return gate(measurements, answers.limits(2.0, None))

    monkeypatch.setattr(answers, "gate", note)
    return seen


def lost(measurements: Measurements) -> float:
    """Points."""
    pairs = zip(measurements.baseline_answers, measurements.candidate_answers, strict=True)
    return 100 * float(np.mean([before.score - after.score for before, after in pairs]))


def drawn(
    baseline: list[Observation], damaged: list[Observation], share: float, swap: bool = False
) -> Iterator[Verdict]:
    asked = answers.limits(2.0, None)
    return answers.verdicts(baseline, damaged, asked, draws=40, items=1000, seed=0, share=share, swap=swap)


@pytest.mark.parametrize(("share", "truth"), [(1.0, 10.0), (0.4, 4.0), (0.0, 0.0)])
def test_a_candidate_is_as_much_worse_as_it_is_said_to_be(
    baseline: list[Observation],
    damaged: list[Observation],
    measured: list[Measurements],
    share: float,
    truth: float,
) -> None:
    """Forty draws of 1,000: the mean is known to 0.2 points."""
    verdicts = list(drawn(baseline, damaged, share))
    assert np.mean([lost(one) for one in measured]) == pytest.approx(truth, abs=0.4)
    assert set(verdicts) == ({Verdict.FAIL} if truth else {Verdict.PASS})


def test_one_made_as_good_differs_and_loses_nothing(
    baseline: list[Observation], damaged: list[Observation], measured: list[Measurements]
) -> None:
    list(drawn(baseline, damaged, 1.0, swap=True))
    found = [lost(one) for one in measured]
    assert np.mean(found) == pytest.approx(0, abs=0.6)
    assert np.std(found) == pytest.approx(1.0, abs=0.4)  # a tenth of the items differ


def test_draws_are_of_different_items_each_time(
    baseline: list[Observation], damaged: list[Observation], measured: list[Measurements]
) -> None:
    list(drawn(baseline, damaged, 1.0))
    assert len({lost(one) for one in measured}) > 10
    assert all(len({x.id for x in one.baseline_answers}) == 1000 for one in measured)


def test_the_loss_is_told_where_it_is_most_of_its_margin(
    baseline: list[Observation], damaged: list[Observation]
) -> None:
    """Ten points overall, twenty of task1."""
    overall = answers.furthest_loss(baseline, damaged, answers.limits(2.0, None))
    assert (overall.slice, overall.points) == ("all", pytest.approx(10))
    assert overall.share == pytest.approx(0.4)
    in_slice = answers.furthest_loss(baseline, damaged, answers.limits(20.0, 5.0))
    assert (in_slice.slice, in_slice.points) == ("task1", pytest.approx(20))
    assert in_slice.share == pytest.approx(0.5)
    assert answers.furthest_loss(baseline, baseline, answers.limits(2.0, None)).share == np.inf


@pytest.mark.parametrize(("slower", "verdict"), [(1.0, Verdict.PASS), (1.3, Verdict.FAIL)])
def test_a_slow_arm_is_as_slow_as_it_is_said_to_be(slower: float, verdict: Verdict) -> None:
    rng = np.random.default_rng(0)

    def timing(request: int, repeat: int) -> Timing:
        ttft, itl = rng.lognormal(0, 0.02, 2) * (20, 5)
        e2e = ttft + 7 * itl
        return Timing("arm", request, repeat, 10, 8, ttft, itl, e2e, 8e3 / e2e)

    recorded = [[[timing(i, j) for j in range(2)] for _ in range(slow.ARMS)] for i in range(30)]
    found = slow.verdicts(recorded, slower=slower, limit=1.15, draws=5, requests=24, seed=0)
    assert set(found) == {verdict}


@pytest.mark.parametrize(("wrong", "draws"), [(0, 72), (0, 71), (3, 400), (20, 400)])
def test_a_rate_has_its_exact_interval(wrong: int, draws: int) -> None:
    """Quantiles of beta distributions; a promise is kept if the whole interval is within it."""
    rate = Rate("a", "equal", Verdict.FAIL, tally([Verdict.FAIL] * wrong + [Verdict.PASS] * (draws - wrong)))
    low = beta.ppf(0.025, wrong, draws - wrong + 1) if wrong else 0.0
    high = beta.ppf(0.975, wrong + 1, draws - wrong)
    assert (rate.found.low, rate.found.high) == pytest.approx((low, high))
    assert rate.held == (high <= PROMISE)


def test_so_many_draws_can_show_a_promise() -> None:
    assert draws_needed() == 72


def test_questions_are_the_same_for_the_same_seed_and_in_equal_parts() -> None:
    items = questions(48, 1)
    assert [x.id for x in items] == [x.id for x in questions(48, 1)]
    assert {x.id for x in items} != {x.id for x in questions(48, 2)}
    tasks = [x.task for x in items]
    assert {tasks.count(task) for task in tasks} == {4}


@pytest.fixture(scope="module")
def found(micro_checkpoint: Path) -> Trust:
    told: list[str] = []
    return run(micro_checkpoint, FEW, told.append)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_every_fault_is_named_where_it_is(found: Trust, fault: object) -> None:
    (one,) = [one for one in found.planted if one.fault == fault.name]  # type: ignore[attr-defined]
    assert one.named == one.place, one.detail


def test_a_run_is_told_and_few_draws_keep_no_promise(found: Trust) -> None:
    assert {rate.draws for rate in found.rates} == {3, 1}
    assert not any(rate.held for rate in found.rates if rate.promise is not None)
    assert not found.held
    document = json.loads(json.dumps(found.document()))
    assert {"the same weights", "a slow arm", "a leaking arm"} <= {one["name"] for one in document["rates"]}
    assert rate_table(found).row_count == len(found.rates)
    assert fault_table(found).row_count == len(FAULTS)
    assert any("72 draws are the fewest" in line for line in problems(found))


def test_a_fault_that_is_named_elsewhere_is_a_problem(found: Trust) -> None:
    one: Planted = replace(found.planted[0], named=None)
    trust = Trust(found.settings, [], [one])
    assert not trust.held
    assert "nothing was named" in next(problems(trust))


@pytest.mark.parametrize(("kept", "verdict"), [(0, Verdict.PASS), (2 * GROWTH, Verdict.FAIL)])
def test_a_real_process_that_leaks_is_caught(
    micro_checkpoint: Path, tmp_path: Path, kept: int, verdict: Verdict
) -> None:
    export(Checkpoint.open(micro_checkpoint), tmp_path / "onnx")
    assert list(leak.verdicts(tmp_path / "onnx", kept=kept, limit=GROWTH, processes=1)) == [verdict]
