"""The verdict in words says what the gate found, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from bench.gate import gate
from bench.sentences import sentence, whole
from bench.slices import Cell, slice_table
from bench.verdict import Gate, Limits, Measurements, Row
from tests.test_report import answers, timings


def judged(
    name: str = "int4", wrong: int = 12, ratio: float = 0.5, size: int = 4_000_000, **limits: Any
) -> Gate:
    measured = Measurements(
        baseline="fp16",
        candidate=name,
        baseline_answers=answers(10),
        candidate_answers=answers(wrong),
        baseline_timings=timings("fp16", 1.0),
        again_timings=timings("fp16", 1.0),
        candidate_timings=timings(name, ratio),
        bytes=size,
        peak_memory_bytes=500_000_000,
        memory_at=(2048, 1),
    )
    return gate(
        measured, Limits(**{"accuracy_margin": 5.0, "ttft_p50_ratio": None, "e2e_ratio": 1.1} | limits)
    )


@pytest.mark.parametrize(
    ("name", "fields", "told"),
    [
        ("fp16", {}, "fp16 is the baseline that the others are held against."),
        (
            "int4",
            {},
            "int4 may replace the baseline: it loses 0.7 points of accuracy (2.0 at worst, 5 allowed), "
            "takes 0.50 of the baseline's time (0.50 at worst, 1.1 allowed), 4 MB on disk, "
            "500 MB of memory at most.",
        ),
        ("int4", {"wrong": 8}, "int4 may replace the baseline: it loses no accuracy (0."),
        ("int4", {"slice_margin": 20.0}, "none of 3 slices loses more than 1.0 points."),
        (
            "int4",
            {"wrong": 60},
            "int4 must not replace the baseline: accuracy: -16.7 points, and below the baseline",
        ),
        ("int4", {"ratio": 1.5}, "int4 must not replace the baseline: end-to-end latency: 1.5"),
        ("int4", {"wrong": 60, "ratio": 2.0, "size": 7 * 10**9}, "; and 1 more check."),
        (
            "int4",
            {"accuracy_margin": 1.0},
            "Whether int4 may replace the baseline is not known yet: accuracy: may be",
        ),
    ],
)
def test_a_variant_in_words(name: str, fields: dict[str, Any], told: str) -> None:
    said = sentence(name, judged(name, **fields))
    assert told in said
    assert said.endswith(".")
    assert "\n" not in said


def test_waivers_and_missing_devices_are_told() -> None:
    waiver = {"check": "accuracy", "reason": "for a demonstration", "expires": "2999-01-01"}
    assert sentence("int4", judged(wrong=60, waivers=[waiver])).endswith(" 1 check waived.")
    elsewhere = Measurements(
        "fp16", "trt", unmeasured={"accuracy": "no GPU of sm89 in this machine"}, bytes=5
    )
    limits = Limits(max_peak_memory_bytes=None, ttft_p50_ratio=None, e2e_ratio=None)
    assert (
        sentence("trt", gate(elsewhere, limits))
        == "trt is not measured here: no GPU of sm89 in this machine."
    )


def test_a_build_in_words() -> None:
    gates = {"fp16": judged("fp16"), "a": judged("a", ratio=0.5), "b": judged("b", ratio=0.4)}
    said = whole(gates)
    assert said.startswith(
        "2 of 2 variants measured here may replace the baseline. The fastest of them is b: it"
    )
    said = whole(gates | {"c": judged("c", wrong=60), "d": judged("d", accuracy_margin=1.0)})
    assert said.startswith("2 of 4 variants measured here may replace")
    assert "Shown not to be good enough: c. Not known yet: d." in said
    assert whole({"fp16": judged("fp16")}) == "No variant but the baseline could be measured here."


def test_the_worst_task_is_on_top_and_a_shown_loss_is_marked() -> None:
    def row(task: str, delta: float, low: float, high: float) -> Row:
        figures = {"baseline": 90.0, "delta": delta, "ci_low": low, "ci_high": high, "n": 20}
        return Row(metric="accuracy", slice=task, unit="points", **figures)

    table = slice_table(
        {"a": [row("x", 0, -5, 5), row("y", -9, -15, -2)], "b": [row("x", 4, 1, 9)], "fp16": []}
    )
    assert table is not None
    assert table.variants == ["a", "b"]
    assert [entry[0] for entry in table.rows] == ["y", "x"]
    assert table.rows[0][3] == [Cell("−9.0 (−15.0 to −2.0)", "FAIL"), Cell("-", "soft")]
    assert [cell.kind for cell in table.rows[1][3]] == ["", "PASS"]
    assert slice_table({"fp16": []}) is None
