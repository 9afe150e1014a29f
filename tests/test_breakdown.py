"""Slices by size and phase, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.breakdown import breakdown, figure
from bench.latency import Timing


def timing(ttft: float, prompt: int, patches: int = 0, batch: int = 1, vision: float | None = 4.0) -> Timing:
    return Timing(
        "a", 0, 0, prompt, 3, ttft, 2.0, ttft + 4, 1.0, batch=batch, patches=patches, vision_ms=vision
    )


def test_slices_by_image_prompt_and_batch() -> None:
    rows = [timing(10, 64), timing(20, 65, 784), timing(30, 128, 1024), timing(40, 200, batch=4)]
    found = {part["slice"]: part for part in breakdown(rows)}
    assert {name: part["n"] for name, part in found.items()} == {
        "all": 3,
        "no image": 1,
        "image of 513–1,024 patches": 2,
        "prompt of 33–64 tokens": 1,
        "prompt of 65–128 tokens": 2,
        "4 together": 1,
    }
    assert found["all"]["ttft_ms"] == pytest.approx({"p50": 20, "p95": 29, "p99": 29.8})
    assert found["all"]["prefill_ms"]["p50"] == 16
    assert found["4 together"]["e2e_latency_ms"]["p50"] == 44


def test_every_load_has_its_slices_and_prefill_is_without_the_wait() -> None:
    rows = [timing(10, 64), replace(timing(50, 64, 784), load=0.5, wait_ms=40.0)]
    found = {part["slice"]: part for part in breakdown(rows)}
    assert list(found) == [
        "all",
        "no image",
        "prompt of 33–64 tokens",
        "load 0.5",
        "load 0.5, image of 513–1,024 patches",
        "load 0.5, prompt of 33–64 tokens",
    ]
    assert (found["load 0.5"]["ttft_ms"]["p50"], found["load 0.5"]["prefill_ms"]["p50"]) == (50, 6)
    assert found["all"]["ttft_ms"]["p50"] == 10


def test_a_phase_that_was_not_measured_is_left_out() -> None:
    (whole, *_) = breakdown([timing(10, 1), timing(20, 1, vision=None)])
    assert "vision_ms" not in whole
    assert "ttft_ms" in whole
    assert breakdown([]) == []


@pytest.mark.parametrize(
    ("values", "shown"), [({"p50": 12.34, "p99": None}, "12.3 / -"), ({}, "-"), (None, "-")]
)
def test_figures_are_told(values: dict[str, float | None] | None, shown: str) -> None:
    assert figure(values) == shown
