"""The page at / in headless Chromium: what a person sees when asking an arm, or two."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from engines.artifact import Manifest
from engines.generate import generate
from engines.onnx_session import OnnxSession
from engines.processor import Processor
from tests.live_arm import LiveArm, built, live_arm

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def artifact(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(micro_checkpoint, tmp_path_factory.mktemp("page") / "micro" / "onnx-fp16")


@pytest.fixture(scope="module")
def arm(artifact: Path) -> Iterator[LiveArm]:
    with live_arm(artifact) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, arm: LiveArm) -> Iterator[Page]:
    """Opened; whatever its console complains of fails the test."""
    opened, complaints = browser.new_page(), list[str]()
    opened.set_default_timeout(60_000)
    opened.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(arm.url)
    yield opened
    opened.close()
    assert not complaints


def answer(artifact: Path, text: str, image: Image.Image | None = None) -> str:
    processor = Processor.load(artifact)
    content = [{"type": "image", "image": image}] if image else []
    inputs = processor([{"role": "user", "content": [*content, {"type": "text", "text": text}]}])
    return generate(OnnxSession(artifact, threads=1), processor, inputs, max_tokens=32).text.strip()


def shoot(page: Page, name: str) -> None:
    """A screenshot to look at, where $SCREENSHOTS says."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_a_question_is_answered_and_timed(page: Page, artifact: Path) -> None:
    expect(page.locator(".name")).to_have_text("micro · onnx-fp16")
    expect(page.locator(".digest")).to_have_text(Manifest.read(artifact).digest[:19])
    expect(page.locator(".light")).to_have_class("light ok")
    page.fill("#max-tokens", "32")
    page.fill("#prompt", "Code of Zafolo?")
    page.press("#prompt", "Enter")
    expect(page.locator(".assistant .text").last).to_have_text(answer(artifact, "Code of Zafolo?"))
    expect(page.locator(".timing")).to_contain_text("first token")
    expect(page.locator(".timing")).to_contain_text("tokens/s")
    expect(page.locator(".user")).to_have_text("Code of Zafolo?")
    expect(page.locator(".status")).to_contain_text("MB")
    page.fill("#prompt", "BORA?")
    page.click("#send")
    expect(page.locator(".timing").last).to_contain_text("prompt tokens remembered")
    shoot(page, "chat")
    page.click("#clear")
    expect(page.locator(".messages li")).to_have_count(0)


def test_pictures_and_videos_are_shown_and_sent(page: Page, artifact: Path, tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(5).integers(0, 256, (48, 64, 3), np.uint8))
    picture.save(tmp_path / "picture.png")
    page.fill("#max-tokens", "32")
    page.set_input_files("#attach", tmp_path / "picture.png")
    expect(page.locator("#files img")).to_have_count(1)
    page.fill("#prompt", "How many?")
    page.click("#send")
    expect(page.locator(".assistant .text").last).to_have_text(answer(artifact, "How many?", picture))
    assert page.locator(".user img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade * 30, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    page.set_input_files("#attach", [tmp_path / "picture.png", tmp_path / "video.mp4"])
    expect(page.locator("#files figure")).to_have_count(2)
    page.locator("#files button").first.click()
    expect(page.locator("#files video")).to_have_count(1)
    page.fill("#prompt", "What happens?")
    page.click("#send")
    expect(page.locator(".timing").last).to_contain_text("tokens")
    expect(page.locator(".user video")).to_have_count(1)
    shoot(page, "media")


def test_two_arms_side_by_side(page: Page, arm: LiveArm, artifact: Path, tmp_path: Path) -> None:
    """The other one asks for a key, and answers pages of this one's origin."""
    (tmp_path / "key").write_text("sesame")
    options = (f"--api-key-file={tmp_path / 'key'}", f"--allow-origin={arm.url}", "--model-name=other")
    with live_arm(artifact, *options) as other:
        page.check("#compare")
        second = page.locator(".pane").nth(1)
        second.locator(".url").fill(other.url)
        second.locator(".key").evaluate("key => { key.hidden = false; key.value = 'sesame' }")
        with page.expect_response(f"{other.url}/metrics"):
            second.get_by_role("button", name="Connect").click()
        expect(second.locator(".name")).to_have_text("other · onnx-fp16")
        expect(second.locator(".status")).not_to_contain_text("-")  # rates are of one arm, not of two
        page.fill("#max-tokens", "32")
        page.fill("#prompt", "Code of Zafolo?")
        page.click("#send")
        texts = page.locator(".assistant .text:not(details *)")
        expect(texts).to_have_text([answer(artifact, "Code of Zafolo?")] * 2)
        expect(page.locator(".timing")).to_contain_text(["tokens/s", "tokens/s"])
        shoot(page, "side-by-side")
        page.uncheck("#compare")
        expect(page.locator(".pane")).to_have_count(1)


def test_errors_are_shown_and_an_answer_can_be_stopped(browser: Browser, artifact: Path) -> None:
    """A page of its own, whose console may complain."""
    with live_arm(artifact) as arm:
        page = browser.new_page()
        page.goto(arm.url)
        page.fill("#max-tokens", "5000")
        page.fill("#prompt", "BORA?")
        page.click("#send")
        expect(page.locator(".timing.error")).to_contain_text("the context has 4096")
        page.route("**/v1/chat/completions", lambda route: None)  # never answered
        page.fill("#prompt", "BORA?")
        page.click("#send")
        page.click("#stop")
        expect(page.locator(".timing").last).to_have_text("stopped")
        expect(page.locator("#send")).to_be_enabled()
        page.close()


def test_answers_are_never_markup(page: Page) -> None:
    """What a model says is shown as it is."""
    event = '{"choices":[{"delta":{"content":"<img src=x onerror=alert(1)>"}}]}'
    body = f"data: {event}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body))
    page.fill("#prompt", "<b>?</b>")
    page.click("#send")
    expect(page.locator(".assistant .text").last).to_have_text("<img src=x onerror=alert(1)>")
    assert page.locator(".messages img, .messages b").count() == 0
