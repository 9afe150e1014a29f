"""Rollouts: what the evidence shows, that the ramp obeys it, and that a rollback holds at once."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from engines.artifact import Manifest, hash_file
from serve.__main__ import main
from serve.rollout import simulate
from serve.rollout.driver import Driver, seen
from serve.rollout.evidence import Errors, Interval, Mean, Mismatch, Ratio, _log_likelihood, _restricted
from serve.rollout.gate import refusal
from serve.rollout.guard import Guard, Seen
from serve.rollout.ramp import decide
from serve.router.control import Control, open_router
from serve.router.log import Log
from serve.router.policy import Rollout
from serve.router.reading import parse_policy, with_weights
from serve.router.record import Record
from serve.router.versions import Versions
from tests.conftest import ROOT
from tests.scripted_arm import ScriptedArm, answers, ask, policy_text, request, routing, scripted_arm, whole
from tests.test_policy import SMALLEST
from tests.test_router import run

PLAN = Rollout.model_validate({"arm": "a", "dwell_s": 60, "min_requests": 50})


def test_errors_interval_covers_and_worse_is_its_lower_end() -> None:
    errors = Errors()
    for number in range(3000):
        errors.add(True, number % 25 == 0)  # 4 %
        errors.add(False, number % 100 == 0)  # 1 %
    found = errors.interval(0.05)
    assert found.estimate == pytest.approx(0.03)
    assert 0.01 < found.low < 0.03 < found.high < 0.055
    assert errors.worse(0.05) == (found.low > 0)
    assert not errors.worse(1e-30)


def counted(*steps: tuple[int, int, int, int]) -> Errors:
    """Of requests and failures of the baseline, then of the candidate, by step."""
    errors = Errors()
    for number, (n0, f0, n1, f1) in enumerate(steps):
        if number:
            errors.step()
        errors.steps[-1].requests, errors.steps[-1].failures = [n0, n1], [f0, f1]
    return errors


def test_errors_evidence_is_that_of_its_definition() -> None:
    """The least over a grid of Beta mixtures' ratios, from scipy; steps have rates of their own."""
    import numpy as np
    from scipy.special import betaln, xlog1py, xlogy

    steps = ((900, 9, 100, 6), (500, 40, 500, 60))
    grid = np.arange(1, 9999) / 10_000

    def likeliest(n0: int, f0: int, n1: int, f1: int) -> float:
        return float((xlogy(f0 + f1, grid) + xlog1py(n0 + n1 - f0 - f1, -grid)).max())

    def mixture(n: int, f: int) -> float:
        return float(betaln(1 + f, 30 + n - f) - betaln(1, 30))

    throughout = math.exp(mixture(1400, 49) + mixture(600, 66) + 600)
    apart = math.exp(sum(mixture(n0, f0) + mixture(n1, f1) for n0, f0, n1, f1 in steps) + 600)
    log_e = math.log((throughout + apart) / 2) - 600 - sum(likeliest(*step) for step in steps)
    threshold = math.exp(-log_e)
    assert counted(*steps).worse(threshold * 1.01)
    assert not counted(*steps).worse(threshold * 0.99)


@pytest.mark.parametrize("excess", [-0.4, -0.031, -0.001, 0.002, 0.017, 0.3, 0.9])
@pytest.mark.parametrize(
    "step", [(900, 9, 100, 6), (50, 0, 50, 3), (500, 499, 40, 1), (7, 0, 9, 0), (3, 3, 2, 2)]
)
def test_rates_so_far_apart_are_the_likeliest(step: tuple[int, int, int, int], excess: float) -> None:
    """The cubic's root against a search."""
    from scipy.optimize import minimize_scalar

    n0, f0, n1, f1 = step
    rate = _restricted(f0, f1, n0, n1, excess)
    low, high = max(0.0, -excess), min(1.0, 1.0 - excess)
    assert low <= rate <= high

    def loss(p: float) -> float:
        return -_log_likelihood(f0, n0, p) - _log_likelihood(f1, n1, p + excess)

    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    assert loss(rate) <= found.fun + 1e-6


def test_a_bad_hour_of_both_arms_is_not_the_candidates() -> None:
    """5 % in each step's arms alike, then 20 %: pooled, the candidate would have 15 % against 6 %."""
    errors = counted((9000, 450, 300, 15), (600, 120, 600, 120))
    assert errors.excess == pytest.approx(0)
    assert not errors.worse(0.05)
    assert errors.interval(0.05).low < 0 < errors.interval(0.05).high


def test_mean_has_the_cluster_robust_variance() -> None:
    """Against statsmodels' cluster-robust regression on a constant."""
    import numpy as np
    import statsmodels.api as sm

    draw = random.Random(3)
    habits = {user: draw.gauss(0, 1) for user in range(40)}
    rows = [(user, habits[user] + draw.gauss(0, 0.5)) for user in (draw.randrange(40) for _ in range(400))]
    mean = Mean()
    for user, value in rows:
        mean.add(b"%d" % user, value)
    fitted = sm.OLS([value for _, value in rows], np.ones(400)).fit(
        cov_type="cluster", cov_kwds={"groups": [user for user, _ in rows], "df_correction": False}
    )
    assert mean.mean == pytest.approx(fitted.params[0])
    # statsmodels' own correction is g / (g - 1) x (n - 1) / (n - k), the last of which is 1 here
    corrected = sm.OLS([value for _, value in rows], np.ones(400)).fit(
        cov_type="cluster", cov_kwds={"groups": [user for user, _ in rows]}
    )
    assert mean.variance == pytest.approx(corrected.bse[0] ** 2)


def test_ratio_needs_users_and_then_tells() -> None:
    draw = random.Random(1)
    ratio = Ratio()
    for number in range(99):
        ratio.add(True, b"%d" % number, 1.0)
        ratio.add(False, b"%d" % number, 1.0)
    assert ratio.interval(0.05) is None
    lopsided = Ratio()
    for number in range(3000):  # of many users, one asks half of the time
        for candidate in (True, False):
            lopsided.add(candidate, b"%d" % (number % 300) if number % 2 else b"one", 1.0)
    assert lopsided.users < 5
    assert lopsided.interval(0.05) is None
    ratio = Ratio()
    for number in range(3000):
        ratio.add(True, b"%d" % number, 1.2 * math.exp(draw.gauss(0, 0.4)))
        ratio.add(False, b"%d" % number, math.exp(draw.gauss(0, 0.4)))
    found = ratio.interval(0.05)
    assert found
    assert 1.1 < found.low < 1.2 < found.high < 1.3


@pytest.mark.parametrize(("share", "shown"), [(0.1, False), (0.14, True), (0.07, True)])
def test_mismatch(share: float, shown: bool) -> None:
    draw = random.Random(5)
    mismatch = Mismatch(0.1)
    for number in range(5000):
        for _ in range(3):  # how often one asks does not count
            mismatch.add(draw.random() < share, b"%d" % number)
    assert mismatch.shown() == shown


def test_a_share_of_nothing_sees_nobody() -> None:
    mismatch = Mismatch(0.0)
    mismatch.add(False, b"u")
    assert not mismatch.shown()
    mismatch.add(True, b"v")
    assert mismatch.shown()


def fed(requests: int = 60, *, failing: bool = False, slow: float = 1.0) -> Guard:
    guard, draw = Guard(PLAN, 0.5), random.Random(2)
    for number in range(requests):
        for candidate in (True, False):
            e2e = math.exp(draw.gauss(0, 0.3)) * (slow if candidate else 1)
            failed = failing and candidate and number % 5 == 0
            guard.add(Seen(candidate, b"%d%d" % (candidate, number), failed, e2e / 4, e2e))
    return guard


@pytest.mark.parametrize(
    ("guard", "percent", "dwelt_s", "gate", "action", "told"),
    [
        (fed(), 1, 61, None, "advance", "without an alarm"),
        (fed(), 1, 59, None, "wait", "59 of 60 s"),
        (fed(40), 1, 61, None, "wait", "40 of 50 requests"),
        (fed(), 50, 61, None, "hold", "latency is not compared: 60 of 100 users"),
        (fed(100), 50, 61, "no gate", "hold", "no gate"),
        (fed(100), 50, 61, None, "advance", "100 requests"),
        (fed(), 100, 61, None, "done", "100 %"),
        (fed(300, failing=True), 1, 1, None, "rollback", "points more often"),
        (fed(600, slow=1.3), 1, 1, None, "rollback", "ttft is 1."),
        (fed(5000, slow=1.04), 1, 61, None, "advance", "without an alarm"),
    ],
)
def test_decisions(
    guard: Guard, percent: int, dwelt_s: float, gate: str | None, action: str, told: str
) -> None:
    decision = decide(guard, Decimal(percent), dwelt_s, lambda: gate)
    assert decision.action == action
    assert told in decision.reason


def test_mismatch_holds() -> None:
    guard = Guard(PLAN, 0.5)
    for number in range(300):
        guard.add(Seen(True, b"%d" % number, False, 1.0, 1.0))
    assert decide(guard, Decimal(1), 61, lambda: None).action == "hold"


@pytest.mark.parametrize(
    ("change", "failed", "timed"),
    [
        ({}, False, True),
        ({"status": 503, "error": "connect"}, True, False),
        ({"status": 500}, True, False),
        ({"status": 429}, True, False),
        ({"status": 200, "error": "reset"}, True, False),
        ({"status": 200, "fallback": "connect", "served": "b"}, True, False),
        ({"status": 499, "error": "client_closed"}, False, False),
        ({"status": 404}, False, False),
    ],
)
def test_what_counts_against_an_arm(change: dict[str, Any], failed: bool, timed: bool) -> None:
    record = Record(
        1.0, "::1", b"GET", b"/", "e", 1, assigned="a", key=b"u", status=200, first=2.0, ended=3.0
    )
    for name, value in change.items():
        setattr(record, name, value)
    evidence = seen(record, "a")
    assert evidence == Seen(True, b"u", failed, 1.0 if timed else None, 2.0 if timed else None)


SHORTER = Rollout.model_validate({"arm": "a", "dwell_s": 1e-9, "min_requests": 100})


PROMISED = (
    "equal",
    "equal, both slower and failing more from step to step",
    "+15 % latency",
    "+15 % latency, both slower from step to step",
    "+2 points of errors",
)


def broken_promises(promised: Sequence[str] = PROMISED, experiments: int = 20) -> list[str]:
    """Of a few seeded ramps a truth; `python -m serve simulate` runs thousands."""
    broken = []
    for truth in simulate.TRUTHS:
        if truth.name not in promised:
            continue
        worse = truth.latency_ratio > 1.1 or truth.error_points > 0
        outcome = simulate.simulate(truth, experiments if worse else 12, 1, None if worse else SHORTER)
        if outcome.rate < 0.95 if worse else outcome.rate > 0.05:
            broken.append(truth.name)
    return broken


def test_guards_keep_their_promises_in_simulated_experiments() -> None:
    assert broken_promises() == []


def fixed_n(self: Ratio, alpha: float) -> Interval | None:
    """What a t-test of one look would say."""
    baseline, candidate = self.arms
    if self.users < 20:
        return None
    found = candidate.mean - baseline.mean
    radius = 1.96 * math.sqrt(candidate.variance + baseline.variance)
    return Interval(math.exp(found), math.exp(found - radius), math.exp(found + radius))


def fixed_n_worse(self: Errors, alpha: float) -> bool:
    (n0, n1), (f0, f1) = self.requests, self.failures
    rate = (f0 + f1) / (n0 + n1)
    return n1 > 20 and self.excess > 1.645 * math.sqrt(rate * (1 - rate) * (1 / n0 + 1 / n1))


def pooled(self: Guard, share: float) -> None:
    """All steps in one comparison."""
    self.mismatch = Mismatch(share)
    self.ttft, self.e2e = getattr(self, "ttft", Ratio()), getattr(self, "e2e", Ratio())


@pytest.mark.parametrize(
    ("where", "name", "mutant", "promise"),
    [
        (Ratio, "interval", fixed_n, "equal"),
        (Errors, "worse", fixed_n_worse, "equal"),
        (Guard, "_begin", pooled, "equal, both slower and failing more from step to step"),
        (Guard, "alarm", lambda self: None, "+15 % latency"),
    ],
)
def test_other_guards_would_not(
    where: type, name: str, mutant: Any, promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, mutant)
    assert broken_promises([promise], 4) == [promise]


def test_rates_have_wilsons_interval() -> None:
    from statsmodels.stats.proportion import proportion_confint

    for found, n in ((0, 500), (12, 500), (500, 500)):
        assert simulate.wilson(found, n) == pytest.approx(
            proportion_confint(found, n, method="wilson"), abs=1e-6
        )


def test_new_weights_leave_the_text_alone() -> None:
    text = "# kept\n" + SMALLEST.replace("weights: {int4: 10, fp16: 90}", "weights: {int4: 10.00,  fp16: 90}")
    changed = with_weights(text, {"int4": Decimal("33.3"), "fp16": Decimal("66.7")})
    assert changed == text.replace("10.00,  fp16: 90}", "33.3,  fp16: 66.7}")
    assert with_weights(text, {"int4": Decimal(0), "fp16": Decimal(100)}).count("fp16: 100}") == 1


def artifact(folder: Path, **change: Any) -> str:
    """A built variant with its gate, as far as a rollout looks; its digest."""
    manifest = Manifest(name="m", stage="s", stage_version="1", key="k", files={})
    checks = [{"metric": "accuracy", "verdict": "PASS"}, {"metric": "bytes", "verdict": "PASS"}]
    gate = {"candidate": manifest.digest, "verdict": "PASS", "checks": checks, "waivers": []}
    file = folder / "evidence" / "gate.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(gate | change))
    manifest.model_copy(update={"evidence": {"evidence/gate.json": hash_file(file)}}).write(folder)
    return manifest.digest


def ramp_text(
    folder: Path, a: ScriptedArm, b: ScriptedArm | None = None, weight_a: int = 0, **plan: object
) -> str:
    """Arm a grows; its artifact, which passed, is folder/artifact."""
    digest = artifact(folder / "artifact")
    gate = str(folder / "artifact" / "evidence" / "gate.json")
    fields = {"arm": "a", "steps": [1, 50, 100], "dwell_s": 0.01, "min_requests": 3, "gate": gate} | plan
    more = f"rollout: {json.dumps(fields)}\n"
    return policy_text(a, b, weight_a=weight_a, more=more).replace("sha256:aa", digest)


def gate_text(folder: Path, digest: str = "") -> str:
    told = f', digest: "{digest}"' if digest else ""
    text = SMALLEST.replace("groups", f'rollout: {{arm: int4, gate: "{folder}/evidence/gate.json"}}\ngroups')
    return text.replace('8082"', f'8082"{told}')


FAILED = [{"metric": "accuracy", "verdict": "FAIL"}]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"verdict": "FAIL"}, "says FAIL"),
        ({"verdict": "INCONCLUSIVE"}, "says INCONCLUSIVE"),
        ({"verdict": "UNMEASURED"}, "says UNMEASURED"),
        ({"checks": FAILED}, "not of accuracy"),
        ({"checks": FAILED, "waivers": [{"check": "accuracy"}]}, None),
        ({"checks": 1}, "cannot be read"),
        ({"checks": [{"metric": metric, "verdict": "FAIL"} for metric in ([], 7)]}, "not of 7, []"),
        ({"candidate": "sha256:other"}, "is of sha256:other"),
    ],
)
def test_the_offline_gate_is_needed(change: dict[str, Any], told: str | None, tmp_path: Path) -> None:
    digest = artifact(tmp_path, **change)
    for text in (gate_text(tmp_path), gate_text(tmp_path, digest)):
        found = refusal(parse_policy(text))
        assert (told in (found or "")) if told else found is None


def test_a_forged_or_missing_gate_is_refused(tmp_path: Path) -> None:
    digest, file = artifact(tmp_path, verdict="FAIL"), tmp_path / "evidence" / "gate.json"
    policy = parse_policy(gate_text(tmp_path))
    file.write_text(file.read_text().replace("FAIL", "PASS"))
    assert "is not the one that its manifest lists" in (refusal(policy) or "")
    artifact(tmp_path)
    assert refusal(policy) is None
    assert "is of sha256:" in (refusal(parse_policy(gate_text(tmp_path, digest + "0"))) or "")
    for broken in ("{", "[]", "{}"):
        file.write_text(broken)
        assert "cannot be read" in (refusal(policy) or "")
    file.unlink()
    assert "cannot be read" in (refusal(policy) or "")
    (tmp_path / "manifest.json").unlink()
    assert "has no manifest.json" in (refusal(policy) or "")
    assert "name its gate.json" in (refusal(parse_policy(SMALLEST + "rollout: {arm: int4}\n")) or "")


def post(action: str, body: bytes = b"") -> bytes:
    return request(body, target=f"/rollout/{action}", Authorization="Bearer token")


def test_a_ramp_from_start_to_all(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a, scripted_arm(answers(b"b")) as b:
            text = ramp_text(tmp_path, a, b)
            async with routing(tmp_path, text) as router:
                assert (await ask(router.admin_port, post("start"))).status == 200
                number = 0
                while router.rollout.state.status != "done":
                    number += 1
                    await ask(router.port, request(X_User_Id=f"u{number}"))
                assert [answer.body for answer in [await ask(router.port, request())]] == [b"a"]
                percents = [change.action.split()[2] for change in router.control.versions.changes[1:]]
                assert percents == ["1", "50", "100", "100"]
                assert (await ask(router.admin_port, post("start"))).status == 422, "it is done"
            # A restart goes on where it was: the same share, the same state.
            async with routing(tmp_path, text) as router:
                assert router.rollout.state.status == "done"
                assert (await ask(router.port, request())).body == b"a"

    run(test())


def test_a_failing_candidate_is_rolled_back_by_itself(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"", 500)) as a, scripted_arm(answers(b"b")) as b:
            text = ramp_text(tmp_path, a, b, steps=[50, 100], min_requests=9999)
            async with routing(tmp_path, text) as router:
                await ask(router.admin_port, post("start"))
                number = 0
                while router.rollout.state.status == "running":
                    number += 1
                    await ask(router.port, request(X_User_Id=f"u{number}"))
                assert router.rollout.state.status == "rolled back"
                assert "points more often" in router.rollout.state.reason
                for number in range(30):
                    assert (await ask(router.port, request(X_User_Id=f"v{number}"))).body == b"b"

    run(test())


def test_rollback_holds_for_the_next_request(tmp_path: Path) -> None:
    """The next request after the answer; what was in flight is finished by the arm that had it."""

    async def test() -> None:
        go = asyncio.Event()

        async def slow(asked: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await go.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na")

        async with scripted_arm(slow) as a, scripted_arm(answers(b"b")) as b:
            text = ramp_text(tmp_path, a, b, weight_a=100)
            async with routing(tmp_path, text) as router:
                held = asyncio.create_task(ask(router.port, request(X_User_Id="u1")))
                while not a.asked:
                    await asyncio.sleep(0.01)
                assert (await ask(router.admin_port, post("rollback"))).status == 200
                assert (await ask(router.port, request(X_User_Id="u1"))).body == b"b"
                go.set()
                assert (await held).body == b"a"
                assert "rolled back by 127.0.0.1" in router.control.versions.changes[-1].action

    run(test())


def test_what_is_asked_twice_changes_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            scripted_arm(answers(b"a")) as a,
            routing(tmp_path, ramp_text(tmp_path, a, dwell_s=1000)) as router,
        ):
            admin, versions = router.admin_port, router.control.versions

            async def asked(action: str, body: bytes = b"") -> tuple[int, str, float, int]:
                before = len(versions.changes)
                answer = await ask(admin, post(action, body))
                found = router.rollout.figures()
                if answer.status == 200:
                    assert json.loads(answer.body)["status"] == found["status"]
                return answer.status, found["status"], found["percent"], len(versions.changes) - before

            assert await asked("pause") == (422, "idle", 0, 0)
            assert await asked("promote") == (422, "idle", 0, 0)
            assert await asked("rollback") == (200, "idle", 0, 0)
            assert await asked("start") == (200, "running", 1, 1)
            assert await asked("start") == (200, "running", 1, 0)
            assert await asked("pause") == (200, "paused", 1, 1)
            assert await asked("pause") == (200, "paused", 1, 0)
            assert await asked("promote", b'{"to": 50}') == (200, "paused", 50, 1)
            assert await asked("promote", b'{"to": 50}') == (200, "paused", 50, 0)
            assert await asked("promote", b'{"to": 1}') == (200, "paused", 50, 0)
            assert await asked("start") == (200, "running", 50, 1)
            for wrong in (b'{"to": "50"}', b'{"to": true}', b'{"two": 50}', b"50"):
                assert await asked("promote", wrong) == (400, "running", 50, 0)
            for wrong in (b'{"to": 51}', b'{"to": NaN}'):
                assert await asked("promote", wrong) == (422, "running", 50, 0)
            artifact(tmp_path / "artifact", verdict="FAIL")
            assert await asked("promote") == (422, "running", 50, 0)
            artifact(tmp_path / "artifact")
            await asked("promote")
            while router.rollout.state.status != "done":
                await asyncio.sleep(0.01)
            assert router.rollout.percent == 100
            assert await asked("rollback") == (200, "rolled back", 0, 1)
            assert await asked("rollback") == (200, "rolled back", 0, 0)
            assert await asked("promote") == (422, "rolled back", 0, 0)
            assert (await ask(admin, post("nothing"))).status == 404

    run(test())


def test_even_the_first_step_needs_the_gate_for_all(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            scripted_arm(answers(b"a")) as a,
            routing(tmp_path, ramp_text(tmp_path, a, steps=[100])) as router,
        ):
            artifact(tmp_path / "artifact", verdict="FAIL")
            assert (await ask(router.admin_port, post("start"))).status == 422
            assert router.rollout.percent == 0

    run(test())


@pytest.mark.parametrize("first", ["person", "automation"])
def test_a_rollback_is_not_undone_by_what_was_decided_before(first: str, tmp_path: Path) -> None:
    """The ramp wants to advance, someone puts a policy, someone rolls back, all at once."""

    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a:
            text = ramp_text(tmp_path, a, min_requests=1, dwell_s=1e-9)
            async with routing(tmp_path, text) as router:
                rollout, control = router.rollout, router.control
                await rollout.start("x")
                assert rollout.guard
                rollout.guard.add(Seen(True, b"u", False, 1.0, 1.0))
                put = control.put(text.replace("a: 0, b: 100", "a: 1, b: 99") + "retries: 0\n", "put", "y")
                both = [rollout.rollback("x"), rollout.tick()]
                await asyncio.gather(put, *(both if first == "person" else both[::-1]))
                assert rollout.percent == 0
                assert rollout.state.status == "rolled back"
                assert control.router.live.policy.retries == 0, "what was put holds too"

    run(test())


def test_a_full_disk_does_not_stop_a_rollback(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            scripted_arm(answers(b"a")) as a,
            scripted_arm(answers(b"b")) as b,
            routing(tmp_path, ramp_text(tmp_path, a, b, steps=[50, 100])) as router,
        ):
            await router.rollout.start("x")
            audit = tmp_path / "state" / "audit.jsonl"
            audit.rename(tmp_path / "kept")
            audit.symlink_to("/dev/full")
            assert (await ask(router.admin_port, post("rollback"))).status == 200
            assert "a restart undoes it" in router.rollout.state.reason
            for number in range(30):
                assert (await ask(router.port, request(X_User_Id=f"v{number}"))).body == b"b"
            assert (await ask(router.admin_port, post("start"))).status == 507

    run(test())


def test_a_crash_at_any_byte_finds_share_and_status_together(tmp_path: Path) -> None:
    """The state of a ramp that was started, promoted, paused and rolled back, cut anywhere."""

    async def ramp() -> None:
        async with (
            scripted_arm(answers(b"a")) as a,
            routing(tmp_path, ramp_text(tmp_path, a, dwell_s=1000)) as router,
        ):
            for action in ("start", "promote", "pause", "rollback"):
                assert (await ask(router.admin_port, post(action))).status == 200

    async def opened(folder: Path) -> tuple[str, Decimal]:
        control = Control(
            open_router(tmp_path / "policy.yaml", Versions(folder), log, print), Versions(folder)
        )
        driver = Driver(control, print)
        return driver.state.status, driver.percent

    run(ramp())
    log, state = Log(None), tmp_path / "state"
    audit = (state / "audit.jsonl").read_bytes()
    ends = [index + 1 for index, byte in enumerate(audit) if byte == ord("\n")]
    expected = [("idle", 0), ("running", 1), ("running", 50), ("paused", 50), ("rolled back", 0)]
    try:
        for cut in sorted({*range(ends[0], len(audit), 41), *ends, *(end - 1 for end in ends[1:])}):
            folder = tmp_path / f"cut{cut}"
            shutil.copytree(state, folder)
            os.truncate(folder / "audit.jsonl", cut)
            assert asyncio.run(opened(folder)) == expected[sum(end <= cut for end in ends) - 1]
    finally:
        log.close()


def test_kill_and_restart_in_the_middle_of_a_step(tmp_path: Path) -> None:
    """As processes, with streams in flight: share, status, texts and audit log are there again."""
    policy, state = tmp_path / "policy.yaml", tmp_path / "state"

    @asynccontextmanager
    async def router() -> AsyncIterator[tuple[asyncio.subprocess.Process, int, int]]:
        command = [sys.executable, "-m", "serve", "router", str(policy), "--port=0", "--admin-port=0"]
        command += [f"--state={state}", f"--admin-token-file={tmp_path / 'token'}"]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
        try:
            assert process.stderr
            ready = (await process.stderr.readline()).decode()
            port, admin = map(int, re.findall(r"127\.0\.0\.1:(\d+)", ready))
            yield process, port, admin
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def arms(port: int) -> list[bytes]:
        return [(await ask(port, request(X_User_Id=f"u{number}"))).body for number in range(40)]

    async def status(admin: int) -> dict[str, Any]:
        asked = request(b"", method="GET", target="/rollout", Authorization="Bearer token")
        return dict(json.loads((await ask(admin, asked)).body))

    async def test() -> None:
        held = asyncio.Event()

        async def script(asked: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if b"/held" in asked.head:
                held.set()
                await reader.read()
            writer.write(whole(b"a"))

        async with scripted_arm(script) as a, scripted_arm(answers(b"b")) as b:
            policy.write_text(ramp_text(tmp_path, a, b, steps=[10, 50, 100], dwell_s=1000))
            (tmp_path / "token").write_text("token")
            async with router() as (process, port, admin):
                for action in ("start", "promote"):
                    assert (await ask(admin, post(action))).status == 200
                before = await arms(port)
                mine = before.index(b"a")
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request(target="/held", X_User_Id=f"u{mine}"))
                await held.wait()
                process.kill()
                await process.wait()
                writer.close()
            audit = (state / "audit.jsonl").read_bytes()
            texts = {file.name: file.read_bytes() for file in (state / "policies").iterdir()}
            async with router() as (_, port, admin):
                found = await status(admin)
                assert (found["status"], found["percent"]) == ("running", 50)
                assert found["reason"] == "promoted by 127.0.0.1"
                assert await arms(port) == before, "the same users have the same arms"
                for action in ("pause", "pause", "rollback", "rollback"):
                    assert (await ask(admin, post(action))).status == 200
                assert set(await arms(port)) == {b"b"}
            async with router() as (_, port, admin):
                found = await status(admin)
                assert (found["status"], found["percent"]) == ("rolled back", 0)
                assert set(await arms(port)) == {b"b"}
            kept = (state / "audit.jsonl").read_bytes()
            assert kept.startswith(audit), "nothing that was written is changed"
            assert len(kept.splitlines()) == len(audit.splitlines()) + 2
            assert (
                texts.items()
                <= {file.name: file.read_bytes() for file in (state / "policies").iterdir()}.items()
            )

    run(test())


@pytest.mark.parametrize("path", ["/status", "/rollout", "/policy", "/metrics"])
def test_the_admin_port_asks_for_its_token(path: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a, routing(tmp_path, policy_text(a)) as router:
            admin = router.admin_port
            assert (await ask(admin, request(b"", method="GET", target=path))).status == 401
            wrong = request(b"", method="GET", target=path, Authorization="Bearer tokem")
            assert (await ask(admin, wrong)).status == 401
            right = request(b"", method="GET", target=path, Authorization="Bearer token")
            assert (await ask(admin, right)).status == 200
            # On the traffic port the same path is the arm's.
            assert (await ask(router.port, right)).header("x-ab-arm") == ["a"]

    run(test())


def test_the_command_line_reaches_a_router(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a, routing(tmp_path, ramp_text(tmp_path, a)) as router:
            where = ["--admin", f"http://127.0.0.1:{router.admin_port}", "--admin-token-file"]
            token = str(tmp_path / "token")
            for action in ("start", "status", "rollback"):
                assert await asyncio.to_thread(main, ["rollout", action, *where, token]) == 0
            assert router.rollout.state.status == "rolled back"
            assert await asyncio.to_thread(main, ["rollout", "pause", *where, token]) == 1
            assert await asyncio.to_thread(main, ["rollout", "start", "--to", "5", *where, token]) == 1
            where[1] = a.url
            assert await asyncio.to_thread(main, ["rollout", "status", *where, token]) == 1

    run(test())
    output = capsys.readouterr()
    assert '"status": "running"' in output.out
    assert "error: the rollout is rolled back; start it first" in output.err
    assert main(["rollout", "status", "--admin", "http://127.0.0.1:1", "--admin-token-file", __file__]) == 1
    assert main(["rollout", "status", "--admin-token-file", str(tmp_path / "none")]) == 1
