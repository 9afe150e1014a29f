"""Arrivals by a schedule at arms that answer one at a time: who waits how long, and what is judged of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import arrivals as module
from bench import latency
from bench.arms import Arm, Stamps
from bench.arrivals import arrivals, under_load
from bench.gate import Limits, Measurements, gate
from bench.latency import AGAIN, Timing, measure, single
from bench.noise import noise_lines, steady
from tests.fakes import NumberProcessor

ROOT = Path(__file__).resolve().parent.parent
LIMITS = Limits(accuracy_margin=None, ttft_p50_ratio=None, max_bytes=None, max_peak_memory_bytes=None)


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SETTLE_S", 0.0)


def requests(n: int) -> list[Any]:
    return [NumberProcessor()([{"content": "1 2 3" + " 1" * i}]) for i in range(n)]


def scripted(scale: float = 1.0) -> Arm:
    """First token after 100 ms, of which vision takes 30, and 50 for each further one."""

    def answer(prompts: Sequence[Any], count: int) -> Stamps:
        s = scale / 1e3
        return Stamps(7.0, [7.0 + s * (100 + 50 * i) for i in range(count)], 30 * s)

    return answer


def timed(arms: dict[str, Arm], n: int, rates: Sequence[float], **settings: Any) -> list[Timing]:
    work: dict[str, Any] = {"output_tokens": 3, "repeats": 1}
    alone = measure(arms, requests(n), **work, warmup=0)
    return alone + under_load(arms, requests(n), alone, rates, **work | settings)


def test_the_schedule_is_the_same_bits_in_every_process() -> None:
    code = "from bench.arrivals import arrivals; print(arrivals(3.0, 50, 7).tobytes().hex())"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == arrivals(3.0, 50, 7).tobytes().hex()
    assert not np.array_equal(arrivals(3.0, 50, 8), arrivals(3.0, 50, 7))


def test_arrivals_are_a_poisson_process() -> None:
    """Gaps have mean and deviation 1 / rate; a lower rate is the same process more slowly."""
    gaps = np.diff(arrivals(4.0, 20_000, 0))
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(0.25, rel=0.03)
    np.testing.assert_allclose(arrivals(2.0, 9, 5), 2 * arrivals(4.0, 9, 5))


def test_waits_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers take 200 ms. Due at 0, 50, 500 and 550 ms: the second and the last wait 150."""
    due = np.array([0.0, 0.05, 0.5, 0.55])
    monkeypatch.setattr(module, "arrivals", lambda rate, n, seed: due * 5 / rate)
    rows = [row for row in timed({"a": scripted()}, 4, [1.0]) if row.load]
    assert [row.wait_ms for row in rows] == pytest.approx([0, 150, 0, 150])
    assert [row.ttft_ms for row in rows] == pytest.approx([100, 250, 100, 250])
    assert [row.e2e_latency_ms for row in rows] == pytest.approx([200, 350, 200, 350])
    phases = {(round(row.vision_ms or 0), round(row.prefill_ms or 0), round(row.itl_ms)) for row in rows}
    assert phases == {(30, 70, 50)}  # which nobody waits longer for
    assert rows[1].output_tokens_per_s == pytest.approx(3 / 0.35)


def test_a_long_queue_waits_as_theory_says() -> None:
    """M/D/1, Pollaczek and Khinchine: the mean wait is rho / (2 (1 - rho)) answers; at 0.5 half of 200 ms."""
    arms = {"a": scripted()}
    alone = measure(arms, requests(1), output_tokens=3, warmup=0)
    rows = under_load(arms, requests(1) * 2000, alone, [0.5], output_tokens=3, repeats=1)
    assert np.mean([row.wait_ms for row in rows]) == pytest.approx(100, rel=0.15)


def test_every_arm_gets_the_same_arrivals_at_the_firsts_capacity_by_turns() -> None:
    """A slower arm is asked as often, and so falls behind; a faster one hardly waits."""
    seen: list[str] = []

    def noting(name: str, scale: float) -> Arm:
        arm = scripted(scale)

        def answer(prompts: Sequence[Any], count: int) -> Stamps:
            seen.append(name)
            return arm(prompts, count)

        return answer

    arms = {"a": noting("a", 1.0), "slow": noting("slow", 2.5), "fast": noting("fast", 0.1)}
    rows = timed(arms, 8, [0.5], repeats=2)
    first, second = ["a", "slow", "fast"], ["slow", "fast", "a"]
    assert seen[3 * 8 :][:12] == [*first, *reversed(first), *second, *reversed(second)]
    waits = {name: sum(row.wait_ms for row in rows if row.arm == name and row.load) for name in arms}
    assert waits["fast"] < waits["a"] / 5 < waits["slow"] / 10
    assert {(row.load, row.repeat) for row in rows if row.load} == {(0.5, 0), (0.5, 1)}


def test_no_loads_are_no_work() -> None:
    assert not any(row.load for row in timed({"a": scripted()}, 3, []))


def test_all_is_repeated_until_it_is_steady() -> None:
    looks: list[int] = []

    def enough(timings: Sequence[Timing]) -> bool:
        looks.append(len(timings))
        return len(looks) == 2

    told: list[tuple[int, int]] = []
    settings: dict[str, Any] = {"steady": enough, "progress": lambda *at: told.append(at)}
    rows = timed({"a": scripted()}, 3, [0.2, 0.4], most_repeats=8, **settings)
    assert looks == [6, 12]
    assert {row.repeat for row in rows if row.load} == {0, 1}
    assert told[-1] == (12, 12)


@pytest.mark.parametrize(
    ("again", "candidate", "verdict"),
    [(1.0, 1.0, "PASS"), (1.0, 1.14, "FAIL"), (1.14, 0.5, "INCONCLUSIVE")],
)
def test_what_is_within_the_limit_alone_may_not_be_under_load(
    again: float, candidate: float, verdict: str
) -> None:
    """An answer that takes 1.14 of the time is within 1.15; who waits for several of them waits longer."""
    arms = {"a": scripted(), "a" + AGAIN: scripted(again), "b": scripted(candidate)}
    rows = timed(arms, 60, [0.5, 0.9])
    sides = [single(rows, arm) for arm in arms]
    limits = LIMITS.model_copy(update={"itl_p50_ratio": 1.15})
    measured = Measurements(
        "a", "b", baseline_timings=sides[0], again_timings=sides[1], candidate_timings=sides[2]
    )
    found = {check.name: check.verdict for check in gate(measured, limits).checks}
    # Who is answered alone has the next token as soon, whoever waits.
    assert list(found) == [
        "itl_ms p50",
        *(f"e2e_latency_ms{load}" for load in ("", ", load 0.5", ", load 0.9")),
    ]
    assert {found["itl_ms p50"], found["e2e_latency_ms"]} == {"PASS"}
    assert found["e2e_latency_ms, load 0.9"] == verdict
    quiet = verdict != "INCONCLUSIVE"
    assert steady(sides[0], sides[1], LIMITS) is quiet
    (told,) = (line for line in noise_lines(sides[0], sides[1], LIMITS) if "at load 0.9" in line)
    assert told.endswith("too noisy for a limit of 1.15") is not quiet


def test_a_candidate_that_was_not_asked_under_load_is_no_evidence() -> None:
    rows = timed({"a": scripted(), "a" + AGAIN: scripted(), "b": scripted()}, 9, [0.5])
    measured = Measurements(
        "a",
        "b",
        baseline_timings=single(rows, "a"),
        again_timings=single(rows, "a" + AGAIN),
        candidate_timings=[row for row in single(rows, "b") if not row.load],
    )
    found = {check.name: check for check in gate(measured, LIMITS).checks}
    assert found["e2e_latency_ms"].verdict == "PASS"
    assert found["e2e_latency_ms, load 0.5"].verdict == "FAIL"
    assert "missing evidence" in found["e2e_latency_ms, load 0.5"].reason
