"""Builds over time: kept whole, compared only where they may be, and flagged only where it is shown."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.__main__ import main
from bench.accuracy import Observation
from bench.gate import Limits, Measurements, gate
from bench.history.commands import sparkline
from bench.history.drift import DRIFT, STEADY, UNKNOWN, Change, changes
from bench.history.page import sentence, write_page
from bench.history.runs import FILE, Run, append_build, read_history
from engines.errors import UserError

HERE = {"processor": "P", "gpu": None, "memory_bytes": 8}


def night(number: int, **fields: Any) -> Run:
    known: dict[str, Any] = {
        "time": f"2026-11-{number:02}T02:00:00+00:00",
        "model": "m",
        "variant": "v",
        "digest": "sha256:a",
        "verdict": "PASS",
        "published": True,
        "hardware": HERE,
        "commit": f"{number:040}",
        "dirty": False,
        "versions": {"onnxruntime": "1.32.0"},
        "items": "sha256:i",
        "scores": {},
        "figures": {},
        "bytes": 1000,
        "peak_memory_bytes": None,
    }
    return Run(**known | fields)


def of(found: list[Change], metric: str) -> Change:
    (one,) = [change for change in found if change.metric == metric]
    return one


def timed(values: list[float], **last: Any) -> list[Run]:
    runs = [night(i + 1, figures={"e2e_latency_ms": (value,) * 3}) for i, value in enumerate(values)]
    return [*runs[:-1], replace(runs[-1], **last)]


def scored(right: int, of: int = 500, task: str = "ocr") -> dict[str, list[float]]:
    return {task: [float(i < right) for i in range(of)]}


def test_a_lasting_slowdown_is_flagged_and_noise_is_not() -> None:
    quiet = [0.50, 0.51, 0.49, 0.50, 0.505]
    slower = of(changes(timed([*quiet, 0.65])), "e2e_latency_ms")
    assert slower.verdict == DRIFT
    assert slower.difference == pytest.approx(30, abs=1)
    assert slower.low is not None
    assert slower.low > 20
    assert of(changes(timed([*quiet, 0.515])), "e2e_latency_ms").verdict == STEADY
    noisy = [0.4, 0.6, 0.45, 0.55, 0.5]  # where nights differ by a fifth, 30 % is nothing to wake anybody for
    assert of(changes(timed([*noisy, 0.65])), "e2e_latency_ms").verdict == STEADY
    assert of(changes(timed([*quiet, 0.30])), "e2e_latency_ms").verdict == STEADY  # faster


def test_equal_builds_are_rarely_flagged() -> None:
    """By simulation: at most one night in a hundred, whatever the number of figures."""
    rng = np.random.default_rng(0)
    flagged = 0
    for _ in range(300):
        values = rng.lognormal(0, 0.05, (6, 3))
        runs = [
            night(i + 1, figures={f"f{j}": (float(x),) * 3 for j, x in enumerate(row)})
            for i, row in enumerate(values)
        ]
        flagged += any(change.verdict == DRIFT for change in changes(runs))
    assert flagged <= 7  # of 300 at 1 %: more has a chance of 1 in 80


def test_the_noise_must_be_known_first() -> None:
    early = of(changes(timed([0.5, 0.5, 0.9])), "e2e_latency_ms")
    assert (early.verdict, early.reason) == (
        UNKNOWN,
        "1 more run of an unchanged artifact would tell its noise",
    )
    changed = timed([0.5, 0.51, 0.49, 0.5, 0.9], versions={"onnxruntime": "1.33.0"})
    found = of(changes(changed), "e2e_latency_ms")
    assert found.verdict == DRIFT
    assert "onnxruntime 1.32.0 → 1.33.0" in found.reason


@pytest.mark.parametrize(("right", "verdict"), [(480, STEADY), (477, STEADY), (460, DRIFT), (499, STEADY)])
def test_accuracy_is_compared_item_by_item(right: int, verdict: str) -> None:
    runs = [night(1, scores=scored(480)), night(2, scores=scored(right), digest="sha256:b")]
    found = of(changes(runs), "accuracy")
    assert found.verdict == verdict
    assert found.difference == pytest.approx((right - 480) / 5)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.difference <= found.high
    assert found.reason == "commit 000000000 → 000000000"


def test_a_slice_that_collapsed_is_named() -> None:
    before = scored(950, 1000, "facts") | scored(40, 40, "arabic")
    after = scored(952, 1000, "facts") | scored(20, 40, "arabic")
    found = changes([night(1, scores=before), night(2, scores=after)])
    assert {c.metric for c in found if c.verdict == DRIFT} == {"accuracy", "accuracy, arabic"}
    other = changes([night(1, scores=before), night(2, scores=after, items="sha256:j")])
    assert of(other, "accuracy").verdict == UNKNOWN
    assert "other items" in of(other, "accuracy").reason


def test_what_a_build_is_held_against() -> None:
    """The last one that was published, on this hardware; or the one of a commit."""
    runs = [
        night(1, bytes=1000),
        night(2, bytes=1500, published=False),
        night(3, bytes=1500, hardware=HERE | {"processor": "Q"}),
        night(4, bytes=1500, variant="w"),
        night(5, bytes=1500),
    ]
    found = of(changes(runs), "bytes")
    assert (found.before, found.verdict) == (1000, DRIFT)
    assert of(changes(runs, tolerance=60), "bytes").verdict == STEADY
    assert of(changes(runs, against=f"{2:040}"), "bytes").before == 1500
    (none,) = changes(runs, against="feed")
    assert (none.verdict, none.reason) == (UNKNOWN, "no run of commit feed on P")
    (first,) = changes(runs[:1])
    assert first.reason == "nothing published before on P"
    assert sentence([first]) == "Nothing to compare the newest build with yet."


def test_memory_that_repeats_to_the_byte_may_still_grow() -> None:
    runs = [night(i, peak_memory_bytes=10**8) for i in range(1, 5)]
    assert of(changes(runs), "peak_memory_bytes").verdict == STEADY
    grown = [*runs, night(5, peak_memory_bytes=11 * 10**7)]
    assert of(changes(grown), "peak_memory_bytes").verdict == DRIFT


def test_a_build_adds_its_lines(tmp_path: Path) -> None:
    answers = {
        name: [
            Observation(str(i), "ocr", "a", "", i >= wrong, 0.1, (1,), float(i >= wrong)) for i in range(50)
        ]
        for name, wrong in (("fp16", 1), ("int4", 4))
    }
    gates = {
        name: gate(
            Measurements("b", name, answers["fp16"], answers[name], bytes=5),
            Limits(accuracy_margin=None if name == "fp16" else 30.0, max_peak_memory_bytes=None),
        )
        for name in answers
    }
    rows = [
        {"name": name, "digest": name, "verdict": judged.verdict, "bytes": 5}
        | {"path": None, "peak_memory_bytes": None}
        for name, judged in gates.items()
    ]
    known = {"processor": "P", "commit": "c", "dirty": True, "packages": {"numpy": "2", "pip": "1"}}
    summary = {"model": "m", "environment": known, "variants": rows}
    for day in ("02", "01"):
        append_build(tmp_path / FILE, summary, gates, answers, f"2026-11-{day}")
    runs = read_history([tmp_path / FILE])
    assert [(run.time[-2:], run.variant) for run in runs] == [
        ("01", "fp16"),
        ("01", "int4"),
        ("02", "fp16"),
        ("02", "int4"),
    ]
    assert runs[1].scores == {"ocr": [0.0] * 4 + [1.0] * 46}
    assert runs[1].versions == {"numpy": "2"}
    assert runs[0].items == runs[1].items
    assert runs[0].figures == {"accuracy": (98.0, 98.0, 98.0)}
    accuracy, low, high = runs[1].figures["accuracy"]
    assert low < accuracy == 92.0 < high < 98.0
    with (tmp_path / FILE).open("a") as file:
        file.write('{"time": 3}\n')
    with pytest.raises(UserError, match=r"history\.jsonl:5: "):
        read_history([tmp_path / FILE])


def test_the_page_shows_every_figure_and_rings_what_drifted(tmp_path: Path) -> None:
    runs = timed([0.5, 0.51, 0.49, 0.5, 0.9], published=False)
    runs = [replace(run, model="<m>", scores=scored(9, 10), peak_memory_bytes=7) for run in runs]
    write_page(runs, changes(runs), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "://" not in page
    assert "<script" not in page
    assert "&lt;m&gt; over time" in page
    drawings = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert [drawing.attrib["aria-label"].split()[0] for drawing in drawings] == [
        "e2e_latency_ms",
        "bytes",
        "peak_memory_bytes",
    ]
    kinds = [circle.attrib["class"] for circle in drawings[0].iter("circle")]
    assert kinds == ["point"] * 4 + ["hollow", "ring"]
    assert not [c for c in drawings[1].iter("circle") if c.attrib["class"] == "ring"]
    assert "1 of 4 figures of the newest build drifted: v e2e, ratio to the baseline." in page


def test_a_line_of_the_terminal_rises_and_falls() -> None:
    assert sparkline([1.0, 3.0, 2.0, 1.0]) == "▁█▅▁"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([]) == ""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / FILE, tmp_path / "history.html"
    for values, code in (([0.5, 0.51, 0.49, 0.5], 0), ([0.5, 0.51, 0.49, 0.5, 0.9], 3)):
        file.write_text("".join(json.dumps(asdict(run)) + "\n" for run in timed(values)))
        assert main(["history", str(file), "--out", str(page), "--json"]) == code
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert told["drift"] == (code == 3)
        assert told["runs"] == len(values)
    assert page.stat().st_size > 1000
    assert main(["history", str(file)]) == 3
    shown = capsys.readouterr().out
    assert "DRIFT" in shown
    assert "▁▁▁▁█" in shown
    with file.open("a") as out:
        out.write(json.dumps(asdict(night(9, model="other"))) + "\n")
    assert main(["history", str(file)]) == 1
    assert "name the history.jsonl of one of them" in capsys.readouterr().err
    assert main(["history", str(tmp_path / "none.jsonl")]) == 1
