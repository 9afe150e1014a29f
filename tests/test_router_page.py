"""The page at the admin port in headless Chromium: what a person on call sees, and what its buttons do."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from serve.router.run import Running
from tests.scripted_arm import LAST, STREAM, Asked, Script, ask, event, request, routing, scripted_arm
from tests.test_rollout import artifact, ramp_text
from tests.test_router import run

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: apt-get install chromium")


def shoot(page: Page, name: str) -> None:
    """A screenshot to look at, where $SCREENSHOTS says."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def speaking(seconds: float, seed: int) -> Script:
    draw = random.Random(seed)

    async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds * draw.lognormvariate(0, 0.2))
        usage = '{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}'
        writer.write(STREAM + event('{"choices": [{"delta": {"content": "x"}}]}'))
        await asyncio.sleep(seconds / 2)
        writer.write(event(usage) + event("[DONE]") + LAST)

    return script


async def traffic(router: Running, first: int, number: int) -> set[str]:
    """Requests of so many users; the arms they got."""
    users = iter(range(first, first + number))
    arms: set[str] = set()

    async def client() -> None:
        for user in users:
            arms.update((await ask(router.port, request(X_User_Id=f"u{user}"))).header("x-ab-arm"))

    await asyncio.gather(*(client() for _ in range(24)))
    return arms


async def browse(router: Running, go: Callable[[Page], None], fragment: str = "#token") -> None:
    """Drives the page from another thread, while the router runs in this one."""

    def drive() -> None:
        with sync_playwright() as playwright:
            options = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
            page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="dark")
            page.set_default_timeout(60_000)
            expect.set_options(timeout=60_000)
            page.goto(f"http://127.0.0.1:{router.admin_port}/{fragment}")
            go(page)
            browser.close()

    await asyncio.to_thread(drive)


def test_a_ramp_is_watched_driven_and_rolled_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(speaking(0.004, 1)) as a, scripted_arm(speaking(0.004, 2)) as b:
            text = ramp_text(tmp_path, a, b, steps=[20, 50, 100], dwell_s=600, min_requests=100)
            async with routing(tmp_path, text) as router:
                await browse(router, lambda page: begin(page, tmp_path))
                await traffic(router, 0, 700)
                await browse(router, watch)
                await traffic(router, 700, 400)
                await browse(router, lambda page: end(page, tmp_path))
                assert await traffic(router, 0, 100) == {"b"}
                actions = [change.action for change in router.control.versions.changes]
                assert [action.partition(" by ")[0] for action in actions[1:]] == [
                    "rollout a 20 %: started",
                    "rollout a 20 %: paused",
                    "rollout a 20 %: goes on,",
                    "rollout a 50 %: promoted",
                    "rollout a 0 %: rolled back",
                ]

    run(test())


def begin(page: Page, folder: Path) -> None:
    assert page.url.endswith("/"), "the token does not stay in the address"
    expect(page.locator("#headline")).to_have_text("idle a has 0 %")
    expect(page.locator("#rollback")).to_be_disabled()
    page.click("#start")
    expect(page.locator("#headline")).to_have_text("running a has 20 %")
    expect(page.locator("#evidence tr").nth(1)).to_contain_text("latency is not compared: 0 of 100 users")


def watch(page: Page) -> None:
    """Figures of 700 requests, one a user, at a share of 20 %."""
    expect(page.locator("#banner")).to_have_class("good")
    expect(page.locator("#age")).to_have_text("live")
    expect(page.locator("#ramp .now")).to_have_text("20 %")
    requests = page.locator("#arms tr:has(b) td:nth-child(5)")
    counts = [int(text) for text in requests.all_inner_texts()]
    assert sum(counts) == 700
    tokens = page.locator("#arms tr:has(b) td:nth-child(7)").all_inner_texts()
    assert [text.split("\n")[0] for text in tokens] == [f"{3 * n:,}, {5 * n:,}" for n in counts]
    quantiles = page.locator("#arms tr").first.locator("td:nth-last-child(-n+3)").all_inner_texts()
    p50, p95, p99 = (re.findall(r"[\d.]+", text) for text in quantiles)
    assert float(p50[1]) <= float(p50[0]) <= float(p50[2]) <= float(p95[2])
    assert p99 == [], "too few requests for its interval"
    expect(page.locator("#evidence tr")).to_have_count(4)
    for number, name in enumerate(("failures", "ttft", "e2e latency")):
        line = page.locator("#evidence tr").nth(number)
        expect(line).to_contain_text(name)
        expect(line).to_contain_text("no difference shown")
        expect(line.locator("svg rect")).to_have_count(1)
    expect(page.locator("#evidence tr").nth(3)).to_contain_text("as the policy says")
    expect(page.locator("#meters")).to_contain_text("of 600")
    expect(page.locator("#meters")).to_contain_text("offline gate: PASS")
    shoot(page, "running")
    page.click("#pause")
    expect(page.locator("#banner")).to_have_class("warn")
    page.click("#start")
    expect(page.locator("#banner")).to_have_class("good")
    page.click("#promote")
    expect(page.locator("#promote")).to_have_text("Sure? 50 %")
    expect(page.locator("#headline")).to_have_text("running a has 20 %")
    page.click("#promote")
    expect(page.locator("#headline")).to_have_text("running a has 50 %")
    expect(page.locator("#past tr")).to_have_count(1)


def end(page: Page, folder: Path) -> None:
    artifact(folder / "artifact", verdict="FAIL")
    expect(page.locator("#meters")).to_contain_text("says FAIL")
    shoot(page, "promoted")
    page.click("#promote")
    page.click("#promote")
    expect(page.locator("#told")).to_contain_text("says FAIL")
    expect(page.locator("#headline")).to_have_text("running a has 50 %")
    page.click("#rollback")
    expect(page.locator("#headline")).to_have_text("rolled back a has 0 %")
    expect(page.locator("#banner")).to_have_class("bad")
    expect(page.locator("#reason")).to_contain_text("rolled back by 127.0.0.1")
    expect(page.locator("#changes tr").first).to_contain_text("rollout a 0 %")
    assert page.title() == "rolled back – e"
    shoot(page, "rolled-back")


def test_the_page_asks_for_the_token_and_tells_when_nobody_answers(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(speaking(0.0, 1)) as a, routing(tmp_path, ramp_text(tmp_path, a)) as router:
            await browse(router, ask_for_token, "")

    def ask_for_token(page: Page) -> None:
        expect(page.locator("main")).to_be_hidden()
        page.fill("#token", "wrong")
        page.press("#token", "Enter")
        expect(page.locator("#told")).to_contain_text("expected Authorization")
        page.fill("#token", "token")
        page.press("#token", "Enter")
        expect(page.locator("main")).to_be_visible()
        expect(page.locator("#ask")).to_be_hidden()
        page.route("**/status", lambda route: route.abort())
        expect(page.locator("#age")).to_contain_text("NO ANSWER FROM THE ROUTER")
        shoot(page, "stale")

    run(test())
