"""A short run of router and arms: nothing lost, all logged; what leaks, loses or forgets is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from bench.endurance import commands
from bench.endurance.judge import REQUEST_ID, judge
from bench.endurance.mix import SHARES, requests
from bench.endurance.processes import Life
from bench.endurance.run import Plan, Run, endure
from bench.verdict import Verdict
from tests.live_arm import built

# Imported by every Python that finds it: an arm and a router that let go of nothing.
LEAK = """\
import sys, threading, time

def leak():
    kept = []
    while True:
        kept.append((b"\\1" * 1_000_000, open("/dev/null")))
        time.sleep(0.1)

if {"arm", "router"} & set(sys.orig_argv):
    threading.Thread(target=leak, daemon=True).start()
"""
PLAN = Plan(seconds=20, rate=5, restarts=1, policies=7, every_s=0.2)


@pytest.fixture(scope="module")
def artifact(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(micro_checkpoint, tmp_path_factory.mktemp("built") / "arm")


@pytest.fixture(scope="module")
def sound(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return endure(PLAN, [artifact, artifact], tmp_path_factory.mktemp("sound"), print)


def verdicts(run: Run) -> dict[str, set[Verdict]]:
    """Of each metric."""
    checks = judge(run)
    return {name: {c.verdict for c in checks if c.metric == name} for name in {c.metric for c in checks}}


def test_router_and_arms_lose_nothing(sound: Run) -> None:
    for check in judge(sound):
        print(check.verdict, check.name, check.candidate, check.ci_low, check.ci_high, check.reason)
    found = verdicts(sound)
    for name in ("memory_growth", "open_files_growth"):
        assert found.pop(name) == {Verdict.INCONCLUSIVE}, "too short a run to tell"
    assert found == {name: {Verdict.PASS} for name in found}
    assert {heard.kind for heard in sound.heard} == SHARES.keys()
    assert {life.name for life in sound.lives} == {"router", "candidate", "baseline"}
    done = [change.what for change in sound.changes]
    assert {"start", "promote", "rollback", "put", "hangup"} < set(done)
    assert any("killed" in what or "terminated" in what for what in done)


def test_what_grows_is_found(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(LEAK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    plan = replace(PLAN, seconds=9, rate=2, restarts=0, policies=0, every_s=0.1)
    run = endure(plan, [artifact, artifact], tmp_path / "work", print)
    failed = {(check.metric, check.slice.split()[0]) for check in judge(run) if check.verdict == Verdict.FAIL}
    assert failed == set(product(("memory_growth", "open_files_growth"), ("router", "candidate", "baseline")))


def broken_off(run: Run, killed: bool) -> Run:
    """One more stream that ended early, just when its arm was ended."""
    first = next(heard for heard in run.heard if heard.kind == "stream" and heard.good)
    change = next(change for change in run.changes if change.what.startswith(("candidate", "baseline")))
    arm = change.what.split()[0]
    ended = replace(change, what=f"{arm} {'killed' if killed else 'terminated'}")
    at = {"began": change.began - 1, "ended": change.began + 0.1}
    cut = replace(first, end="broken", arm=arm, **at)
    heard = [cut if heard is first else heard for heard in run.heard]
    return replace(run, heard=heard, changes=[ended if it is change else it for it in run.changes])


def otherwise(run: Run, **facts: object) -> Run:
    """One whole answer that was heard otherwise."""
    first = next(heard for heard in run.heard if heard.kind == "text")
    return replace(run, heard=[replace(heard, **facts) if heard is first else heard for heard in run.heard])


FAULTS: dict[str, tuple[str, Callable[[Run], Run]]] = {
    "a line is removed": ("log_lines_missing", lambda run: replace(run, log=run.log[1:])),
    "the router says it lost one": ("log_lines_missing", lambda run: replace(run, log_lines_lost=1)),
    "a line comes twice": ("log_lines_stray", lambda run: replace(run, log=[*run.log, run.log[0]])),
    "nobody asked": (
        "log_lines_stray",
        lambda run: replace(run, log=[*run.log, run.log[0] | {REQUEST_ID: ["?"]}]),
    ),
    "another status": (
        "log_lines_wrong",
        lambda run: replace(run, log=[line | {"http.response.status_code": 500} for line in run.log]),
    ),
    "no answer": ("lost_requests", lambda run: otherwise(run, end="broken", status=0)),
    "another answer than was due": ("lost_requests", lambda run: otherwise(run, due=404)),
    "cut by SIGTERM": ("lost_requests", lambda run: broken_off(run, killed=False)),
    "a refused change": (
        "failed_changes",
        lambda run: replace(run, changes=[replace(run.changes[0], ok=False), *run.changes[1:]]),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_lost_is_found(sound: Run, fault: str) -> None:
    metric, plant = FAULTS[fault]
    assert {name for name, found in verdicts(plant(sound)).items() if Verdict.FAIL in found} == {metric}


def test_streams_of_a_killed_arm_are_no_loss(sound: Run) -> None:
    assert verdicts(broken_off(sound, killed=True))["lost_requests"] == {Verdict.PASS}


def hour(percent: float, noise: float = 0.0, step: float = 0.0, minutes: float = 60.0) -> Life:
    """100 MB that grow by so many percent an hour, with pages that come and go, and one step up."""
    times = np.arange(0, 60 * minutes, 2.0)
    random = np.random.default_rng(0)
    filling = 20 * np.exp(-times / 60)  # caches, in the first minutes
    found = 100 - filling + percent * times / 3600 + noise * random.standard_normal(len(times))
    found += step * (times > 0.6 * times[-1])
    return Life("router", 1, times.tolist(), [int(value * 1e6) for value in found], [20] * len(times))


@pytest.mark.parametrize(
    ("life", "verdict"),
    [
        (hour(0.0), Verdict.PASS),
        (hour(0.5, noise=0.1), Verdict.PASS),
        (hour(0.0, step=0.5), Verdict.PASS),
        (hour(1.5), Verdict.FAIL),
        (hour(2.0, noise=0.5), Verdict.FAIL),
        (hour(1.0, noise=0.5), Verdict.INCONCLUSIVE),
        (hour(5.0, minutes=8), Verdict.INCONCLUSIVE),
        (hour(400.0, minutes=8), Verdict.FAIL),
        (hour(0.0, minutes=0.1), Verdict.INCONCLUSIVE),
    ],
    ids=["flat", "slow", "a step", "fast", "in noise", "at the limit", "short", "short and blunt", "gone"],
)
def test_an_hour_of_memory(life: Life, verdict: Verdict) -> None:
    run = Run(Plan(seconds=life.times[-1]), 0.0, [], [], [life], [], 0, 0.0)
    (found,) = verdicts(run)["memory_growth"]
    assert found == verdict, [check.reason for check in judge(run)]


def test_open_files_count_at_their_quietest() -> None:
    busy = replace(hour(0.0), files=[20 + number % 3 for number in range(1800)])
    leaking = replace(busy, files=[20 + number % 3 + number // 100 for number in range(1800)])
    for life, verdict in ((busy, Verdict.PASS), (leaking, Verdict.FAIL)):
        run = Run(Plan(seconds=3600), 0.0, [], [], [life], [], 0, 0.0)
        assert verdicts(run)["open_files_growth"] == {verdict}


def test_every_long_life_is_judged() -> None:
    """And of an arm that never lived long the longest, which shows nothing."""
    lives = [hour(0.0), replace(hour(9.0), pid=2), replace(hour(0.0, minutes=9), pid=3)]
    lives += [replace(hour(0.0, minutes=minutes), name="candidate") for minutes in (8, 9)]
    checks = judge(Run(Plan(seconds=3600), 0.0, [], [], lives, [], 0, 0.0))
    memory = [(check.slice, check.verdict) for check in checks if check.metric == "memory_growth"]
    assert memory == [("router 1", "PASS"), ("router 2", "FAIL"), ("candidate 1", "INCONCLUSIVE")]


def test_requests_are_drawn_from_a_seed() -> None:
    one, same, other = (list(requests(10, 60, seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert len({request.id for request in one}) == len(one)
    assert all(a.at_s < b.at_s < 60 for a, b in pairwise(one))
    assert 500 < len(one) < 700
    assert {request.kind for request in one} == SHARES.keys()


def test_the_command_tells_and_its_exit_code_says(
    sound: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["endurance", "--minutes", "0.3", "--artifacts", "a", "b", "--work", str(tmp_path)]
    monkeypatch.setattr(commands, "endure", lambda *_: sound)
    assert main([*asked, "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "INCONCLUSIVE"
    assert sum(document["requests"].values()) == len(sound.heard)
    monkeypatch.setattr(commands, "endure", lambda *_: replace(sound, log=sound.log[1:]))
    assert main(asked) == 3
    assert "FAIL" in capsys.readouterr().out
    (tmp_path / "log").touch()
    assert main(asked) == 1
    assert "earlier run" in capsys.readouterr().err
