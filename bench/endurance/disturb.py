"""What happens meanwhile: new policies, steps of a rollout and rollbacks, restarts of arms."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from bench.endurance.processes import ARMS, Site

POLICIES = ("start", "promote", "promote", "rollback", "put", "hangup")  # in turn
KILLS = {"terminated": signal.SIGTERM, "killed": signal.SIGKILL}
PATIENCE_S = 120.0  # for an arm to come back


@dataclass(frozen=True)
class Change:
    """What was done at `began` (monotonic); `ended`: done, or an arm ready again. ok: as it should."""

    what: str
    began: float
    ended: float
    ok: bool = True
    why: str = ""


def moments(start: float, seconds: float, count: int, random: np.random.Generator) -> list[float]:
    """So many moments, one in each equal part."""
    return [start + seconds * (part + random.random()) / count for part in range(count)]


def change_policies(site: Site, at: Sequence[float], over: threading.Event) -> Iterator[Change]:
    """A step of the rollout, a rollback or a new policy at each moment."""
    for number, moment in enumerate(at):
        if _wait(moment, over):
            return
        what, began = POLICIES[number % len(POLICIES)], time.monotonic()
        status, why = _change(site, what, number)
        # A guard may have ended the rollout for a kill: then there is nothing to promote.
        ok = status == 200 or (what == "promote" and status == 422)
        yield Change(what, began, time.monotonic(), ok, "" if ok else why)


def _change(site: Site, what: str, seed: int) -> tuple[int, str]:
    """The status and text of the router's answer."""
    if what == "hangup":
        (site.folder / "policy.yaml").write_text(site.policy(50))
        os.kill(site.processes()["router"], signal.SIGHUP)
        return 200, ""
    if what == "put":
        share = int(np.random.default_rng(seed).integers(30, 71))
        return site.admin("PUT", "/policy", site.policy(share).encode())
    return site.admin("POST", f"/rollout/{what}")


def restart_arms(
    site: Site, halves: Sequence[Sequence[float]], over: threading.Event, seed: int
) -> Iterator[Change]:
    """The baseline ends at moments of the first half, the candidate of the second: one life of each is long.

    By SIGTERM and by SIGKILL in turn; the next only once the arm is ready again.
    """
    hows = cycle(np.random.default_rng(seed).permutation(list(KILLS)).tolist())
    for name, at in zip(reversed(ARMS), halves, strict=True):
        for moment, how in zip(at, hows, strict=False):
            if _wait(moment, over):
                return
            began, before = time.monotonic(), site.processes()[name]
            os.kill(before, KILLS[how])
            back = _until_back(site, name, before)
            why = "" if back else "it did not come back"
            yield Change(f"{name} {how}", began, time.monotonic(), back, why)


def _until_back(site: Site, name: str, before: int) -> bool:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if site.processes().get(name, before) != before and site.is_ready(name):
            return True
        time.sleep(0.1)
    return False


def _wait(moment: float, over: threading.Event) -> bool:
    return over.wait(max(0.0, moment - time.monotonic()))
