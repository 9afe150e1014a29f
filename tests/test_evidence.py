"""What the gate is asked of each variant: limits and waivers that are its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from build.evidence import Built, judge
from build.recipe import load_recipe

WAIVERS = (
    "{check: bytes, reason: for every variant, expires: 2999-01-01}, "
    "{check: accuracy, reason: for this one only, expires: 2999-01-01, variant: awq-int4}"
)


@pytest.mark.parametrize(
    ("variant", "metrics", "waived"),
    [
        ("fp16", {"bytes", "peak_memory_bytes", "memory_growth"}, {"bytes"}),
        ("gptq-int4", {"accuracy", "bytes", "peak_memory_bytes", "memory_growth"}, {"bytes"}),
        ("awq-int4", {"accuracy", "bytes", "peak_memory_bytes", "memory_growth"}, {"bytes", "accuracy"}),
    ],
)
def test_a_variant_has_its_own_limits_and_waivers(variant: str, metrics: set[str], waived: set[str]) -> None:
    """Without any evidence, so that each check asked for is there as missing."""
    slices = ["gate.slice_margin=9", "gate.slice_margins={ocr: 5}"]
    recipe = load_recipe("micro", overrides=[*slices, f"gate.waivers=[{WAIVERS}]"])
    folder: Any = SimpleNamespace(digest="sha256:0", manifest=SimpleNamespace(bytes=1))
    built = Built({"fp16": folder, variant: folder}, folder, {}, {})
    judged = judge(variant, recipe, built, [])
    assert {check.metric for check in judged.checks} == metrics
    assert {check.name for check in judged.checks if check.waived} == waived
    assert {waiver["status"] for waiver in judged.waivers} == {"in force"}
    assert ("accuracy, every slice" in {check.name for check in judged.checks}) == (variant != "fp16")
