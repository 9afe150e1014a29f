"""Active health checks: every arm is asked, whether or not it has traffic."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable

from serve.router.arm import Arm
from serve.router.policy import Health
from serve.router.router import Router

STILL_S = 0.5  # a time-out that comes so late says nothing of the arm


async def check_forever(router: Router, tell: Callable[[str], None]) -> None:
    """Asks every arm of the policy in force, again and again, all at once; tells of changes."""
    failures: Counter[Arm] = Counter()
    while True:
        health = router.live.policy.health
        arms = list(router.live.arms.values())
        answers = await asyncio.gather(*(is_healthy(arm, health) for arm in arms))
        for arm, good in zip(arms, answers, strict=True):
            failures[arm] = 0 if good else failures[arm] + 1
            if arm.healthy != (failures[arm] < health.failures):
                arm.healthy = not arm.healthy
                tell(_change(arm, health))
        failures = Counter({arm: failures[arm] for arm in arms})
        await asyncio.sleep(health.interval_s)


def _change(arm: Arm, health: Health) -> str:
    if arm.healthy:
        return f"arm {arm.name} is healthy again"
    return (
        f"arm {arm.name} gets no requests: {arm.config.url}{health.path} did not answer 200 in "
        f"{health.timeout_s:g} s, {health.failures} times in a row"
    )


async def is_healthy(arm: Arm, health: Health) -> bool:
    """Whether the arm answers 200, in time, on a connection of its own."""
    began = time.monotonic()
    request = b"GET %b HTTP/1.1\r\n%bconnection: close\r\n\r\n" % (health.path.encode(), arm.host_line)
    try:
        async with asyncio.timeout(health.timeout_s):
            reader, writer = await asyncio.open_connection(arm.host, arm.port)
            try:
                writer.write(request)
                return (await reader.readline()).startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return time.monotonic() - began > health.timeout_s + STILL_S  # the router stood still, not the arm
    except (OSError, ValueError):
        return False
