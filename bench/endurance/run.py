"""From start to end: load, disturbances, and everything that was seen."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.endurance.client import Heard, ask
from bench.endurance.disturb import Change, change_policies, moments, restart_arms
from bench.endurance.mix import requests
from bench.endurance.processes import Life, Site, running, watching

CLIENTS = 32  # at once, at most
READY_S = 0.5
TELL_S = 60.0


@dataclass(frozen=True)
class Plan:
    """rate: requests a second; restarts of each arm; policies: changes of the policy; every_s: looks."""

    seconds: float
    rate: float = 3.0
    restarts: int = 2
    policies: int = 12
    every_s: float = 2.0
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """What was sent and heard, what was done meanwhile, and what router and processes tell of it."""

    plan: Plan
    began: float
    heard: list[Heard]
    changes: list[Change]
    lives: list[Life]
    log: list[dict[str, Any]]
    log_lines_lost: int  # as the router counts them
    client_cpu_s: float


def endure(plan: Plan, artifacts: Sequence[Path], folder: Path, tell: Callable[[str], None]) -> Run:
    """Candidate and baseline behind a router for so long; its files stay in the folder, which is new."""
    random = np.random.default_rng(plan.seed)
    with running(artifacts, folder) as site:
        changes: list[Change] = []
        over = threading.Event()
        began, cpu = time.monotonic() + READY_S, time.process_time()
        half = plan.seconds / 2
        halves = [moments(began + start, half, plan.restarts, random) for start in (0, half)]
        at = moments(began, plan.seconds, plan.policies, random)
        work = [change_policies(site, at, over), restart_arms(site, halves, over, plan.seed)]
        with ThreadPoolExecutor() as others, watching(site, plan.every_s):
            done = [others.submit(_gather, one, changes, tell) for one in work]
            try:
                heard = _load(plan, site, began, tell)
            finally:
                over.set()
            for one in done:
                one.result()
        cpu = time.process_time() - cpu
        lost = int(json.loads(site.admin("GET", "/status")[1])["log_lines_lost"])
    return Run(plan, began, heard, changes, list(site.lives.values()), site.log(), lost, cpu)


def _load(plan: Plan, site: Site, began: float, tell: Callable[[str], None]) -> list[Heard]:
    """Every request at its time, waiting for nobody's answer."""
    asked: list[Future[Heard]] = []
    told = began
    with ThreadPoolExecutor(CLIENTS) as clients:
        for request in requests(plan.rate, plan.seconds, plan.seed):
            time.sleep(max(0.0, began + request.at_s - time.monotonic()))
            asked.append(clients.submit(ask, site.port, request))
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                tell(f"{(told - began) / 60:.0f} of {plan.seconds / 60:g} minutes: {len(asked)} requests")
    return [one.result() for one in asked]


def _gather(work: Iterable[Change], found: list[Change], tell: Callable[[str], None]) -> None:
    for change in work:
        found.append(change)
        if not change.ok or " " in change.what:
            tell(f"{change.what}, {change.ended - change.began:.1f} s {change.why}")
