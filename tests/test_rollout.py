"""Rollouts: what the evidence shows, that the ramp obeys it, and that a rollback holds at once."""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from engines.errors import UserError
from serve.__main__ import main
from serve.rollout import simulate
from serve.rollout.driver import gate_refusal, seen
from serve.rollout.evidence import Errors, Mean, Mismatch, Ratio
from serve.rollout.guard import Guard, Seen
from serve.rollout.ramp import decide
from serve.router.policy import Rollout
from serve.router.reading import parse_policy, with_weights
from serve.router.record import Record
from tests.scripted_arm import answers, ask, policy_text, request, routing, scripted_arm
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


def test_errors_evidence_is_that_of_its_definition() -> None:
    """The least over a grid of the product of two Beta mixtures' ratios, from scipy."""
    from scipy.special import betaln, xlog1py, xlogy

    errors = Errors()
    errors.requests, errors.failures = [900, 100], [9, 6]
    grid = [number / 10_000 for number in range(1, 9999)]
    log_e = min(
        betaln(10, 921) + betaln(7, 124) - 2 * betaln(1, 30) - xlogy(15, p) - xlog1py(985, -p) for p in grid
    )
    threshold = math.exp(-log_e)
    assert errors.worse(threshold * 1.01)
    assert not errors.worse(threshold * 0.99)


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
        (fed(), 50, 61, "no gate", "hold", "no gate"),
        (fed(), 50, 61, None, "advance", "60 requests"),
        (fed(), 100, 61, None, "done", "100 %"),
        (fed(300, failing=True), 1, 1, None, "rollback", "points more often"),
        (fed(600, slow=1.3), 1, 1, None, "rollback", "ttft is 1."),
        (fed(5000, slow=1.04), 1, 61, None, "advance", "without an alarm"),
    ],
)
def test_decisions(
    guard: Guard, percent: int, dwelt_s: float, gate: str | None, action: str, told: str
) -> None:
    decision = decide(guard, Decimal(percent), dwelt_s, gate)
    assert decision.action == action
    assert told in decision.reason


def test_mismatch_holds() -> None:
    guard = Guard(PLAN, 0.5)
    for number in range(300):
        guard.add(Seen(True, b"%d" % number, False, 1.0, 1.0))
    assert decide(guard, Decimal(1), 61, None).action == "hold"


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


@pytest.mark.parametrize(
    ("truth", "least", "most"),
    [(simulate.TRUTHS[0], 0, 1), (simulate.TRUTHS[1], 7, 8), (simulate.TRUTHS[2], 7, 8)],
)
def test_simulated_experiments(truth: simulate.Truth, least: int, most: int) -> None:
    """A few, seeded; `python -m serve simulate` runs thousands."""
    outcome = simulate.simulate(truth, 8, seed=1)
    assert least <= outcome.rolled_back <= most


def test_new_weights_leave_the_text_alone() -> None:
    text = "# kept\n" + SMALLEST.replace("weights: {int4: 10, fp16: 90}", "weights: {int4: 10.00,  fp16: 90}")
    changed = with_weights(text, {"int4": Decimal("33.3"), "fp16": Decimal("66.7")})
    assert changed == text.replace("10.00,  fp16: 90}", "33.3,  fp16: 66.7}")
    assert with_weights(text, {"int4": Decimal(0), "fp16": Decimal(100)}).count("fp16: 100}") == 1


def rollout_text(tmp_path: Path) -> str:
    (tmp_path / "gate.json").write_text('{"verdict": "PASS"}')
    plan = "arm: a, steps: [1, 50, 100], dwell_s: 0.01, min_requests: 3"
    return f'rollout: {{{plan}, gate: "{tmp_path}/gate.json"}}\n'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ('{"verdict": "FAIL"}', "says FAIL"),
        ("[]", "cannot"),
    ],
)
def test_the_offline_gate_is_needed(content: str | None, told: str, tmp_path: Path) -> None:
    policy = parse_policy(
        SMALLEST.replace("groups", f'rollout: {{arm: int4, gate: "{tmp_path}/gate.json"}}\ngroups')
    )
    if content is not None:
        (tmp_path / "gate.json").write_text(content)
    assert told in (gate_refusal(policy) or "")
    assert "name its gate.json" in (gate_refusal(parse_policy(SMALLEST + "rollout: {arm: int4}\n")) or "")


def post(action: str) -> bytes:
    return request(b"", target=f"/rollout/{action}", Authorization="Bearer token")


async def until(what: str, router: Any) -> None:
    while router.rollout.state.status != what:
        await asyncio.sleep(0.01)


def test_a_ramp_from_start_to_all(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a, scripted_arm(answers(b"b")) as b:
            text = policy_text(a, b, weight_a=0, more=rollout_text(tmp_path))
            async with routing(tmp_path, text) as router:
                assert (await ask(router.admin_port, post("start"))).status == 200
                number = 0
                while router.rollout.state.status != "done":
                    number += 1
                    await ask(router.port, request(X_User_Id=f"u{number}"))
                assert [answer.body for answer in [await ask(router.port, request())]] == [b"a"]
                percents = [change.action.split()[2] for change in router.control.versions.changes[1:]]
                assert percents == ["1", "50", "100"]
            # A restart goes on where it was: the same share, the same state.
            async with routing(tmp_path, text) as router:
                assert router.rollout.state.status == "done"
                assert (await ask(router.port, request())).body == b"a"

    run(test())


@pytest.mark.parametrize("content", ["", "[]", '{"other": 1}'])
def test_a_damaged_state_is_refused(content: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a:
            (tmp_path / "state").mkdir()
            (tmp_path / "state" / "rollout.json").write_text(content)
            with pytest.raises(UserError, match="damaged"):
                async with routing(tmp_path, policy_text(a)):
                    pass

    run(test())


def test_a_failing_candidate_is_rolled_back_by_itself(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"", 500)) as a, scripted_arm(answers(b"b")) as b:
            more = (
                rollout_text(tmp_path)
                .replace("steps: [1, 50", "steps: [50")
                .replace("min_requests: 3", "min_requests: 9999")
            )
            async with routing(tmp_path, policy_text(a, b, weight_a=0, more=more)) as router:
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
            text = policy_text(a, b, weight_a=100, more=rollout_text(tmp_path))
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


def test_pause_promote_and_refusals(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a:
            more = rollout_text(tmp_path).replace("dwell_s: 0.01", "dwell_s: 1000")
            async with routing(tmp_path, policy_text(a, weight_a=0, more=more)) as router:
                admin = router.admin_port
                assert (await ask(admin, post("pause"))).status == 422
                assert (await ask(admin, post("start"))).status == 200
                assert (await ask(admin, post("start"))).status == 422
                assert (await ask(admin, post("promote"))).status == 200
                assert router.rollout.percent == 50
                (tmp_path / "gate.json").write_text('{"verdict": "FAIL"}')
                refused = await ask(admin, post("promote"))
                assert refused.status == 422
                assert b"says FAIL" in refused.body
                assert (await ask(admin, post("pause"))).status == 200
                assert router.rollout.state.status == "paused"
                assert (await ask(admin, post("pause"))).status == 200
                assert router.rollout.state.status == "running"
                assert (await ask(admin, post("nothing"))).status == 404

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
        async with scripted_arm(answers(b"a")) as a:
            text = policy_text(a, weight_a=0, more=rollout_text(tmp_path))
            async with routing(tmp_path, text) as router:
                where = ["--admin", f"http://127.0.0.1:{router.admin_port}", "--admin-token-file"]
                token = str(tmp_path / "token")
                for action in ("start", "status", "rollback"):
                    assert await asyncio.to_thread(main, ["rollout", action, *where, token]) == 0
                assert router.rollout.state.status == "rolled back"
                assert await asyncio.to_thread(main, ["rollout", "pause", *where, token]) == 1

    run(test())
    output = capsys.readouterr()
    assert '"status": "running"' in output.out
    assert "error: the rollout is rolled back; start it first" in output.err
    assert main(["rollout", "status", "--admin", "http://127.0.0.1:1", "--admin-token-file", __file__]) == 1
    assert main(["rollout", "status", "--admin-token-file", str(tmp_path / "none")]) == 1


def test_the_page_shows_the_rollout_live(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("chromium is not installed")
    found: list[str] = []

    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a:
            more = rollout_text(tmp_path).replace("dwell_s: 0.01", "dwell_s: 1000")
            async with routing(tmp_path, policy_text(a, weight_a=0, more=more)) as router:
                await ask(router.admin_port, post("start"))
                url = f"http://127.0.0.1:{router.admin_port}/#token"
                command = [
                    chromium,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    f"--user-data-dir={tmp_path}/c",
                ]
                command += ["--virtual-time-budget=3000", "--dump-dom", url]
                done = await asyncio.to_thread(
                    subprocess.run, command, capture_output=True, text=True, timeout=110
                )
                found.append(done.stdout)

    run(test())
    (page,) = found
    assert '<span class="reached">1 %</span>' in page
    assert "running: " in page
    assert "<td>a</td><td>1</td>" in page
    assert "started by 127.0.0.1" in page
