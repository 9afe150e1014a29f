"""The page shows what the evidence says, loads nothing, escapes everything, and is equal for equal input."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.accuracy import Observation
from bench.charts import Mark, Series, ecdf, forest, heatmap, scatter
from bench.examples import Answer, Example
from bench.figures import pareto
from bench.gate import Limits, Measurements, gate
from bench.latency import Timing
from bench.power import observed
from bench.report import VariantEvidence, write_report
from bench.statistics import Interval
from bench.svg import WIDTH, Axis, place_labels, tag

TASKS = ["ocr", "count", "<b>bold</b>"]


def answers(wrong: int) -> list[Observation]:
    return [
        Observation(str(i), TASKS[i % 3], "abcdefg"[i % 7], "", i >= wrong, 0.1, (1,), float(i >= wrong))
        for i in range(300)
    ]


def timings(arm: str, ratio: float) -> list[Timing]:
    rng = np.random.default_rng(0)
    return [
        Timing(arm, i, j, 9, 4, t := ratio * rng.uniform(9, 11), ratio, t + 3 * ratio, 4e3 / (t + 3 * ratio))
        for i in range(10)
        for j in range(2)
    ]


def variant(name: str, wrong: int, ratio: float | None = None, **limits: Any) -> VariantEvidence:
    timed = timings(name, ratio) if ratio else []
    measured = Measurements(
        baseline="base",
        candidate="base" if name == "fp16" else name,
        baseline_answers=answers(10),
        candidate_answers=answers(wrong),
        baseline_timings=timings("fp16", 1.0),
        again_timings=timings("fp16", 1.0),
        candidate_timings=timed,
        bytes=4_000_000,
        peak_memory_bytes=9_000_000_000 if name == "huge" else 500_000_000,
        memory_at=(2048, 1),
    )
    compared = timings("fp16", 1.0) if timed and name != "fp16" else []
    unlimited = {"accuracy_margin": 2.0, "ttft_p50_ratio": None, "e2e_ratio": None}
    judged = gate(measured, Limits(**unlimited | limits))
    return VariantEvidence(name, judged, answers(wrong), timed, compared)


def variants() -> list[VariantEvidence]:
    layers = [{"mlp.up_proj": {"error": 0.05}, "mlp.down_proj": {"error": 0.02 * i}} for i in (1, 2, 3)]
    return [
        variant("fp16", 10, 1.0, accuracy_margin=None),
        variant("onnx", 10, 0.5, e2e_ratio=1.1),
        replace(variant("<script>alert(1)</script>", 40), layers=layers),
        variant("huge", 12, 0.9),
    ]


def summary(shown: list[VariantEvidence]) -> dict[str, Any]:
    rows = [
        {"name": v.name, "verdict": v.gate.verdict, "bytes": 4_000_000, "peak_memory_bytes": 500_000_000}
        for v in shown
    ]
    return {
        "model": "a & b",
        "out": "some folder",
        "verdict": "FAIL",
        "seconds": 12.3,
        "variants": rows,
        "recipe": {"name": "micro", "model": "embedded"},
        "environment": {
            "processor": "P<1>",
            "packages": {"torch": "2.13.0"},
            "commit": "c" * 40,
            "dirty": True,
        },
    }


@pytest.fixture
def page(tmp_path: Path) -> str:
    write_report(summary(variants()), variants(), tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def drawings(page: str) -> dict[str, ET.Element]:
    """The page's SVGs by title; parsing them as XML proves them well formed."""
    found = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    return {element.attrib["aria-label"]: element for element in found}


def test_the_page_is_one_file_that_loads_nothing(page: str) -> None:
    assert "://" not in page
    for word in ("<script", "<link", "<img", "src=", "url(", "@import"):
        assert word not in page


class Balance(HTMLParser):
    """Fails on an element that is not closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_elements_are_balanced_and_ids_are_absent(page: str) -> None:
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert " id=" not in page


def test_names_are_text_and_never_markup(page: str) -> None:
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;b&gt;bold" in page
    assert "a &amp; b" in page
    assert "P&lt;1&gt;" in page


def test_every_verdict_stands_with_its_reason(page: str) -> None:
    for v in variants():
        assert f"{len(v.gate.checks)} check" in page
    assert page.count('class="verdict FAIL"') == 3  # the whole, the damaged one, the huge one
    assert page.count('class="verdict PASS"') == 2
    assert "9 GB where 6 GB is the limit" in page
    assert "below the baseline with 95% confidence" in page
    assert "--out &#39;some folder&#39;" in page


def test_a_waived_check_is_told(tmp_path: Path) -> None:
    shown = variants()
    waiver = {"check": "accuracy", "reason": "a demo", "expires": "2027-05-31", "status": "in force"}
    judged = shown[3].gate
    checks = [check.model_copy(update={"waived": check.name == "accuracy"}) for check in judged.checks]
    shown[3] = replace(shown[3], gate=judged.model_copy(update={"checks": checks, "waivers": [waiver]}))
    write_report(summary(shown), shown, tmp_path / "page.html")
    told = (tmp_path / "page.html").read_text()
    assert told.count("Waiver in force, until 2027-05-31: accuracy. a demo") == 1
    assert told.count("accuracy (waived)") == 1


def test_charts_are_those_the_evidence_suffices_for(tmp_path: Path, page: str) -> None:
    assert len(drawings(page)) == 6
    bare = [replace(v, timings=[], layers=[]) for v in variants()]
    write_report(summary(bare), bare, tmp_path / "bare.html")
    titles = " ".join(drawings((tmp_path / "bare.html").read_text()))
    assert "against on disk" in titles
    assert "ttft" not in titles
    assert "latency" not in titles
    alone = [replace(variants()[0], observations=[], timings=[])]
    write_report(summary(alone), alone, tmp_path / "alone.html")
    assert not drawings((tmp_path / "alone.html").read_text())


def test_examples_bring_their_pictures_along(tmp_path: Path) -> None:
    said = (Answer(("fp16",), "7", 1.0, True), Answer(("onnx",), "<i>8</i>", 0.0, False))
    example = Example("id", "count", "How many?", "7", ("data:image/png;base64,AAAA",), True, 2, said)
    write_report(summary(variants()), variants(), tmp_path / "page.html", [example])
    page = (tmp_path / "page.html").read_text()
    assert re.findall(r'src="([^"]*)"', page) == ["data:image/png;base64,AAAA"]
    assert "and 2 more" in page
    assert "&lt;i&gt;8" in page
    assert "://" not in page
    Balance().feed(page)


def test_every_task_stands_in_numbers(page: str) -> None:
    assert page.count("<td>ocr</td>") == page.count("<td>count</td>") == 1
    assert "<th>onnx</th><th>&lt;script&gt;alert(1)&lt;/script&gt;</th><th>huge</th>" in page
    assert re.search(r'<td class="FAIL">−10\.0 \(', page)


@pytest.mark.parametrize(
    ("points", "beaten"),
    [
        ({"a": (10, 90, 5), "b": (20, 95, 5), "c": (5, 80, 9)}, set()),
        ({"a": (10, 90, 5), "b": (20, 90, 5)}, {"b"}),
        ({"a": (10, 90, 5), "b": (10, 90, 5)}, set()),
        ({"a": (10, 90, 5), "b": (10, 90, 6), "c": (9, 90, 6)}, {"b"}),
        ({"a": (10, 90, 5), "b": (11, 89, 6), "c": (12, 88, 7)}, {"b", "c"}),
    ],
)
def test_the_pareto_front_is_of_all_three(
    points: dict[str, tuple[float, float, int]], beaten: set[str]
) -> None:
    marks = [Mark(name, 0, Interval(x, x, x), Interval(y, y, y)) for name, (x, y, _) in points.items()]
    drawn, told = pareto(marks, {name: memory for name, (*_, memory) in points.items()})
    assert {m.label for m in drawn if m.beaten} == beaten
    assert max(m.size or 0 for m in drawn) == 1
    assert all(f"{name} by a" in told for name in beaten - {"b", "c"} | ({"b"} & beaten))
    assert ("hollow" in told) == bool(beaten)
    chart = scatter(drawn, title="t", x_label="x", y_label="y", x_format=str, band=(80, 95))
    assert chart.count("beaten") == len(beaten)


def test_equal_input_gives_an_equal_page(tmp_path: Path, page: str) -> None:
    write_report(summary(variants()), variants(), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def elements(drawing: str, name: str) -> Iterator[dict[str, float]]:
    for element in ET.fromstring(drawing).iter(name):
        yield {
            key: float(value)
            for key, value in element.attrib.items()
            if key in ("x1", "x2", "y1", "y2", "cx", "cy")
        }


def test_axes_map_and_mark() -> None:
    linear, log = Axis(0, 10, 100, 200), Axis(1, 100, 0, 50, log=True)
    assert (linear(0), linear(5), linear(10)) == (100, 150, 200)
    assert (log(1), log(10), log(100)) == pytest.approx((0, 25, 50))
    assert linear.ticks() == [0, 2, 4, 6, 8, 10]
    assert log.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert Axis(0.9, 1.4, 0, 1, log=True).ticks() == pytest.approx([0.9, 1.0, 1.1, 1.2, 1.3, 1.4])
    assert Axis(1, 1e6, 0, 1, log=True).ticks() == [10.0**i for i in range(7)]


def test_scatter_puts_points_and_whiskers_where_the_values_are() -> None:
    marks = [
        Mark("a", 0, Interval(10, 10, 10), Interval(90, 90, 90)),
        Mark("b", 1, Interval(100, 50, 200), Interval(80, 70, 85)),
    ]
    drawn = scatter(marks, title="t", x_label="x", y_label="y", x_format=str, band=(88, 90))
    a, b = elements(drawn, "circle")
    assert a["cx"] < b["cx"]
    assert a["cy"] < b["cy"]  # up is less in SVG
    vertical, horizontal = list(elements(drawn, "line"))[-2:]
    assert vertical["x1"] == vertical["x2"] == b["cx"]
    assert (b["cy"] - vertical["y2"]) / (vertical["y1"] - b["cy"]) == pytest.approx(5 / 10, abs=0.01)
    assert b["cx"] - horizontal["x1"] == pytest.approx(
        horizontal["x2"] - b["cx"], abs=0.2
    )  # a factor of 2 each


def test_scatter_keeps_equal_points_apart() -> None:
    same = [Mark(name, i, Interval(5, 5, 5), Interval(90, 89, 91)) for i, name in enumerate("abc")]
    drawn = scatter(same, title="t", x_label="x", y_label="y", x_format=str, band=(88, 90))
    xs = sorted(circle["cx"] for circle in elements(drawn, "circle"))
    assert np.diff(xs) == pytest.approx([4, 4])


def test_forest_draws_zero_and_the_limit() -> None:
    marks = {"all": [Mark("v", 1, Interval(-1, -3, 1))]}
    drawn = forest(marks, notes={"all": "n"}, limit=-2.0, title="t", x_label="x")
    by_class = {element.attrib["class"]: element.attrib for element in ET.fromstring(drawn).iter("line")}
    dot = next(elements(drawn, "circle"))
    zero, limit, whisker = (by_class[name] for name in ("reference", "limit", "whisker"))
    assert float(whisker["x1"]) < float(limit["x1"]) < dot["cx"] < float(zero["x1"]) < float(whisker["x2"])
    assert dot["cx"] == pytest.approx((float(whisker["x1"]) + float(whisker["x2"])) / 2, abs=0.1)


def test_ecdf_rises_from_none_to_all() -> None:
    path = next(ET.fromstring(ecdf([Series("a", 0, [4.0, 1.0, 2.0])], title="t", x_label="x")).iter("path"))
    heights = [float(y) for y in re.findall(r"V([\d.]+)", path.attrib["d"])]
    across = [float(x) for x in re.findall(r"H([\d.]+)", path.attrib["d"])]
    assert heights == pytest.approx([228 - 212 / 3, 228 - 424 / 3, 16], abs=0.1)
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.1)  # 1, 2, 4: equal ratios


def test_heatmap_leaves_out_what_is_not_there() -> None:
    drawn = ET.fromstring(heatmap(["q", "k"], ["0", "1"], [[0.1, float("nan")], [0.05, 0.02]], title="t"))
    shades = [float(cell.attrib["fill-opacity"]) for cell in drawn.iter("rect")]
    assert len(shades) == 3
    assert shades[0] > shades[1] > shades[2] > 0


@pytest.mark.parametrize("n", [2, 5, 7])
def test_labels_of_crowded_points_do_not_cover_each_other(n: int) -> None:
    points = [(200.0 + 3 * i, 120.0 + 11 * (i % 3), f"variant-int4-{i}") for i in range(n)]
    boxes = []
    for (x, y, anchor), (_, _, label) in zip(place_labels(points, (44, 16, WIDTH, 268)), points, strict=True):
        width = 7 * len(label)
        left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
        boxes.append((left, y - 9, left + width, y + 1))
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_attributes_and_text_are_escaped() -> None:
    assert (
        tag("text", "<&>", aria_label='"x"', x=1.0)
        == '<text aria-label="&#34;x&#34;" x="1">&lt;&amp;&gt;</text>'
    )


def test_a_waived_check_and_its_waiver_are_on_the_page(tmp_path: Path) -> None:
    waiver = {"check": "accuracy", "reason": "known & accepted until then", "expires": "2999-01-01"}
    shown = [
        variant("fp16", 10, 1.0, accuracy_margin=None),
        variant("worse", 60, ttft_p50_ratio=None, e2e_ratio=None, waivers=[waiver]),
    ]
    assert shown[1].gate.verdict == "PASS"
    write_report(summary(shown), shown, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Waiver in force, until 2999-01-01: accuracy. known &amp; accepted until then" in page
    assert "accuracy (waived)" in page


def test_power_and_cost_are_on_the_page_or_why_not(tmp_path: Path) -> None:
    told = variant("onnx", 10, 0.5)
    known = [replace(row, energy_j=2.0, temperature_c=61.0) for row in told.timings]
    rows = {
        "onnx": observed(told.compared, told.timings, None, "EUR"),
        "lit": observed(known, known, 3.6, "EUR"),
    }
    shown = [
        replace(told, name=name, gate=told.gate.model_copy(update={"observed": found}))
        for name, found in rows.items()
    ]
    shown = [variant("fp16", 10, 1.0, accuracy_margin=None), *shown]
    write_report(summary(shown), shown, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "not readable on this machine" in page
    assert "energy per 1,000 tokens" in page
    assert "500 J" in page  # 2 J for 4 tokens
    assert "EUR" in page
